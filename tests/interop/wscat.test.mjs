// The README's session by hand, line by line through the real wscat.
import { test } from "node:test";
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { inProject, withRelay } from "./relay.mjs";

const hang = { timeout: 60_000 };
const wscat = fileURLToPath(new URL("node_modules/wscat/bin/wscat", import.meta.url));

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

/** Runs `work` with a wscat at `url`: `type` sends a line, `answer` is the next one printed. */
async function withWscat(url, work) {
  const client = spawn(process.execPath, [wscat, "--connect", url], {
    // Once its standard input is closed wscat prints nothing: it stays open until the end.
    stdio: ["pipe", "pipe", "inherit"],
  });
  const ended = once(client, "exit");
  const printed = createInterface({ input: client.stdout })[Symbol.asyncIterator]();
  const type = (line) => client.stdin.write(`${line}\n`);
  // A message is printed behind whatever prompts were printed before it.
  const answer = async () => (await printed.next()).value.replace(/^(> )+/, "");
  try {
    await connected(type, answer);
    await work(type, answer);
  } finally {
    client.stdin.end();
    await ended;
  }
}

/** wscat drops what is typed before it is connected, and does not say when it is. */
async function connected(type, answer) {
  let asked = 0;
  const ask = () => type(`["COUNT","asked ${(asked += 1)}",{}]`);
  const asking = setInterval(ask, 50);
  const first = await answer();
  clearInterval(asking);
  ask();
  for (let line = first; JSON.parse(line)[1] !== `asked ${asked}`; ) line = await answer();
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
