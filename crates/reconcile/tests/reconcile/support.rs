//! Sets with known differences, and the crate's engine with our types.

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use negsync_reconcile::SortedItems;
use negsync_reconcile::item::Item;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

/// The crate's set with the same items.
pub fn crate_set(items: &[Item]) -> NegentropyStorageVector {
    let mut set = NegentropyStorageVector::with_capacity(items.len());
    for item in items {
        set.insert(item.created_at, Id::from_byte_array(item.id)).unwrap();
    }
    set.seal().unwrap();
    set
}

/// The crate's engine over `set`.
pub fn crate_engine(
    set: &NegentropyStorageVector,
    frame_limit_bytes: usize,
) -> Negentropy<'_, NegentropyStorageVector> {
    Negentropy::borrowed(set, frame_limit_bytes as u64).unwrap()
}

/// `ids` of the crate as ours, sorted.
pub fn sorted(ids: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<[u8; 32]> {
    let mut ids: Vec<[u8; 32]> =
        ids.into_iter().map(|id| id.as_ref().try_into().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// `ids` sorted and without duplicates: the reference finds some ids twice after a cut frame.
pub fn distinct(ids: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<[u8; 32]> {
    let mut ids = sorted(ids);
    ids.dedup();
    ids
}

/// The form of a case's ids.
#[derive(Clone, Copy, Debug)]
pub enum Ids {
    Random,
    /// Sharing up to 31 bytes of prefix.
    SharedPrefix,
}

/// Two sets and their differences.
#[derive(Clone, Debug)]
pub struct Case {
    pub ours: SortedItems,
    pub theirs: SortedItems,
    pub have: Vec<[u8; 32]>,
    pub need: Vec<[u8; 32]>,
}

impl Case {
    pub fn new(ours: BTreeSet<Item>, theirs: BTreeSet<Item>) -> Self {
        let have = sorted(ours.difference(&theirs).map(|item| item.id));
        let need = sorted(theirs.difference(&ours).map(|item| item.id));
        Self { ours: ours.into_iter().collect(), theirs: theirs.into_iter().collect(), have, need }
    }

    /// A small case of any form: clustered or scattered differences, equal times, shared prefixes,
    /// one side or both empty.
    pub fn any(rng: &mut StdRng, most_items: usize) -> Self {
        let scale = [0, 3, 40, 300, most_items][rng.random_range(0..5)];
        let count = rng.random_range(0..=scale.min(most_items));
        let times = [1, 5, 100, 1_000_000][rng.random_range(0..4)];
        let ids = if rng.random_bool(0.3) { Ids::SharedPrefix } else { Ids::Random };
        let all: Vec<Item> = (0..count)
            .map(|_| random_item(rng, 1_700_000_000, times, ids))
            // An id is the hash of an event, including its time.
            .map(|item| (item.id, item))
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let (mut ours, mut theirs) = (BTreeSet::new(), BTreeSet::new());
        let shape = rng.random_range(0..6);
        let odds = [0.0, 0.01, 0.1, 0.5][rng.random_range(0..4)];
        let gap_start = rng.random_range(0..=all.len());
        let gap = gap_start..rng.random_range(gap_start..=all.len());
        for (index, item) in all.into_iter().enumerate() {
            let (we, they) = match shape {
                // Scattered, on both sides.
                0 | 1 => match (rng.random_bool(odds), rng.random_bool(0.5)) {
                    (false, _) => (true, true),
                    (true, side) => (side, !side),
                },
                // Clustered: a gap in one side, scattered elsewhere.
                2 => (!gap.contains(&index), true),
                3 => (true, !gap.contains(&index) && !rng.random_bool(odds)),
                // One side empty.
                4 => (false, true),
                _ => (true, false),
            };
            if we {
                ours.insert(item);
            }
            if they {
                theirs.insert(item);
            }
        }
        Self::new(ours, theirs)
    }
}

/// One that holds many items of its own and one that holds few, after the
/// frame cut of nostrdevkit/negentropy issue 15: an initiator that fills its
/// frame where it holds nothing, a responder that fills its own while it splits
/// what was left. Met with frames of 4096 and 4767 bytes.
pub fn frame_cut_sets() -> (BTreeSet<Item>, BTreeSet<Item>) {
    let mut number = 0u64;
    let mut item = |created_at: u64| {
        number += 1;
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_le_bytes());
        Item::new(created_at, id)
    };
    let shared: Vec<Item> = (0..1500)
        .map(|i| 1000 + i * 10)
        .chain((0..40).map(|i| 15_900 + i * 2))
        .map(&mut item)
        .collect();
    let few: Vec<Item> = (0..15).map(|i| 1005 + i * 1000).chain([15_999]).map(&mut item).collect();
    let many: Vec<Item> = (0..70)
        .map(|i| 1201 + i / 35 * 1000 + i % 35 % 8)
        .chain((0..110).map(|i| 50_000 + i * 10))
        .map(&mut item)
        .collect();
    let with = |extra: &[Item]| shared.iter().chain(extra).copied().collect();
    (with(&many), with(&few))
}

/// An item made in one of `times` seconds from `start` on.
pub fn random_item(rng: &mut StdRng, start: u64, times: u64, ids: Ids) -> Item {
    let mut id = [0; 32];
    match ids {
        Ids::Random => rng.fill_bytes(&mut id),
        Ids::SharedPrefix => {
            let shared = rng.random_range(0..32);
            rng.fill_bytes(&mut id[shared..]);
            // Few values, so that neighbours share what they can.
            id[shared..].iter_mut().for_each(|byte| *byte &= 1);
        }
    }
    Item::new(start + rng.random_range(0..times), id)
}

/// Names a seed when what is done with it fails.
pub struct Named(pub u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failing seed: {}", self.0);
        }
    }
}

/// Runs `property` for each seed, naming the one that fails.
pub fn for_seeds(seeds: std::ops::Range<u64>, property: impl Fn(&mut StdRng)) {
    for seed in seeds {
        let _named = Named(seed);
        property(&mut StdRng::seed_from_u64(seed));
    }
}
