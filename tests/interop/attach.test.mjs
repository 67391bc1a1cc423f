// nostr-tools before other relays, by way of `negsync attach`: NEGSYNC_NOSTR_RELAY_PY and
// NEGSYNC_NOSTR_RS_RELAY name their programs.
import "./browser.mjs";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { test } from "node:test";
import assert from "node:assert/strict";
import { finalizeEvent } from "nostr-tools/pure";
import { Relay } from "nostr-tools/relay";
import { random, seedOf } from "./events.mjs";
import { freePort, listens } from "./ports.mjs";
import { reconcile } from "./reconcile.mjs";
import { startAttach } from "./relay.mjs";

const RUNS = Number(process.env.NEGSYNC_SEEDS ?? 2);
const hang = { timeout: RUNS * 60_000 };
const PUBLISHED = 120;

const RELAYS = {
  "nostr-rs-relay": {
    program: process.env.NEGSYNC_NOSTR_RS_RELAY,
    database: "nostr.db",
    config: ["config.toml", (port) => `[network]\naddress = "127.0.0.1"\nport = ${port}\n`],
    args: (folder, config) => ["--config", config, "--db", folder],
  },
  "nostr-relay-py": {
    program: process.env.NEGSYNC_NOSTR_RELAY_PY,
    database: "nostr.sqlite3",
    config: [
      "config.yaml",
      (port, folder) =>
        `relay_name: real\nstorage:\n  sqlalchemy.url: sqlite+aiosqlite:///${folder}/nostr.sqlite3\n` +
        `gunicorn:\n  bind: 127.0.0.1:${port}\n`,
    ],
    args: (folder, config) => ["-c", config, "serve", "--use-uvicorn"],
  },
};

/** Runs `work` with the URL of the plugin before a fresh relay of this kind. */
async function withPlugin(kind, work) {
  const { program, database, config, args } = RELAYS[kind];
  const folder = await mkdtemp(join(tmpdir(), "negsync-attach-"));
  const port = await freePort();
  const file = join(folder, config[0]);
  await writeFile(file, config[1](port, folder));
  const relay = spawn(program, args(folder, file), { cwd: folder, stdio: "ignore" });
  const ended = once(relay, "exit");
  try {
    while (!(await listens(port))) await sleep(50);
    const path = `${kind}:${join(folder, database)}`;
    const plugin = await startAttach(["--attach", path, "--url", `ws://127.0.0.1:${port}`]);
    try {
      await work(plugin.url);
    } finally {
      await plugin.stop();
    }
  } finally {
    relay.kill();
    await ended;
    await rm(folder, { recursive: true });
  }
}

/** The stored events that match, by way of REQ. */
async function query(url, filter) {
  const relay = await Relay.connect(url);
  const events = [];
  await new Promise((resolve) => {
    relay.subscribe([filter], { onevent: (event) => events.push(event), oneose: resolve });
  });
  relay.close();
  return events;
}

/** Publishes notes and deletes some of them again. */
async function churn(url, next) {
  const relay = await Relay.connect(url);
  const below = (limit) => Math.floor(next() * limit);
  const authors = Array.from({ length: 3 }, () => Uint8Array.from({ length: 32 }, () => below(256)));
  const notes = [];
  const now = Math.floor(Date.now() / 1000);
  for (let number = 0; number < PUBLISHED; number++) {
    const created_at = now - PUBLISHED + number;
    const note = notes.length > 0 && next() < 0.25 ? notes.splice(below(notes.length), 1)[0] : null;
    const author = note?.author ?? authors[below(authors.length)];
    const template = note
      ? { kind: 5, created_at, tags: [["e", note.id]], content: "" }
      : { kind: 1, created_at, tags: [["t", "churn"]], content: `note ${number}` };
    const event = finalizeEvent(template, author);
    await relay.publish(event);
    if (!note) notes.push({ id: event.id, author });
  }
  relay.close();
}

for (const [kind, { program }] of Object.entries(RELAYS)) {
  const skip = program ? false : `*** LEFT OUT: the program of ${kind} is not named`;
  test(`reaches equality with ${kind} while events come and go`, { ...hang, skip }, async (t) => {
    const seed = seedOf(t);
    for (let run = 0; run < RUNS; run++) {
      await withPlugin(kind, async (url) => {
        const held = new Map();
        const take = async () => {
          const found = await reconcile(url, [...held.values()]);
          // What we have and the relay has not, it has deleted: all we have came from it.
          for (const id of found.have) held.delete(id);
          for (let from = 0; from < found.need.length; from += 50) {
            const ids = found.need.slice(from, from + 50);
            for (const event of await query(url, { ids })) held.set(event.id, event);
          }
          return found;
        };
        let isDone = false;
        const publishing = churn(url, random(seed + run)).finally(() => (isDone = true));
        let syncs = 0;
        for (; !isDone; syncs++) await take();
        await publishing;
        await take();
        const found = await take();
        assert.deepEqual([found.need, found.have], [[], []]);
        const stored = await query(url, { limit: 1000, kinds: [1, 5] });
        assert.deepEqual([...held.keys()].sort(), stored.map((event) => event.id).sort());
        assert.ok(held.size > 0 && syncs > 0);
        t.diagnostic(`run ${run}: ${syncs} syncs while ${PUBLISHED} events came and went`);
      });
    }
  });
}
