//! A client sees exactly its own events of private kinds, and all of one commit.

use negsync_index::Index;
use negsync_reconcile::Item;
use negsync_reconcile::RangeSet;
use negsync_store::{
    Event, Filter, PrivateKinds, StoreOptions, Synchronous, VerifiedEvent, Viewer,
};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

const PRIVATE: [u16; 2] = [4, 1_059];
/// Enough for the sets of broad filters to be costly, and so kept.
const FIRST_EVENTS: usize = 14_000;

/// An unsigned event: signatures are not tested here.
fn event(id: [u8; 32], author: u8, kind: u16, created_at: u64, p: &[u8]) -> VerifiedEvent {
    let key = |key: u8| format!("{key:064x}");
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let tags: Vec<String> = p.iter().map(|p| format!(r#"["p","{}"]"#, key(*p))).collect();
    let json = format!(
        r#"{{"id":"{id}","pubkey":"{}","created_at":{created_at},"kind":{kind},"tags":[{}],"content":"","sig":"{}"}}"#,
        key(author),
        tags.join(","),
        "0".repeat(128)
    );
    Event::parse(&json).unwrap().trust()
}

fn open(folder: &tempfile::TempDir) -> Index {
    let options = StoreOptions::default()
        .synchronous(Synchronous::Normal)
        .readers(4)
        .private_kinds(PrivateKinds::new(PRIVATE));
    Index::open(&folder.path().join("store.sqlite"), options, 64 << 20).unwrap()
}

fn viewer(keys: &[u8]) -> Viewer {
    let bytes = |key: &u8| {
        let mut bytes = [0; 32];
        bytes[31] = *key;
        bytes
    };
    Viewer::new(PrivateKinds::new(PRIVATE), keys.iter().map(bytes))
}

fn shown(index: &Index, viewer: &Viewer, filters: &[Filter]) -> Vec<Item> {
    let set = index.snapshot_for(viewer, filters, usize::MAX).unwrap();
    let mut items = Vec::new();
    set.for_each(0..set.len(), &mut |item| items.push(item));
    items
}

/// One event as the test records it.
struct Known {
    event: Event,
    item: Item,
    author: u8,
    p: Vec<u8>,
}

fn random_event(rng: &mut StdRng) -> (VerifiedEvent, Known) {
    let mut id = [0; 32];
    rng.fill_bytes(&mut id);
    let author = rng.random_range(1..6);
    let kind = [1, 1, 1, 7, 4, 4, 1_059][rng.random_range(0..7)];
    let p: Vec<u8> = (0..rng.random_range(0..3)).map(|_| rng.random_range(1..6)).collect();
    let make = |created_at| event(id, author, kind, created_at, &p);
    let created_at = rng.random_range(0..500);
    let known = make(created_at).into_inner();
    let item = known.item();
    (make(created_at), Known { event: known, item, author, p })
}

fn random_filter(rng: &mut StdRng) -> Filter {
    let mut filter = serde_json::json!({});
    let key = |key: u8| format!("{key:064x}");
    if rng.random_ratio(1, 2) {
        let kinds: [&[u16]; 6] = [&[1], &[4], &[1, 4], &[4, 1_059], &[7, 1_059], &[1, 4, 7]];
        filter["kinds"] = serde_json::json!(kinds[rng.random_range(0..kinds.len())]);
    }
    if rng.random_ratio(1, 3) {
        filter["authors"] = serde_json::json!([key(rng.random_range(1..6)), key(1)]);
    }
    if rng.random_ratio(1, 3) {
        filter["#p"] = serde_json::json!([key(rng.random_range(1..6)), key(2)]);
    }
    if rng.random_ratio(1, 3) {
        filter["since"] = serde_json::json!(rng.random_range(0..500));
    }
    if rng.random_ratio(1, 3) {
        filter["until"] = serde_json::json!(rng.random_range(0..500));
    }
    if rng.random_ratio(1, 3) {
        filter["limit"] = serde_json::json!(rng.random_range(0..300));
    }
    Filter::from_json(&filter).unwrap()
}

/// The events that NIP-01 selects among those that the viewer with `keys` may see.
fn expected(known: &[Known], filters: &[Filter], keys: &[u8]) -> Vec<Item> {
    let mut union = BTreeSet::new();
    for filter in filters {
        let mut items: Vec<Item> = known
            .iter()
            .filter(|known| {
                !PRIVATE.contains(&known.event.kind())
                    || keys.contains(&known.author)
                    || known.p.iter().any(|p| keys.contains(p))
            })
            .filter(|known| filter.matches(&known.event))
            .map(|known| known.item)
            .collect();
        items.sort_by_key(|item| (std::cmp::Reverse(item.created_at), item.id));
        items.truncate(filter.limit.unwrap_or(usize::MAX));
        union.extend(items);
    }
    union.into_iter().collect()
}

#[test]
fn each_viewer_is_shown_the_public_events_and_exactly_their_own() {
    for seed in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let index = open(&folder);
        let mut rng = StdRng::seed_from_u64(seed);
        let (events, mut known): (Vec<_>, Vec<_>) =
            (0..FIRST_EVENTS).map(|_| random_event(&mut rng)).unzip();
        index.store().publish(events).unwrap();
        for round in 0..80 {
            let (events, more): (Vec<_>, Vec<_>) =
                (0..rng.random_range(0..30)).map(|_| random_event(&mut rng)).unzip();
            index.store().publish(events).unwrap();
            known.extend(more);
            let gone = known.swap_remove(rng.random_range(0..known.len()));
            let filter = Filter { ids: Some(vec![gone.item.id]), ..Filter::default() };
            index.store().remove(&filter).unwrap();
            let keys: Vec<u8> =
                (0..rng.random_range(0..3)).map(|_| rng.random_range(1..6)).collect();
            let filters: Vec<Filter> =
                (0..rng.random_range(1..3)).map(|_| random_filter(&mut rng)).collect();
            let set = shown(&index, &viewer(&keys), &filters);
            let context = format!("seed {seed}, round {round}, {keys:?}: {filters:?}");
            assert!(set == expected(&known, &filters, &keys), "{context}");
        }
    }
}

/// Every commit stores or removes a public event together with a private one: a set with only one
/// of them mixes two commits.
#[test]
fn a_set_with_private_events_is_of_one_moment_while_commits_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(&folder);
    let mut rng = StdRng::seed_from_u64(9);
    let mut pair = |created_at| {
        let mut id = [0; 32];
        rng.fill_bytes(&mut id);
        let mut twin = id;
        (id[0], twin[0]) = (1, 4);
        vec![event(id, 3, 1, created_at, &[]), event(twin, 3, 4, created_at, &[2])]
    };
    let first: Vec<VerifiedEvent> = (0..FIRST_EVENTS as u64 / 2).flat_map(&mut pair).collect();
    index.store().publish(first).unwrap();
    let filters = [
        "{}",
        r#"{"kinds":[1,4]}"#,
        r#"{"since":3000}"#,
        r#"{"authors":["0000000000000000000000000000000000000000000000000000000000000003"]}"#,
    ]
    .map(|text| Filter::parse(text).unwrap());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for filter in &filters {
            let (index, done) = (&index, &done);
            scope.spawn(move || {
                let mut sets = 0;
                while !done.load(Ordering::Relaxed) || sets < 20 {
                    let set = shown(index, &viewer(&[2]), std::slice::from_ref(filter));
                    let of = |first: u8| -> Vec<(u64, [u8; 31])> {
                        let items = set.iter().filter(|item| item.id[0] == first);
                        items
                            .map(|item| (item.created_at, item.id[1..].try_into().unwrap()))
                            .collect()
                    };
                    assert!(of(1) == of(4), "{filter:?}");
                    let anonymous = shown(index, &viewer(&[]), std::slice::from_ref(filter));
                    assert!(anonymous.iter().all(|item| item.id[0] == 1), "{filter:?}");
                    sets += 1;
                }
            });
        }
        for round in 0..300 {
            let events = pair(3_000 + round);
            let ids = events.iter().map(|event| event.item().id).collect();
            index.store().publish(events).unwrap();
            if round % 3 == 0 {
                let mut gone = Filter { ids: Some(ids), ..Filter::default() };
                gone.ids.as_mut().unwrap().sort_unstable();
                index.store().remove(&gone).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
