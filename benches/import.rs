//! Verified import through the command line, compared with verification alone of the same events on
//! all cores, in turns.

mod support;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{bare_verification, parse, rate, report, signed_events};

const EVENTS: usize = 100_000;
const ROUNDS: usize = 3;

fn main() {
    let lines = signed_events(EVENTS, 1);
    let events = parse(&lines);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.jsonl");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    lines.iter().for_each(|line| writeln!(out, "{line}").unwrap());
    out.flush().unwrap();
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bare.push(bare_verification(&events));
        let store = dir.path().join(format!("{round}.sqlite"));
        let start = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_negsync"))
            .arg("import")
            .arg(&file)
            .arg("--store")
            .arg(&store)
            .output()
            .unwrap();
        ours.push(start.elapsed());
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.starts_with(&format!("{EVENTS} stored")), "{said}");
    }
    let (bare, ours) = (median(bare), median(ours));
    report("verified import", rate(EVENTS, ours), rate(EVENTS, bare), "events/s", 0.7);
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
