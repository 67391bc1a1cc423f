// Syncs with real relays, each verdict held against a scan by ids: down, again, both ways, diff, live, and
// killed in the middle. `scripts/real-relays` installs the relays and names their programs.
import "./browser.mjs";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import assert from "node:assert/strict";
import { finalizeEvent } from "nostr-tools/pure";
import { random, seedOf } from "./events.mjs";
import { freePort, listens } from "./ports.mjs";
import { binary, withRelay as withOurs } from "./relay.mjs";
import WebSocket from "ws";

const THEIRS = 1200;
const SHARED = 200;
const OURS = 150;
const BETWEEN = 300;
const SCAN_IDS = 50;
const PATIENCE_MS = 120_000;

const run = promisify(execFile);
const programs = JSON.parse(process.env.NEGSYNC_REAL_RELAYS ?? "{}");
const beside = (name) => fileURLToPath(new URL(`real-relays/${name}`, import.meta.url));

/** How each relay is started: program, arguments, environment. */
const RELAYS = {
  "nostr-rs-relay": async (port, folder) => {
    const config = join(folder, "config.toml");
    await writeFile(config, `[network]\naddress = "127.0.0.1"\nport = ${port}\n`);
    return [["--config", config, "--db", folder]];
  },
  "nostr-relay-py": async (port, folder) => {
    const config = join(folder, "config.yaml");
    const store = `sqlite+aiosqlite:///${folder}/nostr.sqlite3`;
    await writeFile(
      config,
      `relay_name: real\nstorage:\n  sqlalchemy.url: ${store}\ngunicorn:\n  bind: 127.0.0.1:${port}\n`,
    );
    return [["-c", config, "serve", "--use-uvicorn"]];
  },
  monstr: async (port) => [[beside("serve_monstr.py"), `${port}`]],
  // It looks for a function that its nostr-tools no longer has, and so refuses every signature.
  relays: async (port, _, program) => [[join(program, "node_modules/relays/index.js")], { PORT: `${port}`, NOSTR_DISABLE_SIG: "true" }],
  "nostr-relay-js": async (port, _, program) => [[beside("serve-nostr-relay.cjs"), `${port}`, program]],
  "relay-builder": async (port) => [[`${port}`]],
};
/** Relays that Node runs. */
const BY_NODE = ["relays", "nostr-relay-js"];

/** Runs `work` with the URL of a fresh relay of this name. */
async function withRelay(name, work) {
  const folder = await mkdtemp(join(tmpdir(), "negsync-real-"));
  const port = await freePort();
  const program = programs[name];
  const [args, environment] = await RELAYS[name](port, folder, program);
  const relay = spawn(BY_NODE.includes(name) ? process.execPath : program, args, {
    cwd: folder,
    env: { ...process.env, ...environment },
    stdio: "ignore",
  });
  const ended = once(relay, "exit");
  try {
    while (!(await listens(port))) {
      assert.equal(relay.exitCode, null, `${name} has ended`);
      await sleep(50);
    }
    return await work(`ws://127.0.0.1:${port}`, folder);
  } finally {
    relay.kill("SIGKILL");
    await ended;
    await rm(folder, { recursive: true, force: true });
  }
}

/** A connection that asks one thing at a time. */
async function client(url) {
  const socket = new WebSocket(url);
  await once(socket, "open");
  const messages = [];
  let wake = () => {};
  socket.on("message", (data) => {
    messages.push(JSON.parse(data.toString()));
    wake();
  });
  const next = async (wanted) => {
    const until = Date.now() + PATIENCE_MS;
    for (;;) {
      const place = messages.findIndex(wanted);
      if (place >= 0) return messages.splice(0, place + 1);
      assert.ok(Date.now() < until, "no answer");
      await Promise.race([new Promise((resolve) => (wake = resolve)), sleep(1000)]);
    }
  };
  return { send: (message) => socket.send(JSON.stringify(message)), next, close: () => socket.close() };
}

async function publish(url, events) {
  const it = await client(url);
  for (const event of events) {
    it.send(["EVENT", event]);
    const answers = await it.next(([verb, id]) => verb === "OK" && id === event.id);
    const ok = answers.at(-1);
    assert.equal(ok[2], true, JSON.stringify(ok));
  }
  it.close();
}

let scans = 0;
/** Which of the ids the relay holds. Each question is another one: a relay may answer from a cache. */
async function scan(url, ids) {
  const it = await client(url);
  const held = new Set();
  for (let first = 0; first < ids.length; first += SCAN_IDS) {
    const id = `scan${(scans += 1)}`;
    it.send(["REQ", id, { ids: ids.slice(first, first + SCAN_IDS), since: scans }]);
    const ends = ([verb, of]) => of === id && (verb === "EOSE" || verb === "CLOSED");
    for (const [verb, of, event] of await it.next(ends)) {
      if (verb === "EVENT" && of === id) held.add(event.id);
    }
    it.send(["CLOSE", id]);
  }
  it.close();
  return held;
}

async function exported(store) {
  const { stdout } = await run(binary, ["export", "--store", store], { maxBuffer: 1 << 28 });
  return new Set(stdout.split("\n").filter(Boolean).map((line) => JSON.parse(line).id));
}

/** Runs negsync, and returns its exit code and the object that it prints. */
async function negsync(...args) {
  const ended = await run(binary, [...args, "--json"], { timeout: PATIENCE_MS }).catch((error) => error);
  assert.ok(ended.stdout, `${args.join(" ")}: ${ended.stderr}`);
  return { code: ended.code ?? 0, report: JSON.parse(ended.stdout) };
}

const minus = (one, other) => [...one].filter((id) => !other.has(id));

/** "Equal" only where both hold the same; what differs is counted with reasons, or it is not complete. */
function judge(what, report, ours, theirs, seconds) {
  const differing = [...minus(ours, theirs), ...minus(theirs, ours)];
  // Since the second that such a report names, and not before, events were compared.
  const since = report.proof === "read_since" ? report.read_since : 0;
  const apart = differing.filter((id) => seconds.get(id) >= since).length;
  const said = JSON.stringify({ ...report, filter: undefined });
  if (report.equal) assert.equal(differing.length, 0, `${what}: a false "equal": ${said}`);
  if (report.complete && apart > 0) {
    const reasons = Object.values(report.differs ?? {}).reduce((sum, count) => sum + count, 0);
    assert.ok(reasons >= apart, `${what}: ${apart} differ and ${reasons} have a reason: ${said}`);
  }
}

function events(seed, count, start) {
  const next = random(seed);
  const below = (limit) => Math.floor(next() * limit);
  const authors = Array.from({ length: 4 }, () => Uint8Array.from({ length: 32 }, () => 1 + below(255)));
  return Array.from({ length: count }, (_, number) =>
    finalizeEvent(
      {
        kind: [1, 1, 7, 1111][below(4)],
        created_at: start + below(40_000),
        tags: [["t", `topic-${below(3)}`]],
        content: `Event ${number} of seed ${seed}`,
      },
      authors[below(authors.length)],
    ),
  );
}

for (const name of Object.keys(programs)) {
  test(name, { timeout: 12 * PATIENCE_MS }, async (context) => {
    const seed = seedOf(context);
    const all = events(seed, THEIRS + OURS, 1_700_000_000);
    const [theirs, ours] = [all.slice(0, THEIRS), all.slice(THEIRS - SHARED)];
    const ids = all.map((event) => event.id);
    const seconds = new Map(all.map((event) => [event.id, event.created_at]));

    await withRelay(name, async (url, folder) => {
      const store = join(folder, "ours.sqlite");
      const file = join(folder, "ours.jsonl");
      await writeFile(file, ours.map((event) => `${JSON.stringify(event)}\n`).join(""));
      await run(binary, ["import", file, "--store", store]);
      await publish(url, theirs);
      const held = await scan(url, ids);
      context.diagnostic(`${held.size} of ${theirs.length} events kept by the relay`);
      const sync = (...args) => negsync("sync", url, "--store", store, ...args);
      const note = (what, { code, report }) => {
        const { equal, complete, verdict, stored, uploaded, bytes_down, error } = report;
        const said = { code, verdict, equal, complete, stored, uploaded, bytes_down, error };
        context.diagnostic(`${what}: ${JSON.stringify(said)}`);
        return report;
      };

      let report = note("down", await sync("--direction", "down"));
      judge("down", report, await exported(store), await scan(url, ids), seconds);
      if (report.complete) assert.deepEqual(minus(held, await exported(store)), [], "complete, and some are missing");

      report = note("again", await sync("--direction", "down"));
      judge("again", report, await exported(store), await scan(url, ids), seconds);
      if (report.complete) assert.equal(report.stored, 0);

      report = note("both", await sync());
      judge("both", report, await exported(store), await scan(url, ids), seconds);

      const found = await negsync("diff", url, "--store", store);
      const apart = minus(await exported(store), await scan(url, ids)).length;
      context.diagnostic(`diff: ${JSON.stringify({ code: found.code, have: found.report.have, need: found.report.need })}`);
      if (found.code === 0) assert.equal(apart, 0, 'diff: a false "equal"');

      const live = spawn(binary, ["sync", url, "--store", store, "--live"], { stdio: "ignore" });
      const ended = once(live, "exit");
      const later = events(seed + 1, 3, 1_750_000_000);
      await sleep(3000);
      await publish(url, later);
      const seen = async () => minus(new Set(later.map((event) => event.id)), await exported(store)).length === 0;
      let passed = false;
      for (const until = Date.now() + 60_000; !passed && Date.now() < until; ) {
        await sleep(250);
        passed = await seen();
      }
      live.kill("SIGTERM");
      await ended;
      assert.ok(passed, "live: what was published did not come within a minute");
    });

    await withRelay(name, async (url) => {
      await publish(url, theirs.slice(0, BETWEEN));
      await withOurs(ours, async (own) => {
        const { code, report } = await negsync("sync", "--between", url, own);
        const [pair] = report.pairs;
        const { verdict, proof, only, differs, error } = pair;
        context.diagnostic(`between: ${JSON.stringify({ code, verdict, proof, only, differs, error })}`);
        const { equal, complete } = report;
        judge("between", { ...pair, equal, complete }, await scan(own, ids), await scan(url, ids), seconds);
      });
    });

    await withRelay(name, async (url, folder) => {
      await publish(url, theirs);
      const held = await scan(url, ids);
      const store = join(folder, "killed.sqlite");
      const killed = spawn(binary, ["sync", url, "--store", store], { stdio: "ignore" });
      const ended = once(killed, "exit");
      const count = async () => (await exported(store).catch(() => new Set())).size;
      while (killed.exitCode === null && (await count()) === 0) await sleep(20);
      killed.kill("SIGKILL");
      await ended;
      context.diagnostic(`killed with ${await count()} stored`);
      const { report } = await negsync("sync", url, "--store", store);
      judge("after the kill", report, await exported(store), held, seconds);
      if (report.complete) assert.deepEqual(minus(held, await exported(store)), []);
    });
  });
}
