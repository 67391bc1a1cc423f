//! Compares negsync with strfry, workload by workload, in one interleaved run:
//! `scripts/beside-strfry STRFRY`.
//!
//! Both relays have the same generated events. Each workload runs on one and then on the other,
//! round after round; the median counts. Answers are checked against the events: a relay that is
//! fast and wrong ends the run. `--second-negsync` uses a second negsync instead of strfry, to test
//! this program itself.

mod client;
mod contender;
#[path = "../support/mod.rs"]
mod support;
mod work;
mod world;

use contender::{Contender, Program};
use std::path::PathBuf;
use work::Measured;
use world::World;

/// One row of the table.
struct Row {
    what: String,
    // Of the other relay and of negsync, one for each round.
    measured: [Vec<Measured>; 2],
}

fn main() {
    let mut other = None;
    let (mut events, mut rounds) = (1_000_000, 3);
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} needs a value"));
        match arg.as_str() {
            "--strfry" => other = Some(Program::Strfry(PathBuf::from(value()))),
            "--second-negsync" => other = Some(Program::Negsync),
            "--events" => events = value().parse().expect("--events takes a number"),
            "--rounds" => rounds = value().parse().expect("--rounds takes a number"),
            other => panic!("unknown argument {other}"),
        }
    }
    let Some(other) = other else {
        eprintln!("SKIPPED: no strfry; give one with --strfry PATH. Nothing was measured.");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(other, events, rounds));
}

async fn run(other: Program, events: usize, rounds: usize) {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(events);
    let lines = folder.path().join("events.jsonl");
    world.write(&lines);
    let names = [other.name(), "negsync"];
    let mut contenders =
        [other, Program::Negsync].into_iter().enumerate().map(|(number, program)| {
            Contender::filled(program, &folder.path().join(number.to_string()), &lines)
        });
    let mut contenders = [contenders.next().unwrap(), contenders.next().unwrap()];
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..rounds {
        for (row, work) in work::all(&world).into_iter().enumerate() {
            for (place, contender) in contenders.iter_mut().enumerate() {
                let measured = work.measure(contender, &world, round as u64).await;
                if rows.len() == row {
                    let what = work.name().to_owned();
                    rows.push(Row { what, measured: [Vec::new(), Vec::new()] });
                }
                rows[row].measured[place].push(measured);
            }
        }
    }
    print(&names, &rows, events, rounds);
}

/// The table in Markdown.
fn print([other, ours]: &[&str; 2], rows: &[Row], events: usize, rounds: usize) {
    println!("{events} events, {rounds} rounds, medians. Every answer was checked.\n");
    println!("| work | {other} | {ours} | {ours} / {other} | CPU: {other} | CPU: {ours} |");
    println!("|---|---|---|---|---|---|");
    for row in rows {
        let [theirs, ours] = row.measured.each_ref().map(|all| median(all, |it| it.figure));
        let [their_cpu, our_cpu] =
            row.measured.each_ref().map(|all| median(all, |it| it.cpu.as_secs_f64()));
        let unit = row.measured[0].first().map_or("", |it| it.unit);
        let ratio = ours / theirs;
        println!(
            "| {} | {theirs:.2} {unit} | {ours:.2} {unit} | {ratio:.2} | {their_cpu:.2} s | {our_cpu:.2} s |",
            row.what
        );
    }
}

fn median(all: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    let mut figures: Vec<f64> = all.iter().map(of).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
