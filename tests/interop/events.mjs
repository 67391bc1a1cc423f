// Signed events: real ones where NEGSYNC_REAL_EVENTS names a file of them, else generated.
import "./browser.mjs";
import { readFile } from "node:fs/promises";
import { finalizeEvent } from "nostr-tools/pure";
import { settle } from "./relay.mjs";

const GENERATED_EVENTS = 700;
/** What a relay shows to their author and addressees only, where nothing else is configured. */
const PRIVATE_KINDS = [4, 13, 14, 15, 1059, 21059];
const KINDS = [0, 1, 1, 1, 3, 6, 7, 7, 1111, 30023];

/** A random number generator that repeats itself from its seed (mulberry32): 0 <= number < 1. */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The seed of a test, printed: NEGSYNC_SEED repeats a run. */
export function seedOf(test) {
  const seed = Number(process.env.NEGSYNC_SEED ?? Math.floor(Math.random() * 2 ** 32));
  test.diagnostic(`NEGSYNC_SEED=${seed}`);
  return seed;
}

/**
 * Events for everybody of which none replaces or deletes another, so that a store keeps and shows
 * any part of them.
 */
export async function independentEvents(seed) {
  const file = process.env.NEGSYNC_REAL_EVENTS;
  if (!file) return await settle(generate(seed));
  const lines = (await readFile(file, "utf8")).split("\n").filter(Boolean);
  const events = lines.map((line) => JSON.parse(line));
  return await settle(events.filter((event) => !PRIVATE_KINDS.includes(event.kind)));
}

/** Events of a few authors, many to the second. */
function generate(seed) {
  const next = random(seed);
  const below = (limit) => Math.floor(next() * limit);
  const authors = Array.from({ length: 5 }, () => Uint8Array.from({ length: 32 }, () => below(256)));
  return Array.from({ length: GENERATED_EVENTS }, (_, number) => {
    const template = {
      kind: KINDS[below(KINDS.length)],
      created_at: 1_700_000_000 + below(200),
      tags: [["d", `${below(20)}`], ["t", `topic-${below(3)}`]],
      content: `Event ${number} of seed ${seed}: "ä", 🙂, \\, \u0007`,
    };
    return finalizeEvent(template, authors[below(authors.length)]);
  });
}

/** Deals events out at random: some to the relay, some to the client, some to both. */
export function deal(events, next) {
  const dealt = { relay: [], client: [] };
  for (const event of events) {
    const holder = next();
    if (holder < 0.7) dealt.relay.push(event);
    if (holder >= 0.4) dealt.client.push(event);
  }
  return dealt;
}

/** The ids of those events that are not among the `others`, in order. */
export function idsNotIn(events, others) {
  const known = new Set(others.map((event) => event.id));
  return events.map((event) => event.id).filter((id) => !known.has(id)).sort();
}
