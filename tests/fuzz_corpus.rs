//! The fuzz targets without a fuzzer: all committed inputs, and some mutations of them.

#[path = "../fuzz/mutation.rs"]
mod mutation;
#[path = "../fuzz/targets/mod.rs"]
mod targets;

use mutation::{Mutator, corpus};
use std::panic::{AssertUnwindSafe, catch_unwind};
use targets::TARGETS;

/// Number of mutated inputs for each target; `scripts/mutate` runs millions.
const MUTATED_INPUTS: usize = 1_500;
/// Maximum length of an input, because the corpora are committed.
const INPUT_BYTES: usize = 8 << 10;

#[test]
fn every_committed_input_passes() {
    for target in TARGETS {
        for (path, input) in corpus(target.name) {
            assert!(input.len() <= INPUT_BYTES, "{path} is too long to be committed");
            catch_unwind(|| (target.run)(&input))
                .unwrap_or_else(|_| panic!("{path} breaks the target {}", target.name));
        }
    }
}

#[test]
fn mutated_inputs_pass() {
    let seed = rand::random();
    println!("seed {seed}");
    for target in TARGETS {
        let mut mutator = Mutator::new(target.name, target.is_text, seed);
        let mut input = Vec::new();
        for _ in 0..MUTATED_INPUTS {
            mutator.next(&mut input);
            catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).unwrap_or_else(|_| {
                panic!("{} is broken by {}", target.name, faster_hex::hex_string(&input))
            });
        }
    }
}
