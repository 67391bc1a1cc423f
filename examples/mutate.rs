//! Feeds the fuzz targets mutations of their corpora: `mutate N SEED` runs N negentropy payloads, N
//! client messages, and a tenth as many filters and import files. Prints the number of panics and
//! the growth of resident memory; fails on any panic or on 10 MB.

#[path = "../fuzz/mutation.rs"]
mod mutation;
#[path = "../fuzz/targets/mod.rs"]
mod targets;

use anyhow::{Context, Result, bail};
use mutation::Mutator;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use targets::{TARGETS, Target};

/// Maximum growth of resident memory.
const GROWTH_BYTES: u64 = 10_000_000;
/// Panics after which the run ends.
const MOST_PANICS: u64 = 10;
/// Inputs of a target before the next one has its turn.
const TURN_INPUTS: u64 = 10_000;

static PANICS: AtomicU64 = AtomicU64::new(0);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let inputs: u64 = match arguments.next() {
        Some(number) => number.parse().context("N is no number of inputs")?,
        None => 10_000_000,
    };
    let seed: u64 = match arguments.next() {
        Some(seed) => seed.parse().context("SEED is no number")?,
        None => rand::random(),
    };
    println!("seed {seed}");
    let start = Instant::now();
    let payloads = ["codec", "responder", "initiator", "sessions"];
    let classes: [(&str, &[&str], u64); 4] = [
        ("NEG payloads", &payloads, inputs),
        ("frames", &["client_frames"], inputs),
        ("filters", &["filters"], inputs / 10),
        ("files to import", &["import"], inputs / 10),
    ];
    // Permanent allocations of each target are made in its first turn.
    run_class(&TARGETS.map(|target| target.name), TURN_INPUTS * TARGETS.len() as u64, seed);
    let first_bytes = resident_bytes()?;
    let most_bytes = AtomicU64::new(first_bytes);
    std::thread::scope(|scope| {
        let (first, others) = classes.split_at(1);
        for classes in [first, others] {
            let most_bytes = &most_bytes;
            scope.spawn(move || {
                for (_, names, inputs) in classes {
                    run_class(names, *inputs, seed.wrapping_add(1));
                    most_bytes.fetch_max(resident_bytes().unwrap_or(u64::MAX), Ordering::Relaxed);
                }
            });
        }
    });
    let growth_bytes = most_bytes.into_inner().saturating_sub(first_bytes);
    let panics = PANICS.load(Ordering::Relaxed);
    for (what, names, inputs) in classes {
        println!("{inputs:>10} mutated {what} ({})", names.join(", "));
    }
    println!("{panics:>10} panics");
    println!(
        "{:>10.1} MB more resident memory than {:.1} MB at the start",
        growth_bytes as f64 / 1e6,
        first_bytes as f64 / 1e6
    );
    println!("{:>10.0} s", start.elapsed().as_secs_f64());
    if panics > 0 || growth_bytes >= GROWTH_BYTES {
        bail!("a target panicked, or memory grew by 10 MB or more");
    }
    Ok(())
}

/// Runs targets in turns until they have had this many inputs together.
fn run_class(names: &[&str], inputs: u64, seed: u64) {
    let mut targets: Vec<(Target, Mutator)> = TARGETS
        .into_iter()
        .filter(|target| names.contains(&target.name))
        .map(|target| (target, Mutator::new(target.name, target.is_text, seed)))
        .collect();
    let mut input = Vec::new();
    let mut left = inputs;
    while left > 0 {
        for (target, mutator) in &mut targets {
            let turn = left.min(TURN_INPUTS);
            left -= turn;
            for _ in 0..turn {
                mutator.next(&mut input);
                if run(target, &input).is_err() && PANICS.load(Ordering::Relaxed) >= MOST_PANICS {
                    return;
                }
            }
        }
    }
}

fn run(target: &Target, input: &[u8]) -> std::thread::Result<()> {
    let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    if ended.is_err() {
        PANICS.fetch_add(1, Ordering::Relaxed);
        println!("{} panicked at {}", target.name, faster_hex::hex_string(input));
    }
    ended
}

/// The resident memory of this process.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("needs Linux")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().split(' ').next()).context("no VmRSS")?;
    Ok(kilobytes.parse::<u64>()? * 1_024)
}
