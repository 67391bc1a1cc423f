//! Round trips and bytes of complete sessions over a million items: our initiator with 60,000-byte
//! frames against the crate's responder with 500,000, and against ours with messages of 4 MiB.
//! Bytes are negentropy messages in both directions before hex encoding. Exits non-zero if a figure
//! is missed or a result is not exact.
//!
//! `cargo bench --bench round_trips [-- <seed>]`

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use negsync::item::Item;
use negsync::reconcile::{
    Difference, Initiator, InitiatorOptions, InitiatorStep, Responder, SortedItems,
};
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::HashSet;
use std::time::Instant;

const ITEMS: usize = 1_000_000;

/// The distribution of the times in a set.
#[derive(Clone, Copy, Debug)]
enum Times {
    /// Over three years.
    Even,
    /// Four in five within bursts of an hour.
    Bursts,
}

struct Case {
    name: &'static str,
    missing: usize,
    extra: usize,
    newest: bool,
    sync_mark: bool,
    /// Whether our responder answers, with messages of 4 MiB, instead of the crate's with 500,000
    /// bytes.
    wide: bool,
    most_round_trips: usize,
    most_bytes: usize,
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "1 missing", missing: 1, extra: 0, newest: false, sync_mark: false, wide: false, most_round_trips: 2, most_bytes: 4_000 },
    Case { name: "1,000 newest, sync_mark", missing: 1_000, extra: 0, newest: true, sync_mark: true, wide: false, most_round_trips: 1, most_bytes: 34_000 },
    Case { name: "1,000 newest", missing: 1_000, extra: 0, newest: true, sync_mark: false, wide: false, most_round_trips: 2, most_bytes: 38_000 },
    Case { name: "1,000 scattered", missing: 1_000, extra: 0, newest: false, sync_mark: false, wide: false, most_round_trips: 4, most_bytes: 1_050_000 },
    Case { name: "1,000 and 1,000 extra", missing: 1_000, extra: 1_000, newest: false, sync_mark: false, wide: false, most_round_trips: 5, most_bytes: 1_900_000 },
    Case { name: "10,000 scattered", missing: 10_000, extra: 0, newest: false, sync_mark: false, wide: false, most_round_trips: 16, most_bytes: 7_200_000 },
    Case { name: "10,000 scattered, 4 MiB", missing: 10_000, extra: 0, newest: false, sync_mark: false, wide: true, most_round_trips: 7, most_bytes: usize::MAX },
    Case { name: "100,000 scattered", missing: 100_000, extra: 0, newest: false, sync_mark: false, wide: false, most_round_trips: 66, most_bytes: 33_000_000 },
    Case { name: "100,000 scattered, 4 MiB", missing: 100_000, extra: 0, newest: false, sync_mark: false, wide: true, most_round_trips: 20, most_bytes: usize::MAX },
    Case { name: "identical", missing: 0, extra: 0, newest: false, sync_mark: false, wide: false, most_round_trips: 1, most_bytes: 2_000 },
];

fn items(rng: &mut StdRng, count: usize, times: Times) -> Vec<Item> {
    const START: u64 = 1_650_000_000;
    const SPAN: u64 = 3 * 365 * 86_400;
    let bursts: Vec<u64> = (0..400).map(|_| START + rng.random_range(0..SPAN)).collect();
    let mut items: Vec<Item> = (0..count)
        .map(|_| {
            let created_at = match times {
                Times::Bursts if rng.random_bool(0.8) => {
                    bursts[rng.random_range(0..bursts.len())] + rng.random_range(0..3600)
                }
                _ => START + rng.random_range(0..SPAN),
            };
            let mut id = [0; 32];
            rng.fill_bytes(&mut id);
            Item::new(created_at, id)
        })
        .collect();
    items.sort_unstable();
    items
}

/// A 4 MiB message holds half as many bytes before hex encoding, minus the JSON.
const WIDE_BYTES: usize = (4 << 20) / 2 - 1024;

fn run(case: &Case, full: &[Item], rng: &mut StdRng, times: Times) -> bool {
    let missing: HashSet<usize> = if case.newest {
        (full.len() - case.missing..full.len()).collect()
    } else {
        sample(rng, full.len(), case.missing).into_iter().collect()
    };
    let extra = items(rng, case.extra, times);
    let kept = full.iter().enumerate().filter(|(index, _)| !missing.contains(index));
    let ours: SortedItems = kept.map(|(_, item)| *item).chain(extra.iter().copied()).collect();
    let sync_mark = full[full.len() - case.missing.max(1)].created_at;
    let options = InitiatorOptions::default()
        .frame_limit_bytes(if case.wide { WIDE_BYTES } else { 60_000 })
        .reply_limit_bytes(case.wide.then_some(WIDE_BYTES))
        .sync_mark(case.sync_mark.then_some(sync_mark));
    let mut initiator = Initiator::new(&ours, options).unwrap();

    let mut theirs = NegentropyStorageVector::with_capacity(if case.wide { 0 } else { ITEMS });
    if !case.wide {
        full.iter()
            .for_each(|item| theirs.insert(item.created_at, Id::from_byte_array(item.id)).unwrap());
    }
    theirs.seal().unwrap();
    let mut crate_responder = Negentropy::borrowed(&theirs, 500_000).unwrap();
    let wide_set = if case.wide { SortedItems::new(full.to_vec()) } else { SortedItems::default() };
    let mut wide_responder = Responder::new(&wide_set, WIDE_BYTES).unwrap();

    let mut found = Difference::new();
    let (mut up, mut down, mut round_trips) = (0, 0, 0);
    let started = Instant::now();
    let mut message = initiator.open();
    loop {
        round_trips += 1;
        up += message.len();
        let answer = if case.wide {
            wide_responder.answer(&message).unwrap()
        } else {
            crate_responder.reconcile(&message).unwrap()
        };
        down += answer.len();
        if std::env::var_os("ROUNDS").is_some() {
            println!("    round {round_trips}: up {}, down {}", message.len(), answer.len());
        }
        match initiator.receive(&answer, &mut found).unwrap() {
            InitiatorStep::Send(next) => message = next,
            InitiatorStep::Done => break,
        }
    }
    let elapsed_ms = started.elapsed().as_millis();
    let need: HashSet<[u8; 32]> = missing.iter().map(|index| full[*index].id).collect();
    let have: HashSet<[u8; 32]> = extra.iter().map(|item| item.id).collect();
    let exact = found.need.len() == need.len()
        && found.have.len() == have.len()
        && found.need.iter().all(|id| need.contains(id))
        && found.have.iter().all(|id| have.contains(id));
    let most = match case.most_bytes {
        usize::MAX => "any".to_owned(),
        bytes => bytes.to_string(),
    };
    let ok = exact && round_trips <= case.most_round_trips && up + down <= case.most_bytes;
    println!(
        "{:<26} {:>6} {:>4} {:>9} {:>10} {:>10}   {:>4} {:>10}   {:>6} ms  {}",
        case.name,
        format!("{times:?}"),
        round_trips,
        up,
        down,
        up + down,
        case.most_round_trips,
        most,
        elapsed_ms,
        if ok {
            "ok"
        } else if exact {
            "MISSED"
        } else {
            "WRONG SETS"
        },
    );
    ok
}

fn main() {
    let seed = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1);
    println!("seed {seed}, {ITEMS} items");
    println!(
        "{:<26} {:>6} {:>4} {:>9} {:>10} {:>10}   {:>4} {:>10}",
        "case", "times", "rt", "up", "down", "bytes", "most", "bytes"
    );
    let mut all_ok = true;
    for times in [Times::Even, Times::Bursts] {
        let mut rng = StdRng::seed_from_u64(seed);
        let full = items(&mut rng, ITEMS, times);
        for case in CASES {
            all_ok &= run(case, &full, &mut rng, times);
        }
    }
    if !all_ok {
        std::process::exit(1);
    }
}
