// JavaScript's negentropy engines behind a line protocol: one side of a session at a time.
//
// In: `initiate,<limit>,<items>` (nostr-tools), `respond,<limit>,<items>` (NDK's port of the same
// reference, which has both roles), `msg,<hex>`. Items are 40 bytes each in hex: the time, big end
// first, and the id. Out: an initiator writes `have,<ids>` and `need,<ids>` before its `msg,<hex>` or
// `done`, a responder writes `ready` and then `msg,<hex>` lines.
import "./browser.mjs";
import { createInterface } from "node:readline";
import { nip77 } from "nostr-tools";
import { Negentropy, NegentropyStorage } from "@nostr-dev-kit/sync";

const ITEM_DIGITS = 80;
const TIME_DIGITS = 16;

function fill(storage, items) {
  for (let at = 0; at < items.length; at += ITEM_DIGITS) {
    const item = items.slice(at, at + ITEM_DIGITS);
    storage.insert(Number(BigInt(`0x${item.slice(0, TIME_DIGITS)}`)), item.slice(TIME_DIGITS));
  }
  storage.seal();
  return storage;
}

const write = (line) => process.stdout.write(`${line}\n`);

/** Starts a side and returns what it does with a message. */
const sides = {
  initiate(limit, items) {
    const engine = new nip77.Negentropy(fill(new nip77.NegentropyStorageVector(), items), limit);
    write(`msg,${engine.initiate()}`);
    return (message) => {
      const have = [];
      const need = [];
      const next = engine.reconcile(message, (id) => have.push(id), (id) => need.push(id));
      write(`have,${have.join("")}`);
      write(`need,${need.join("")}`);
      write(next === null ? "done" : `msg,${next}`);
    };
  },
  respond(limit, items) {
    const engine = new Negentropy(fill(new NegentropyStorage(), items), limit);
    write("ready");
    return async (message) => {
      const { nextMessage } = await engine.reconcile(new Uint8Array(Buffer.from(message, "hex")));
      write(`msg,${Buffer.from(nextMessage).toString("hex")}`);
    };
  },
};

let take;
for await (const line of createInterface({ input: process.stdin })) {
  const [word, ...rest] = line.split(",");
  if (word === "msg") await take(rest[0]);
  else take = sides[word](Number(rest[0]), rest[1]);
}
