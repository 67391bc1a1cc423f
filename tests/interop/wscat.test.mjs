// Sessions through the real wscat.
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { inProject, withRelay } from "./relay.mjs";
import { withWscat } from "./wscat.mjs";

const hang = { timeout: 60_000 };

async function exampleEvents() {
  const text = await readFile(inProject("examples/three-events.jsonl"), "utf8");
  return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

test("an empty set is answered with every id, oldest first", hang, async () => {
  const events = await exampleEvents();
  const ids = events.map((event) => event.id).join("");
  await withRelay(events, (url) =>
    withWscat(url, async (type, answer) => {
      type('["NEG-OPEN","all",{},"6100000200"]');
      assert.equal(await answer(), `["NEG-MSG","all","6100000203${ids}"]`);
    }),
  );
});
