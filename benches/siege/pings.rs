//! Clients that send pings as fast as they are accepted and read no pongs, beside a client that
//! reads.

use crate::client::{Client, GOOD, stranger};
use crate::relay::{Relay, UNLIMITED};
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

const CLIENTS: usize = 10;
/// The longest payload of a ping (RFC 6455, section 5.5).
const PING_BYTES: usize = 125;

pub async fn run(extent: Extent) {
    let seconds = extent.pick(60, 10);
    println!("\n{CLIENTS} clients that send pings for {seconds} s and never read");
    // Without rates, only the bounds protect others.
    for (what, rates) in [("with the default rates", ""), ("without rates", UNLIMITED)] {
        let relay = Relay::start(0, rates);
        let mut good = Client::connect(GOOD, relay.address).await.unwrap();
        good.ask(r#"["REQ","q",{"limit":1}]"#.to_owned(), r#"["EOSE""#).await;
        let (before, begun) = (relay.memory_mb(), Instant::now());
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            clients.spawn(ping(stranger(number), relay.address));
        }
        let (mut most, mut times) = (before, Vec::new());
        while begun.elapsed() < Duration::from_secs(seconds) {
            times.push(good.ask(r#"["REQ","q",{"limit":1}]"#.to_owned(), r#"["EOSE""#).await);
            most = most.max(relay.memory_mb());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        clients.abort_all();
        let (middle, p99) = middle_and_p99(times);
        println!(
            "{what}: a REQ beside them, median {:.2} ms, p99 {:.2} ms",
            milliseconds(middle),
            milliseconds(p99)
        );
        report_most(&format!("{what}: memory more than before"), most - before, "MB", 64.0);
    }
}

async fn ping(from: Ipv4Addr, to: SocketAddr) {
    let Ok(client) = Client::connect_small(from, to).await else { return };
    let mut stream = client.into_stream();
    let mut frame = vec![0x89, 0x80 | PING_BYTES as u8, 0, 0, 0, 0];
    frame.extend([b'x'; PING_BYTES]);
    let frames = frame.repeat(500);
    // Until the relay has closed.
    while stream.write_all(&frames).await.is_ok() {}
    std::future::pending().await
}
