//! The cost of a session for the responder: our engine over the tree, beside the `negentropy` crate
//! over its own vector, with identical messages in one run; and ten million items beside one
//! million. "Our questions" compares the answers to our initiator's questions with the crate's
//! answers to them, and with a complete session of the crate.
//!
//! `cargo bench --bench engine`. All are measured in turn, round after round, each a few times in a
//! row. For each message the shortest time counts, which removes the noise of other work on the
//! machine.

use negentropy::{Id, Negentropy, NegentropyStorageBase, NegentropyStorageVector};
use negsync::index::Tree;
use negsync::item::Item;
use negsync::reconcile::message::Decoder;
use negsync::reconcile::{
    Difference, Initiator, InitiatorOptions, InitiatorStep, RangeSet, Responder, Rule,
};
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, RngExt, SeedableRng};
use std::time::{Duration, Instant};

/// Frame limit of both sides, in bytes.
const FRAME_LIMIT_BYTES: usize = 60_000;

/// Rounds in which all are measured in turn.
const ROUNDS: usize = 5;

/// Repetitions of each in a round.
const REPEATS: usize = 3;

/// Maximum time as a fraction of the crate's.
const MOST_OF_THE_CRATE: f64 = 0.1;

/// Maximum time for ten million items as a multiple of that for one million.
const MOST_OF_A_MILLION: f64 = 1.5;

fn main() {
    let mut rng = StdRng::seed_from_u64(1);
    let million = items(&mut rng, 1_000_000);
    let crate_set = of_the_crate(&million);
    let mut sessions = Vec::new();
    let sets = [million, items(&mut rng, 10_000_000)].map(|all| {
        let tree = Tree::from_sorted(all.iter().copied());
        for missing in [100, 10_000] {
            let lost: Vec<Item> =
                sample(&mut rng, all.len(), missing).into_iter().map(|rank| all[rank]).collect();
            let mut initiator_set = tree.clone();
            initiator_set.remove_batch(&lost);
            for rule in [Rule::Reference, Rule::Adaptive] {
                sessions.push(Session::record(&initiator_set, &tree, missing, rule));
            }
        }
        tree
    });
    for _ in 0..ROUNDS {
        for session in &mut sessions {
            let set = sets.iter().find(|set| set.len() == session.items).unwrap();
            for _ in 0..REPEATS {
                let mut ours = Responder::new(set, FRAME_LIMIT_BYTES).unwrap();
                session.ours.run(&session.exchanges, |question| ours.answer(question).unwrap());
            }
            if session.items == crate_set.size().unwrap() {
                for _ in 0..REPEATS {
                    let limit = FRAME_LIMIT_BYTES as u64;
                    let mut theirs = Negentropy::borrowed(&crate_set, limit).unwrap();
                    let answer = |question: &[u8]| theirs.reconcile(question).unwrap();
                    session.of_the_crate.run(&session.exchanges, answer);
                }
            }
        }
    }
    report(&sessions);
}

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

fn of_the_crate(items: &[Item]) -> NegentropyStorageVector {
    let mut set = NegentropyStorageVector::with_capacity(items.len());
    for item in items {
        set.insert(item.created_at, Id::from_byte_array(item.id)).unwrap();
    }
    set.seal().unwrap();
    set
}

/// A question and its answer.
type Exchange = (Vec<u8>, Vec<u8>);

/// One session and its cost for the responder.
struct Session {
    items: usize,
    missing: usize,
    rule: Rule,
    exchanges: Vec<Exchange>,
    ours: Times,
    of_the_crate: Times,
}

impl Session {
    /// Records the questions of `ours`, which lacks `missing` items of `theirs`, and the answers.
    fn record(ours: &Tree, theirs: &Tree, missing: usize, rule: Rule) -> Self {
        let options = InitiatorOptions::default().rule(rule).frame_limit_bytes(FRAME_LIMIT_BYTES);
        let mut initiator = Initiator::new(ours, options).unwrap();
        let mut responder = Responder::new(theirs, FRAME_LIMIT_BYTES).unwrap();
        let mut found = Difference::new();
        let mut exchanges = Vec::new();
        let mut question = initiator.open();
        loop {
            let answer = responder.answer(&question).unwrap();
            let step = initiator.receive(&answer, &mut found).unwrap();
            exchanges.push((question, answer));
            match step {
                InitiatorStep::Send(next) => question = next,
                InitiatorStep::Done => break,
            }
        }
        found.need.sort_unstable();
        found.need.dedup();
        assert_eq!(found.need.len(), missing);
        let (ours, of_the_crate) = (Times::default(), Times::default());
        Self { items: theirs.len(), missing, rule, exchanges, ours, of_the_crate }
    }

    /// The number of ranges in the questions and the answers.
    fn ranges(&self) -> usize {
        let messages = self.exchanges.iter().flat_map(|(question, answer)| [question, answer]);
        messages.map(|message| Decoder::new(message).unwrap().count()).sum()
    }

    fn what(&self) -> String {
        let rule = match self.rule {
            Rule::Reference => "the reference's",
            Rule::Adaptive => "our",
            Rule::Exact => "exact",
        };
        let [millions, messages] = [self.items / 1_000_000, self.exchanges.len()];
        format!("{millions}M, {} missing, {rule} questions ({messages})", self.missing)
    }
}

/// The shortest time of each message of a session.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn run(&mut self, exchanges: &[Exchange], mut answer: impl FnMut(&[u8]) -> Vec<u8>) {
        self.0.resize(exchanges.len(), Duration::MAX);
        for (time, (question, expected)) in self.0.iter_mut().zip(exchanges) {
            let started = Instant::now();
            let answer = answer(question);
            *time = started.elapsed().min(*time);
            assert!(answer == *expected, "not the same answer");
        }
    }

    fn ms(&self) -> f64 {
        self.0.iter().sum::<Duration>().as_secs_f64() * 1e3
    }
}

fn report(sessions: &[Session]) {
    println!("{:<76} {:>9}     {:>9}", "responder CPU", "ours", "beside");
    let (million, ten_million) = sessions.split_at(sessions.len() / 2);
    let mut of_the_crate = 0.0;
    for session in million {
        let (ours, base) = (session.ours.ms(), session.of_the_crate.ms());
        line(&format!("{}, the crate", session.what()), ours, base, MOST_OF_THE_CRATE);
        match session.rule {
            Rule::Reference => of_the_crate = base,
            Rule::Adaptive | Rule::Exact => {
                let what = format!("{}, the crate's whole session", session.what());
                line(&what, ours, of_the_crate, MOST_OF_THE_CRATE);
            }
        }
    }
    for (session, small) in ten_million.iter().zip(million) {
        let (ours, base) = (session.ours.ms(), small.ours.ms());
        line(&format!("{}, 1M", session.what()), ours, base, MOST_OF_A_MILLION);
        // More items take more splits, so the cost of each part of the work is compared.
        let [each, small_each] = [(ours, session), (base, small)]
            .map(|(ms, session)| ms * 1e6 / session.ranges() as f64);
        println!(
            "{:<76} {each:>9.0} ns  {small_each:>9.0} ns  ratio {:.3} ({} ranges, {})",
            "    by the range",
            each / small_each,
            session.ranges(),
            small.ranges(),
        );
    }
}

fn line(what: &str, ours: f64, base: f64, most: f64) {
    let ratio = ours / base;
    let verdict = if ratio <= most { "ok" } else { "MISSED" };
    println!(
        "{what:<76} {ours:>9.3} ms  {base:>9.3} ms  ratio {ratio:.3}, at most {most}: {verdict}"
    );
}
