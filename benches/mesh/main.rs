//! A simulator with hundreds of relays as values. Each has the real index, and negsync's sync
//! machine for each of its peers. They pass events on over links with latency, loss and
//! interruptions. It prints the time from the last write until the relays are equal, the cost, and
//! the effect of a tenth of hostile relays. Time is simulated; the same seed gives the same figures
//! everywhere.
//!
//! `cargo bench --bench mesh -- [--short] [--relays N] [--seed N]`

mod asker;
mod event;
mod network;
mod relay;
mod served;
mod topology;

use network::{Network, Outcome};
use topology::Topology;

/// Relays of each run.
const RELAYS: [usize; 4] = [10, 100, 300, 1_000];
/// One relay in this many is hostile in the second run.
const HOSTILE_ONE_IN: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str| {
        let text = arguments.iter().skip_while(|it| *it != flag).nth(1)?;
        Some(text.parse::<usize>().unwrap_or_else(|_| panic!("{flag} takes a whole number")))
    };
    let short = arguments.iter().any(|it| it == "--short");
    let seed = number("--seed").unwrap_or(1) as u64;
    let relays = match number("--relays") {
        Some(relays) => vec![relays],
        None if short => vec![10, 40],
        None => RELAYS.to_vec(),
    };
    println!("seed {seed}; {} events, {} a second", network::EVENTS, network::EVENTS_PER_S);
    println!(
        "{:<14} {:>6} {:>6}  {:>8} {:>8}  {:>9} {:>9}   one in {HOSTILE_ONE_IN} hostile: {:>8} {:>8} {:>8}",
        "", "", "", "half", "all", "bytes", "redundant", "in one", "half", "all"
    );
    println!(
        "{:<14} {:>6} {:>6}  {:>8} {:>8}  {:>9} {:>9}                      {:>8} {:>8} {:>8}",
        "topology",
        "relays",
        "links",
        "after",
        "after",
        "an event",
        "transfers",
        "group",
        "after",
        "after"
    );
    for topology in Topology::ALL {
        for &relays in &relays {
            let links = topology.links(relays, seed);
            let honest = Network::new(relays, &links, 0, seed).run();
            let hostile = Network::new(relays, &links, relays / HOSTILE_ONE_IN, seed).run();
            println!(
                "{:<14} {relays:>6} {:>6}  {:>8} {:>8}  {:>9.0} {:>9.2}                      {:>7.0}% {:>8} {:>8}",
                topology.name(),
                links.len(),
                seconds(honest.half_s),
                seconds(honest.all_s),
                honest.bytes_per_delivery(),
                honest.redundant_per_delivery(),
                100.0 * hostile.connected as f64 / hostile.honest as f64,
                seconds(hostile.half_s),
                seconds(hostile.all_s),
            );
            for outcome in [&honest, &hostile] {
                assert_sound(topology, relays, outcome);
            }
        }
    }
    println!(
        "\nafter: seconds from the last write until half of the relays, and all, hold every event; bytes \
         and redundant\ntransfers are those of one event at one relay. With hostile relays: which part of \
         the honest ones is still\nconnected by honest ones (the largest group), and when these are equal"
    );
}

/// Relays connected by honest ones must end equal; anything else is a fault of the sync. An honest
/// relay without honest peers cannot get the events it lacks.
fn assert_sound(topology: Topology, relays: usize, outcome: &Outcome) {
    if outcome.connected == 1 {
        return;
    }
    assert_eq!(outcome.equal, outcome.connected, "{}, {relays} relays", topology.name());
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.2} s"))
}
