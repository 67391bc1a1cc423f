// The real wscat, typed into line by line.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The path of the program. */
export const wscatPath = fileURLToPath(new URL("node_modules/wscat/bin/wscat", import.meta.url));

/** Starts wscat with a command: `type` sends a line, `answer` is the next one printed. */
export async function startWscat(command, args, options = {}) {
  // Once its standard input is closed wscat prints nothing: it stays open until the end.
  const client = spawn(command, args, { ...options, stdio: ["pipe", "pipe", "inherit"] });
  const ended = once(client, "exit");
  const printed = createInterface({ input: client.stdout })[Symbol.asyncIterator]();
  const type = (line) => client.stdin.write(`${line}\n`);
  // A message is printed behind whatever prompts were printed before it.
  const answer = async () => (await printed.next()).value.replace(/^(> )+/, "");
  const end = async () => {
    client.stdin.end();
    await ended;
  };
  await connected(type, answer);
  return { type, answer, end };
}

/** Runs `work` with a wscat at `url`. */
export async function withWscat(url, work) {
  const { type, answer, end } = await startWscat(process.execPath, [wscatPath, "--connect", url]);
  try {
    await work(type, answer);
  } finally {
    await end();
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
