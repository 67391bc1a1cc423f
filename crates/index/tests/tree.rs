//! Trees and slices through their public interface: the crate's engine over them, and the effect of
//! a filter's since, until and limit.

use negentropy::{Bound, Id, Negentropy, NegentropyStorageBase, NegentropyStorageVector};
use negsync_index::{Slice, Tree};
use negsync_reconcile::Item;
use negsync_reconcile::NegentropyStorage;
use negsync_reconcile::{RangeSet, Sum};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Items whose times and ids often collide.
fn random_items(rng: &mut StdRng, count: usize, times: u64) -> Vec<Item> {
    (0..count)
        .map(|_| {
            let mut id: [u8; 32] = rng.random();
            let shared = rng.random_range(0..32);
            id[..shared].fill(0xaa);
            Item::new(1_000 + rng.random_range(0..times), id)
        })
        .collect()
}

fn stored<S: RangeSet>(set: S) -> NegentropyStorage<S> {
    NegentropyStorage(set)
}

fn vector(items: &[Item]) -> NegentropyStorageVector {
    let mut vector = NegentropyStorageVector::new();
    for item in items {
        vector.insert(item.created_at, Id::from_byte_array(item.id)).unwrap();
    }
    vector.seal().unwrap();
    vector
}

/// Every message of a sync, then the ids that the initiator has and needs.
fn sync(
    initiator: &impl NegentropyStorageBase,
    responder: &impl NegentropyStorageBase,
    frame_limit_bytes: u64,
) -> (Vec<Vec<u8>>, Vec<Id>, Vec<Id>) {
    let mut initiator = Negentropy::borrowed(initiator, frame_limit_bytes).unwrap();
    let mut responder = Negentropy::borrowed(responder, frame_limit_bytes).unwrap();
    let (mut have, mut need) = (Vec::new(), Vec::new());
    let mut messages = vec![initiator.initiate().unwrap()];
    loop {
        let answer = responder.reconcile(messages.last().unwrap()).unwrap();
        let next = initiator.reconcile_with_ids(&answer, &mut have, &mut need).unwrap();
        messages.push(answer);
        match next {
            Some(next) => messages.push(next),
            None => break,
        }
    }
    // The crate reports needs in the order of a hash map.
    need.sort();
    (messages, have, need)
}

#[test]
fn the_crates_engine_runs_over_trees_and_slices_as_over_its_vector() {
    for seed in 0..24 {
        let mut rng = StdRng::seed_from_u64(seed);
        let times = [1, 30, 100_000][seed as usize % 3];
        let frame_limit_bytes = [0, 4_096, 60_000][rng.random_range(0..3)];
        let mut ours = random_items(&mut rng, 6_000, times);
        let mut theirs = ours.clone();
        ours.truncate(6_000 - rng.random_range(0..1_000));
        theirs.drain(..rng.random_range(0..1_000));
        let expected = sync(&vector(&ours), &vector(&theirs), frame_limit_bytes);
        let our_tree = Tree::from_unsorted(ours);
        let their_tree = Tree::from_unsorted(theirs);
        let found = sync(&stored(our_tree.clone()), &stored(their_tree.clone()), frame_limit_bytes);
        assert!(found == expected, "seed {seed}: trees");

        // A window of the same items, against the vector of that window.
        let (since, until) = (1_000 + times / 4, 1_000 + times / 2);
        let window = |tree: &Tree| {
            let mut items: Vec<Item> = tree.iter_range(0..tree.len()).copied().collect();
            items.retain(|item| (since..=until).contains(&item.created_at));
            vector(&items)
        };
        let expected = sync(&window(&our_tree), &window(&their_tree), frame_limit_bytes);
        let slice = |tree| stored(Slice::new(tree, Some(since), Some(until), None));
        let found = sync(&slice(our_tree), &slice(their_tree), frame_limit_bytes);
        assert!(found == expected, "seed {seed}: slices");
    }
}

#[test]
fn each_storage_call_answers_as_the_crates_vector_does() {
    for seed in 0..50 {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(0..700);
        let items = random_items(&mut rng, count, 40);
        let vector = vector(&items);
        let tree = Tree::from_unsorted(items);
        let slice = stored(Slice::new(tree.clone(), None, None, None));
        let len = tree.len();
        for probe in random_items(&mut rng, 20, 42) {
            let id_len = rng.random_range(0..=32);
            let bound = Bound::with_timestamp_and_id(probe.created_at, &probe.id[..id_len]);
            let bound = bound.unwrap();
            let first = rng.random_range(0..=len);
            let last = rng.random_range(first..=len);
            let end = rng.random_range(0..=len + 2);
            let answers = |storage: &dyn NegentropyStorageBase| {
                let mut seen = Vec::new();
                let result = storage.iterate(first, end, &mut |item, rank| {
                    seen.push((item, rank));
                    Ok(seen.len() < 100)
                });
                let rank = storage.find_lower_bound(first, last, &bound);
                let size = storage.size().unwrap();
                (size, rank, storage.get_item(end).unwrap(), result.is_ok(), seen)
            };
            let expected = answers(&vector);
            assert_eq!(
                answers(&stored(tree.clone())),
                expected,
                "seed {seed}: {first}, {last}, {end}, {bound:?}"
            );
            assert_eq!(answers(&slice), expected, "seed {seed}: {first}, {last}, {end}, {bound:?}");
        }
    }
}

/// The answer of NIP-01 to a filter with these fields, in item order.
fn filtered(
    items: &[Item],
    since: Option<u64>,
    until: Option<u64>,
    limit: Option<usize>,
) -> Vec<Item> {
    let mut kept: Vec<Item> = items
        .iter()
        .filter(|item| since.is_none_or(|since| item.created_at >= since))
        .filter(|item| until.is_none_or(|until| item.created_at <= until))
        .copied()
        .collect();
    kept.sort_by_key(|item| (std::cmp::Reverse(item.created_at), item.id));
    kept.truncate(limit.unwrap_or(usize::MAX));
    kept.sort();
    kept
}

fn sum_of(items: &[Item]) -> Sum {
    items.iter().fold(Sum::ZERO, |mut sum, item| {
        sum.add(&Sum::of(&item.id));
        sum
    })
}

#[test]
fn a_slice_is_what_nip_01_selects() {
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(0..1_200);
        let times = [1, 5, 40, 5_000][seed as usize % 4];
        let mut items = random_items(&mut rng, count, times);
        items.sort();
        items.dedup();
        let tree = Tree::from_sorted(items.iter().copied());
        let mut time = || match rng.random_range(0..10) {
            0 => Some(u64::MAX),
            1 => Some(0),
            2..5 => None,
            _ => Some(999 + rng.random_range(0..times + 2)),
        };
        let (since, until) = (time(), time());
        let limit = match rng.random_range(0..5) {
            0 => None,
            1 => Some(0),
            _ => Some(rng.random_range(0..count + 2)),
        };
        let context = format!("seed {seed}: since {since:?}, until {until:?}, limit {limit:?}");

        let expected = filtered(&items, since, until, limit);
        let slice = Slice::new(tree, since, until, limit);
        assert_eq!(slice.len(), expected.len(), "{context}");
        let past = expected.len() + 2;
        for _ in 0..20 {
            let ranks = rng.random_range(0..past)..rng.random_range(0..past);
            let end = ranks.end.min(expected.len());
            let within = &expected[ranks.start.min(end)..end];
            assert_eq!(slice.sum(ranks.clone()), sum_of(within), "{context}, {ranks:?}");
            let mut visited = Vec::new();
            slice.for_each(ranks.clone(), &mut |item| visited.push(item));
            assert_eq!(visited, within, "{context}, {ranks:?}");
            let rank = ranks.start;
            assert_eq!(slice.item(rank), expected.get(rank).copied(), "{context}, {rank}");
        }
        for probe in items.iter().chain(&random_items(&mut rng, 50, times)) {
            let below = expected.partition_point(|item| item < probe);
            assert_eq!(slice.lower_bound(probe), below, "{context}, {probe:?}");
        }
    }
}

#[test]
fn snapshots_cross_threads() {
    fn crosses<T: Send + Sync + Clone + 'static>() {}
    crosses::<Tree>();
    crosses::<Slice>();

    let mut tree = Tree::from_sorted((0..1_000).map(|time| Item::new(time, [7; 32])));
    let snapshot = Slice::new(tree.clone(), Some(100), None, None);
    let expected = snapshot.sum(0..snapshot.len());
    let reader = std::thread::spawn(move || (snapshot.len(), snapshot.sum(0..snapshot.len())));
    let later: Vec<Item> = (0..1_000).map(|time| Item::new(time, [8; 32])).collect();
    assert_eq!(tree.insert_batch(&later), 1_000);
    assert_eq!(reader.join().unwrap(), (900, expected));
}
