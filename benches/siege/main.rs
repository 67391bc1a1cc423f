//! Abusive clients of a relay: each part prints the resources they got, and the effect on a
//! well-behaved client. The relay is a process of its own with the default configuration, except
//! where a part says otherwise.
//!
//! `cargo bench --bench siege -- PART... [--short] [--minutes N]`; the parts are listed below.

mod backup;
mod client;
mod costly;
mod fan_out;
mod half_open;
mod hostile;
mod mixed;
mod pings;
mod relay;
mod silent;
mod small;
#[path = "../support/mod.rs"]
mod support;
mod unfinished;
mod writer;

use std::time::Duration;

/// The extent of a siege.
#[derive(Clone, Copy)]
struct Extent {
    short: bool,
    minutes: u64,
}

impl Extent {
    /// One number for a full siege, another for a short one.
    fn pick<T>(self, whole: T, short: T) -> T {
        if self.short { short } else { whole }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let minutes = arguments.iter().skip_while(|it| *it != "--minutes").nth(1);
    let extent = Extent {
        short: arguments.iter().any(|it| it == "--short"),
        minutes: minutes.map_or(60, |text| text.parse().expect("minutes, a whole number")),
    };
    let is_asked = |part: &str| arguments.iter().any(|it| it == part);
    let parts = [
        "half-open",
        "silent",
        "hostile",
        "costly",
        "writer",
        "fan-out",
        "unfinished",
        "pings",
        "backup",
        "small",
        "mixed",
    ];
    let all = !parts.iter().any(|part| is_asked(part));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        if all || is_asked("half-open") {
            half_open::run(extent).await;
        }
        if all || is_asked("silent") {
            silent::run(extent).await;
        }
        if all || is_asked("hostile") {
            hostile::run(extent).await;
        }
        if all || is_asked("costly") {
            costly::run(extent).await;
        }
        if all || is_asked("writer") {
            writer::run(extent).await;
        }
        if all || is_asked("fan-out") {
            fan_out::run(extent).await;
        }
        if all || is_asked("unfinished") {
            unfinished::run(extent).await;
        }
        if all || is_asked("pings") {
            pings::run(extent).await;
        }
        if all || is_asked("backup") {
            backup::run(extent).await;
        }
        // Needs the limit that `scripts/small-machine` sets.
        if is_asked("small") {
            small::run(extent).await;
        }
        // Takes an hour: runs only on request.
        if is_asked("mixed") {
            mixed::run(extent).await;
        }
    });
}

/// The median and the p99 of some times.
fn middle_and_p99(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    (at(50), at(99))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
