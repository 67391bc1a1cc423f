//! Connections that never finish their handshake, beside clients that do.

use crate::client::{Client, GOOD, stranger, tcp};
use crate::relay::Relay;
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// `connections.handshake_timeout_s`
const TIMEOUT_S: f64 = 10.0;

pub async fn run(extent: Extent) {
    let count = extent.pick(5_000, 500);
    println!("\n{count} half-open handshakes");
    let relay = Relay::start(0, "");
    let mut held = JoinSet::new();
    let mut served = Vec::new();
    for number in 0..count {
        let begun = Instant::now();
        let mut stream = tcp(stranger(number % 1_000), relay.address, None).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nUpgr").await.unwrap();
        held.spawn(async move {
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            begun.elapsed()
        });
        if number % 10 == 0 {
            served.push(new_client(&relay).await);
        }
    }
    let open = relay.descriptors();
    let mut longest = Duration::ZERO;
    while !held.is_empty() {
        tokio::select! {
            Some(closed) = held.join_next() => longest = longest.max(closed.unwrap()),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                served.push(new_client(&relay).await);
            }
        }
    }
    println!("descriptors of the relay while they were there: {open}");
    let worst = served.iter().max().copied().unwrap_or_default();
    let (middle, p99) = middle_and_p99(served);
    println!(
        "a new client served: median {:.2} ms, p99 {:.2} ms",
        milliseconds(middle),
        milliseconds(p99)
    );
    report_most("a new client served, the slowest", milliseconds(worst), "ms", 100.0);
    report_most("the longest was open", longest.as_secs_f64(), "s", TIMEOUT_S + 1.0);
}

/// The time until a new client gets the answer to its first REQ.
async fn new_client(relay: &Relay) -> Duration {
    let start = Instant::now();
    let mut client = Client::connect(GOOD, relay.address).await.unwrap();
    client.ask(r#"["REQ","a",{"limit":0}]"#.to_owned(), r#"["EOSE""#).await;
    start.elapsed()
}
