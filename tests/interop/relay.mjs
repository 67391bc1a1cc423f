// Runs the real negsync binary over a store of its own.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const root = fileURLToPath(new URL("../..", import.meta.url));
/** The built program. */
export const binary = process.env.NEGSYNC_BIN ?? join(root, "target/debug/negsync");
const run = promisify(execFile);
// However a test ends, its relay ends too, and nobody waits for it.
const RELAY_LIFE_MS = 90_000;

/** The path of a file of this project. */
export const inProject = (path) => join(root, path);

/** The events as JSON Lines, as import takes and export gives them. */
const toLines = (events) => events.map((event) => `${JSON.stringify(event)}\n`).join("");
const fromLines = (text) => text.split("\n").filter(Boolean).map((line) => JSON.parse(line));

/** What a store holds once it was given `events`: some may replace or delete others. */
export async function settle(events) {
  return await inStore(events, async (store) => {
    const { stdout } = await run(binary, ["export", "--store", store], { maxBuffer: 1 << 30 });
    return fromLines(stdout);
  });
}

/** Runs `work` with the URL of a relay that holds `events`; `config` is the text of its relay.toml. */
export async function withRelay(events, work, config = "") {
  return await inStore(events, async (store, directory) => {
    const configFile = join(directory, "relay.toml");
    await writeFile(configFile, config);
    const relay = await startRelay(["--config", configFile, "--store", store]);
    try {
      return await work(relay.url);
    } finally {
      await relay.stop();
    }
  });
}

/** Starts a relay on a free port; its `line` is the first that it prints. */
export async function startRelay(args, cwd = ".") {
  return await serve("relay", args, cwd);
}

/** Starts `negsync attach` on a free port. */
export async function startAttach(args) {
  return await serve("attach", args, ".");
}

async function serve(command, args, cwd) {
  const relay = spawn(binary, [command, ...args, "--listen", "127.0.0.1:0"], {
    cwd,
    stdio: ["ignore", "pipe", "inherit"],
    timeout: RELAY_LIFE_MS,
  });
  const ended = once(relay, "exit");
  const stop = async () => {
    relay.kill("SIGTERM");
    const [code, signal] = await ended;
    if (code !== 0) throw new Error(`the relay ended with ${code ?? signal}`);
  };
  return { ...(await address(relay, ended)), stop };
}

/** The relay's first line and the URL in it: `negsync serves FILE on ws://ADDR:PORT`. */
async function address(relay, ended) {
  const first = once(createInterface({ input: relay.stdout }), "line").then(([line]) => line);
  const early = ended.then(() => {
    throw new Error("the relay ended before it served");
  });
  const line = await Promise.race([first, early]);
  const url = /^negsync serves .+ on (ws:\/\/\S+)$/.exec(line)?.[1];
  if (!url) throw new Error("the relay did not say where it serves");
  return { line, url };
}

/** Runs `work` with a store in a directory of its own, into which `events` were imported. */
async function inStore(events, work) {
  const directory = await mkdtemp(join(tmpdir(), "negsync-interop-"));
  try {
    const store = join(directory, "store.sqlite");
    const file = join(directory, "events.jsonl");
    await writeFile(file, toLines(events));
    await run(binary, ["import", file, "--store", store]);
    return await work(store, directory);
  } finally {
    await rm(directory, { recursive: true });
  }
}
