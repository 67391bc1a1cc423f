// The README's session by hand, line by line through the real wscat.
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { inProject, withRelay } from "./relay.mjs";
import { withWscat } from "./wscat.mjs";

const hang = { timeout: 60_000 };

/** The lines of the README's session: what is typed begins with "> ", what comes with "< ". */
async function readmeSession() {
  const readme = await readFile(inProject("README.md"), "utf8");
  const lines = readme.split("\n").filter((line) => /^[<>] /.test(line));
  assert.ok(lines.some((line) => line.startsWith('> ["NEG-OPEN"')), "the README holds no session");
  return lines;
}

async function exampleEvents() {
  const text = await readFile(inProject("examples/three-events.jsonl"), "utf8");
  return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

test("the README's session, as printed", hang, async () => {
  const session = await readmeSession();
  await withRelay(await exampleEvents(), (url) =>
    withWscat(url, async (type, answer) => {
      for (const line of session) {
        if (line.startsWith("> ")) type(line.slice(2));
        else assert.equal(await answer(), line.slice(2));
      }
    }),
  );
});

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
