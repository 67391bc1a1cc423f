// docs/protocol-by-hand.md from top to bottom: its commands in a shell, its messages in the real wscat.
import { test } from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { chmod, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { binary, inProject, startRelay } from "./relay.mjs";
import { startWscat, wscatPath } from "./wscat.mjs";

const hang = { timeout: 60_000 };
const run = promisify(execFile);

/** The page's steps: a command with what it prints, a line that is typed or comes, or Ctrl-C. */
async function steps(path) {
  const page = await readFile(inProject(path), "utf8");
  const blocks = [...page.matchAll(/^```(?:console|text)\n(.*?)^```$/gms)].map(([, text]) => text);
  const steps = [];
  for (const line of blocks.join("").split("\n").slice(0, -1)) {
    const [, prompt, rest] = /^([$<>]) (.*)$/.exec(line) ?? [];
    if (prompt === "$") steps.push({ command: rest, prints: "" });
    else if (prompt === ">") steps.push({ typed: rest });
    else if (prompt === "<") steps.push({ comes: rest });
    else if (line === "^C") steps.push({ interrupt: true });
    else steps.at(-1).prints += `${line}\n`;
  }
  return steps;
}

/** A directory as the page supposes it: the examples, and the programs in the path. */
async function workplace() {
  const cwd = await mkdtemp(join(tmpdir(), "negsync-walkthrough-"));
  await symlink(inProject("examples"), join(cwd, "examples"));
  await symlink(binary, join(cwd, "negsync"));
  // The wscat that is installed here, without a look at the registry.
  const npx = `#!/bin/sh\nshift\nexec "${process.execPath}" "${wscatPath}" "$@"\n`;
  await writeFile(join(cwd, "npx"), npx);
  await chmod(join(cwd, "npx"), 0o755);
  return { cwd, env: { ...process.env, PATH: `${cwd}${delimiter}${process.env.PATH}` } };
}

/** Waits until tee has written what it has printed. */
async function written(file, text) {
  while (!(await readFile(file, "utf8")).includes(text)) await new Promise(setImmediate);
}

test("docs/protocol-by-hand.md, as printed", hang, async () => {
  const place = await workplace();
  let relay, wscat, tee;
  try {
    for (const step of await steps("docs/protocol-by-hand.md")) {
      const { command, prints, typed, comes, interrupt } = step;
      if (command?.startsWith("negsync relay ")) {
        relay = await startRelay(command.split(" ").slice(2), place.cwd);
        const shown = prints.trimEnd();
        assert.equal(relay.line, shown.replace(/ws:\S+/, relay.url));
        relay.shownUrl = /ws:\S+/.exec(shown)[0];
      } else if (command?.startsWith("npx wscat ")) {
        assert.ok(command.includes(relay.shownUrl), command);
        const here = command.replace(relay.shownUrl, relay.url);
        wscat = await startWscat("sh", ["-c", here], place);
        tee = /\| tee (\S+)$/.exec(command)?.[1];
      } else if (command) {
        const { stdout } = await run("sh", ["-c", command], place);
        assert.equal(stdout, prints, command);
      } else if (typed) {
        wscat.type(typed);
      } else if (comes) {
        assert.equal(await wscat.answer(), comes);
        if (tee) await written(join(place.cwd, tee), comes);
      } else if (interrupt) {
        await wscat.end();
        wscat = undefined;
      }
    }
    assert.ok(relay && !wscat, "the page opens a relay and closes each wscat");
  } finally {
    await wscat?.end();
    await relay?.stop();
    await rm(place.cwd, { recursive: true });
  }
});
