//! The exact rule lists everything: it finds differences that colliding fingerprints hide.

use crate::adaptive::{any_options, session};
use crate::scripted::{Closing, Scripted};
use crate::support::{Case, Ids, crate_engine, crate_set, for_seeds, random_item, sorted};
use negsync_reconcile::item::Item;
use negsync_reconcile::message::{Decoder, Payload};
use negsync_reconcile::{
    Difference, Initiator, InitiatorOptions, InitiatorStep, RangeSet, Responder, Rule, SortedItems,
    Sum,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

fn exact_options(rng: &mut StdRng, case: &Case) -> InitiatorOptions {
    any_options(rng, case).rule(Rule::Exact)
}

/// Runs a session whose questions contain only lists, and compares the result.
fn assert_exact(case: &Case, options: &InitiatorOptions, mut answer: impl FnMut(&[u8]) -> Vec<u8>) {
    let found = session(case, options, |question| {
        let mut ranges = Decoder::new(question).unwrap().map(Result::unwrap);
        assert!(ranges.all(|range| !matches!(range.payload, Payload::Fingerprint(_))));
        answer(question)
    });
    let found = found.unwrap();
    assert!(sorted(&found.have) == case.have, "have, {options:?}");
    assert!(sorted(&found.need) == case.need, "need, {options:?}");
}

#[test]
fn no_question_holds_a_fingerprint_and_nothing_is_missed() {
    for_seeds(0..1500, |rng| {
        let most_items = if rng.random_bool(0.05) { 12_000 } else { 700 };
        let case = Case::any(rng, most_items);
        let options = exact_options(rng, &case);
        let limit = if rng.random_bool(0.2) { 0 } else { rng.random_range(4096..20_000) };
        let theirs = crate_set(case.theirs.items());
        let mut responder = crate_engine(&theirs, limit);
        assert_exact(&case, &options, |question| responder.reconcile(question).unwrap());
    });
}

/// A closing fingerprint may be false or true: neither settles anything.
#[test]
fn a_frame_that_is_closed_as_if_the_rest_were_equal_is_not_believed() {
    for_seeds(2000..2600, |rng| {
        let case = Case::any(rng, 3000);
        let options = exact_options(rng, &case);
        let mut responder = Scripted::new(&case.theirs, rng.random_range(4096..9000));
        responder.closing = Closing::LooksEqual(&case.ours);
        assert_exact(&case, &options, |question| responder.answer(question));
    });
}

#[test]
fn a_list_of_all_costs_32_bytes_an_id() {
    const ITEMS: usize = 100_000;
    let mut rng = StdRng::seed_from_u64(70);
    let all: BTreeSet<Item> =
        (0..ITEMS).map(|_| random_item(&mut rng, 1000, 1_000_000, Ids::Random)).collect();
    let case = Case::new(all.clone(), all);
    let options = InitiatorOptions::default().rule(Rule::Exact);
    let mut responder = Responder::new(&case.theirs, 500_000).unwrap();
    let (mut up, mut down, mut rounds) = (0, 0, 0);
    assert_exact(&case, &options, |question| {
        let answer = responder.answer(question).unwrap();
        (up, down, rounds) = (up + question.len(), down + answer.len(), rounds + 1);
        assert!(answer.len() <= 500_000);
        answer
    });
    assert!(up < 2_000 && down < ITEMS * 33 && rounds <= 10, "{up} up, {down} down, {rounds}");
}

/// A set whose fingerprints use only three bytes of each id, so that collisions can be found.
struct NarrowSums(SortedItems);

impl RangeSet for NarrowSums {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn item(&self, rank: usize) -> Option<Item> {
        self.0.item(rank)
    }

    fn lower_bound(&self, item: &Item) -> usize {
        self.0.lower_bound(item)
    }

    fn sum_below(&self, rank: usize) -> Sum {
        let mut sum = Sum::ZERO;
        for item in self.0.items().iter().take(rank) {
            let mut narrow = [0; 32];
            narrow[..8].copy_from_slice(&added(item).to_le_bytes());
            sum.add(&Sum::of(&narrow));
        }
        sum
    }

    fn for_each(&self, ranks: Range<usize>, visit: &mut dyn FnMut(Item)) {
        self.0.for_each(ranks, visit);
    }
}

/// The contribution of an item to a narrow sum.
fn added(item: &Item) -> u64 {
    u64::from_le_bytes([item.id[29], item.id[30], item.id[31], 0, 0, 0, 0, 0])
}

/// Two pairs of items of one second with the same narrow sum, as an attacker would find them.
fn colliding_pairs(rng: &mut StdRng) -> [[Item; 2]; 2] {
    let mut pairs: HashMap<u64, [Item; 2]> = HashMap::new();
    loop {
        let [one, other] = [0, 1].map(|_| {
            let mut id = [0; 32];
            rng.fill_bytes(&mut id);
            Item::new(500_000, id)
        });
        match pairs.insert(added(&one) + added(&other), [one, other]) {
            Some(earlier) => return [earlier, [one, other]],
            None => assert!(pairs.len() < 1 << 20),
        }
    }
}

fn difference(ours: &NarrowSums, theirs: &NarrowSums, options: &InitiatorOptions) -> Difference {
    let mut initiator = Initiator::new(ours, options.clone()).unwrap();
    let mut responder = Responder::new(theirs, 60_000).unwrap();
    let mut found = Difference::new();
    let mut question = initiator.open();
    loop {
        match initiator.receive(&responder.answer(&question).unwrap(), &mut found).unwrap() {
            InitiatorStep::Send(next) => question = next,
            InitiatorStep::Done => return found,
        }
    }
}

#[test]
fn a_real_collision_is_seen_by_lists_and_by_other_bounds() {
    let mut rng = StdRng::seed_from_u64(71);
    let shared: Vec<Item> =
        (0..3000).map(|_| random_item(&mut rng, 0, 1_000_000, Ids::Random)).collect();
    // Within one bucket of the usual opening; other bounds may separate them.
    let crowd = (0..40).map(|_| random_item(&mut rng, 500_000, 1, Ids::Random));
    let shared: Vec<Item> = shared.into_iter().chain(crowd).collect();
    let pairs = colliding_pairs(&mut rng);
    let [ours, theirs] = pairs
        .map(|pair| NarrowSums(SortedItems::new(shared.iter().chain(&pair).copied().collect())));
    let [have, need] = pairs.map(|pair| sorted(pair.map(|item| item.id)));

    let usual = InitiatorOptions::default();
    let reference = InitiatorOptions::reference(60_000);
    assert!(difference(&ours, &theirs, &usual).is_empty(), "the test tests nothing");
    assert!(difference(&ours, &theirs, &reference).is_empty(), "the test tests nothing");

    let exact = InitiatorOptions::default().rule(Rule::Exact);
    let found = difference(&ours, &theirs, &exact);
    assert_eq!((sorted(found.have), sorted(found.need)), (have, need));

    let seen = (0..50).filter(|seed| {
        let options = InitiatorOptions::default().bounds_seed(*seed);
        !difference(&ours, &theirs, &options).is_empty()
    });
    let seen = seen.count();
    assert!(seen > 0, "no other bounds part them");
    println!("{seen} of 50 sessions with bounds of their own saw the collision");
}
