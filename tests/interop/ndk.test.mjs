// NDK's sync, which reconciles against a cache and downloads into it.
import { test } from "node:test";
import assert from "node:assert/strict";
import { deal, idsNotIn, independentEvents, random, seedOf } from "./events.mjs";
import { withRelay } from "./relay.mjs";
import NDK, { NDKEvent } from "@nostr-dev-kit/ndk";
import { NDKSync } from "@nostr-dev-kit/sync";
import { matchFilters } from "nostr-tools/filter";

const hang = { timeout: 60_000 };

// NDK leaves timers running after its relays are disconnected; none may keep this process alive.
for (const name of ["setInterval", "setTimeout"]) {
  const start = globalThis[name];
  globalThis[name] = (...args) => start(...args).unref();
}

/** The least that NDK takes as a cache. */
class MemoryCache {
  locking = true;
  ready = true;
  events = new Map();

  constructor(events) {
    for (const event of events) this.events.set(event.id, event);
  }

  query({ filters, ndk }) {
    return [...this.events.values()]
      .filter((event) => matchFilters(filters, event))
      .map((event) => new NDKEvent(ndk, event));
  }

  async setEvent(event) {
    this.events.set(event.id, event.rawEvent());
  }
}

/** Syncs a cache that holds `events`, and returns the cache, the result and NDK's errors. */
async function sync(url, events, filter = {}) {
  const cache = new MemoryCache(events);
  const ndk = new NDK({
    explicitRelayUrls: [url],
    cacheAdapter: cache,
    enableOutboxModel: false,
    aiGuardrails: false,
  });
  await ndk.connect();
  const errors = [];
  const rounds = [];
  try {
    const result = await NDKSync.sync(ndk, filter, {
      onRelayError: (_, error) => errors.push(error.message),
      onNegotiationProgress: (_, { phase }) => rounds.push(phase),
    });
    return { cache, result, errors, rounds };
  } finally {
    for (const relay of ndk.pool.relays.values()) relay.disconnect();
  }
}

test("downloads exactly what the cache lacks", hang, async (t) => {
  const seed = seedOf(t);
  const { relay, client } = deal(await independentEvents(seed), random(seed));
  await withRelay(relay, async (url) => {
    const { cache, result, errors, rounds } = await sync(url, client);
    assert.deepEqual(errors, []);
    assert.ok(rounds.includes("reconciling"), "NDK did not reconcile but fell back to a REQ");
    assert.deepEqual([...result.need].sort(), idsNotIn(relay, client));
    assert.deepEqual([...result.have].sort(), idsNotIn(client, relay));
    assert.deepEqual(result.events.map((event) => event.id).sort(), idsNotIn(relay, client));
    assert.deepEqual(idsNotIn(relay, [...cache.events.values()]), []);
  });
});

test("is told of a set that is too large, and does not hang", hang, async (t) => {
  const events = await independentEvents(seedOf(t));
  await withRelay(
    events,
    async (url) => {
      const { result, errors } = await sync(url, []);
      assert.equal(errors.length, 1);
      // NDK knows no NEG-ERR of four elements, but takes it for an error all the same.
      assert.match(errors[0], /NEG-ERR|too many query results/);
      assert.equal(result.need.size, 0);
    },
    "[negentropy]\nmax_sync_events = 1\n",
  );
});
