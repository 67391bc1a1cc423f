//! What a session costs the responder: ours over the tree beside the `negentropy`
//! crate over its own vector, which answer the very same messages in the same
//! run; and what each range costs at ten million items beside one million.
//! "Our questions" stand beside the crate's answers to the same questions, and
//! beside a session of the crate's own from end to end.
//!
//! `cargo bench --bench engine`. Exits non-zero when a required ratio is missed.

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use negsync::index::Tree;
use negsync::item::Item;
use negsync::reconcile::message::Decoder;
use negsync::reconcile::{Found, Initiator, Options, RangeSet, Responder, Rule, Step};
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

/// How many ranges they hold.
fn ranges(messages: &[Vec<u8>]) -> usize {
    messages.iter().map(|message| Decoder::new(message).unwrap().count()).sum()
}

/// What one session came to.
struct Session {
    spent: Duration,
    ranges: usize,
}

impl Session {
    fn ns_a_range(&self) -> f64 {
        self.spent.as_secs_f64() * 1e9 / self.ranges as f64
    }
}

/// Prints a ratio beside the most that it may be.
struct Verdicts {
    all_ok: bool,
}

impl Verdicts {
    fn say(&mut self, what: &str, ours: Duration, base: Duration, ratio: f64, most: f64) {
        let ok = ratio <= most;
        self.all_ok &= ok;
        println!(
            "{what:<64} {:>9.3} ms  {:>9.3} ms  ratio {ratio:.3}, at most {most}: {}",
            ms(ours),
            ms(base),
            if ok { "ok" } else { "MISSED" },
        );
    }
}

const RULES: [(&str, Rule); 2] =
    [("the reference's questions", Rule::Reference), ("our questions", Rule::Adaptive)];

fn main() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut verdicts = Verdicts { all_ok: true };
    let mut at_a_million: Vec<Session> = Vec::new();
    println!("{:<64} {:>12}  {:>12}", "responder CPU", "ours", "beside");
    for (count, name) in [(1_000_000, "1M"), (10_000_000, "10M")] {
        let all = items(&mut rng, count);
        let theirs = Tree::from_sorted(all.iter().copied());
        let mut earlier = std::mem::take(&mut at_a_million).into_iter();
        for missing in [100, 10_000] {
            let lost: Vec<Item> =
                sample(&mut rng, count, missing).into_iter().map(|rank| all[rank]).collect();
            let mut initiator_set = theirs.clone();
            initiator_set.remove_batch(&lost);
            let mut reference_of_the_crate = None;
            for (rule_name, rule) in RULES {
                let options =
                    Options { rule, frame_limit_bytes: FRAME_LIMIT_BYTES, ..Options::default() };
                let (questions, answers, spent) = ours(&initiator_set, &theirs, &options);
                let session = Session { spent, ranges: ranges(&questions) + ranges(&answers) };
                let what = format!("{name}, {missing} missing, {rule_name} ({})", questions.len());
                if let Some(earlier) = earlier.next() {
                    // The same work: more items take more splits, each of which
                    // should cost the same.
                    let ratio = session.ns_a_range() / earlier.ns_a_range();
                    verdicts.say(
                        &format!("{what}, by the range, beside 1M"),
                        session.spent,
                        earlier.spent,
                        ratio,
                        1.5,
                    );
                    continue;
                }
                let crate_set = crate_set(&all);
                let base = of_the_crate(&crate_set, &questions, &answers);
                let ratio = spent.as_secs_f64() / base.as_secs_f64();
                verdicts.say(&format!("{what}, beside the crate"), spent, base, ratio, 0.1);
                let whole = *reference_of_the_crate.get_or_insert(base);
                if rule == Rule::Adaptive {
                    let ratio = spent.as_secs_f64() / whole.as_secs_f64();
                    let what = format!("{what}, beside the crate's session");
                    verdicts.say(&what, spent, whole, ratio, 0.1);
                }
                at_a_million.push(session);
            }
        }
    }
    if !verdicts.all_ok {
        std::process::exit(1);
    }
}

fn crate_set(items: &[Item]) -> NegentropyStorageVector {
    let mut set = NegentropyStorageVector::with_capacity(items.len());
    for item in items {
        set.insert(item.created_at, Id::from_byte_array(item.id)).unwrap();
    }
    set.seal().unwrap();
    set
}
