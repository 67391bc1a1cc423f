//! What a session costs the responder: ours over the tree beside the `negentropy`
//! crate over its own vector, which answer the very same messages in the same
//! run; and ours at ten million items beside one million.
//!
//! `cargo bench --bench engine`. Exits non-zero when a required ratio is missed.

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use negsync::index::Tree;
use negsync::item::Item;
use negsync::reconcile::{Found, Initiator, Options, RangeSet, Responder, SortedItems, Step};
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, RngExt, SeedableRng};
use std::time::{Duration, Instant};

/// Both sides' frames, in bytes.
const FRAME_LIMIT_BYTES: usize = 60_000;

/// The best of this many runs counts.
const RUNS: usize = 5;

fn items(rng: &mut StdRng, count: usize) -> Vec<Item> {
    let mut items: Vec<Item> = (0..count)
        .map(|_| {
            let mut id = [0; 32];
            rng.fill_bytes(&mut id);
            Item::new(1_650_000_000 + rng.random_range(0..100_000_000), id)
        })
        .collect();
    items.sort_unstable();
    items
}

/// The messages of a session in which `ours` lacks some of `theirs`, with the
/// time that our responder took over each; the best of several runs.
fn ours<S: RangeSet>(
    ours: &Tree,
    theirs: &S,
    options: &Options,
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Duration) {
    let mut best = Duration::MAX;
    let (mut questions, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        questions.clear();
        answers.clear();
        let mut initiator = Initiator::new(ours, options.clone()).unwrap();
        let mut responder = Responder::new(theirs, FRAME_LIMIT_BYTES).unwrap();
        let mut found = Found::new();
        let mut spent = Duration::ZERO;
        let mut message = initiator.open();
        loop {
            let started = Instant::now();
            let answer = responder.answer(&message).unwrap();
            spent += started.elapsed();
            questions.push(message);
            let step = initiator.receive(&answer, &mut found).unwrap();
            answers.push(answer);
            match step {
                Step::Send(next) => message = next,
                Step::Done => break,
            }
        }
        found.need.sort_unstable();
        found.need.dedup();
        assert_eq!(found.need.len(), theirs.len() - ours.len());
        best = best.min(spent);
    }
    (questions, answers, best)
}

/// The crate's time over the same messages, whose answers must be the same.
fn of_the_crate(
    theirs: &NegentropyStorageVector,
    questions: &[Vec<u8>],
    answers: &[Vec<u8>],
) -> Duration {
    let runs = (0..RUNS).map(|_| {
        let mut responder = Negentropy::borrowed(theirs, FRAME_LIMIT_BYTES as u64).unwrap();
        let mut spent = Duration::ZERO;
        for (question, answer) in questions.iter().zip(answers) {
            let started = Instant::now();
            let theirs = responder.reconcile(question).unwrap();
            spent += started.elapsed();
            assert!(theirs == *answer, "not the crate's answer");
        }
        spent
    });
    runs.min().unwrap()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn main() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut all_ok = true;
    let mut verdict = |ratio: f64, most: f64| {
        let ok = ratio <= most;
        all_ok &= ok;
        if ok { "ok" } else { "MISSED" }
    };
    let mut at_a_million = Vec::new();

    for (count, name) in [(1_000_000, "1M"), (10_000_000, "10M")] {
        let all = items(&mut rng, count);
        let theirs = Tree::from_sorted(all.iter().copied());
        let mut vector = NegentropyStorageVector::new();
        if count == 1_000_000 {
            for item in &all {
                vector.insert(item.created_at, Id::from_byte_array(item.id)).unwrap();
            }
        }
        vector.seal().unwrap();
        let sorted_items: SortedItems = all.iter().copied().collect();
        let mut row = 0;
        for missing in [100, 10_000] {
            let lost: Vec<Item> =
                sample(&mut rng, count, missing).into_iter().map(|rank| all[rank]).collect();
            let mut initiator_set = theirs.clone();
            initiator_set.remove_batch(&lost);
            for (rule, options) in [
                ("reference", Options::reference(FRAME_LIMIT_BYTES)),
                (
                    "adaptive",
                    Options { frame_limit_bytes: FRAME_LIMIT_BYTES, ..Options::default() },
                ),
            ] {
                let (questions, answers, spent) = ours(&initiator_set, &theirs, &options);
                let what = format!("{name}, {missing} missing, {rule} initiator");
                let messages = questions.len();
                let (_, _, sorted_spent) = ours(&initiator_set, &sorted_items, &options);
                println!("   sorted {:.3}", ms(sorted_spent));
                if count == 1_000_000 {
                    let baseline = of_the_crate(&vector, &questions, &answers);
                    let ratio = spent.as_secs_f64() / baseline.as_secs_f64();
                    println!(
                        "{what:<42} {messages:>4} messages  ours {:>9.3} ms  crate {:>9.3} ms  ratio {ratio:.4}, at most 0.1: {}",
                        ms(spent),
                        ms(baseline),
                        verdict(ratio, 0.1),
                    );
                    at_a_million.push(spent);
                } else {
                    let ratio = spent.as_secs_f64() / at_a_million[row].as_secs_f64();
                    println!(
                        "{what:<42} {messages:>4} messages  ours {:>9.3} ms  at 1M {:>9.3} ms  ratio {ratio:.4}, at most 1.5: {}",
                        ms(spent),
                        ms(at_a_million[row]),
                        verdict(ratio, 1.5),
                    );
                    row += 1;
                }
            }
        }
    }
    if !all_ok {
        std::process::exit(1);
    }
}
