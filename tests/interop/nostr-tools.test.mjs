// nostr-tools' own NIP-77 client.
import { test } from "node:test";
import assert from "node:assert/strict";
import { deal, idsNotIn, independentEvents, random, seedOf } from "./events.mjs";
import { reconcile } from "./reconcile.mjs";
import { withRelay } from "./relay.mjs";

const hang = { timeout: 60_000 };

const verbs = (found) => [...new Set(found.answers.map(([verb]) => verb))];

test("finds exactly what either side lacks", hang, async (t) => {
  const seed = seedOf(t);
  const { relay, client } = deal(await independentEvents(seed), random(seed));
  await withRelay(relay, async (url) => {
    const found = await reconcile(url, client);
    assert.deepEqual(found.need, idsNotIn(relay, client));
    assert.deepEqual(found.have, idsNotIn(client, relay));
    assert.ok(found.need.length > 0 && found.have.length > 0);
    assert.deepEqual(verbs(found), ["NEG-MSG"]);
  });
});

test("finds it through frames of the smallest size, and with a filter", hang, async (t) => {
  const seed = seedOf(t);
  const { relay, client } = deal(await independentEvents(seed), random(seed));
  const times = relay.map((event) => event.created_at).sort((a, b) => a - b);
  const filter = { kinds: [1, 6, 7], since: times[10], until: times[times.length - 10] };
  const matching = (events) =>
    events.filter(
      ({ kind, created_at }) =>
        filter.kinds.includes(kind) && created_at >= filter.since && created_at <= filter.until,
    );
  await withRelay(
    relay,
    async (url) => {
      const found = await reconcile(url, matching(client), filter);
      assert.deepEqual(found.need, idsNotIn(matching(relay), client));
      assert.deepEqual(found.have, idsNotIn(matching(client), relay));
      assert.ok(found.need.length > 0);
    },
    "[negentropy]\nframe_limit_bytes = 4096\n",
  );
});

test("an empty client needs all, an equal one nothing", hang, async (t) => {
  const events = await independentEvents(seedOf(t));
  await withRelay(events, async (url) => {
    const empty = await reconcile(url, []);
    assert.deepEqual(empty.need, idsNotIn(events, []));
    assert.deepEqual(empty.have, []);
    const equal = await reconcile(url, events);
    assert.deepEqual([equal.need, equal.have], [[], []]);
    assert.deepEqual(verbs(equal), ["NEG-MSG"]);
  });
});

test("an empty relay lacks all", hang, async (t) => {
  const events = await independentEvents(seedOf(t));
  await withRelay([], async (url) => {
    const found = await reconcile(url, events);
    assert.deepEqual(found.have, idsNotIn(events, []));
    assert.deepEqual(found.need, []);
  });
});

test("is told of a set that is too large, and does not hang", hang, async (t) => {
  const events = await independentEvents(seedOf(t));
  await withRelay(
    events,
    async (url) => {
      const refused = await reconcile(url, []);
      assert.deepEqual(refused.need, []);
      assert.deepEqual(refused.answers, [["NEG-ERR", "blocked: too many query results", 1]]);
      const allowed = await reconcile(url, [], { ids: [events[0].id] });
      assert.deepEqual(allowed.need, [events[0].id]);
    },
    "[negentropy]\nmax_sync_events = 1\n",
  );
});
