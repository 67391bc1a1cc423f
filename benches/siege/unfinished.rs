//! Clients that begin long messages and never end them, with pings that keep them connected.

use crate::client::{Client, GOOD, metric, stranger};
use crate::relay::Relay;
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 240;
/// The maximum of one address.
const PER_ADDRESS: usize = 60;
/// `limits.message_bytes`
const MESSAGE_BYTES: usize = 4 << 20;
const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];

pub async fn run(extent: Extent) {
    let timeout_s = extent.pick(30, 5);
    println!("\n{CONNECTIONS} messages that are begun and not ended");
    let configuration = format!("[connections]\nmessage_timeout_s = {timeout_s}\n");
    let relay = Relay::start(0, &configuration);
    let mut good = Client::connect(GOOD, relay.address).await.unwrap();
    good.ask(r#"["REQ","q",{"limit":1}]"#.to_owned(), r#"["EOSE""#).await;
    let before = relay.memory_mb();
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..CONNECTIONS {
        clients.spawn(begin(stranger(number / PER_ADDRESS), relay.address, number % 2 == 0));
    }
    let (mut most, mut times) = (before, Vec::new());
    // A message that waited for room gets its own timeout after that.
    let bound = Duration::from_secs(2 * timeout_s + 10);
    loop {
        times.push(good.ask(r#"["REQ","q",{"limit":1}]"#.to_owned(), r#"["EOSE""#).await);
        most = most.max(relay.memory_mb());
        let open = metric(relay.address, "negsync_connections").await;
        if open <= 1.0 && begun.elapsed() > Duration::from_secs(1) || begun.elapsed() > bound {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left = metric(relay.address, "negsync_connections").await - 1.0;
    println!("all closed after {:.0} s", begun.elapsed().as_secs_f64());
    let (middle, p99) = middle_and_p99(times);
    println!(
        "a REQ beside them: median {:.2} ms, p99 {:.2} ms",
        milliseconds(middle),
        milliseconds(p99)
    );
    report_most("memory more than before, the most", most - before, "MB", 64.0);
    // The allocator returns free memory in steps, over ten seconds.
    tokio::time::sleep(Duration::from_secs(15)).await;
    report_most("memory more than before, afterwards", relay.memory_mb() - before, "MB", 16.0);
    report_most("still connected", left, "clients", 0.0);
}

/// Sends all of a message but its last byte, whole or in fragments, and then pings.
async fn begin(from: Ipv4Addr, to: SocketAddr, is_whole: bool) {
    let Ok(client) = Client::connect(from, to).await else { return };
    let mut stream = client.into_stream();
    let payload = vec![b' '; if is_whole { MESSAGE_BYTES } else { 64 << 10 }];
    let mut first = if is_whole { 0x81 } else { 0x01 };
    for _ in 0..MESSAGE_BYTES / payload.len() {
        let mut frame = vec![first, 0xff];
        frame.extend((payload.len() as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(&payload);
        if is_whole {
            frame.pop();
        }
        first = 0;
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
    while is_whole || stream.write_all(&PING).await.is_ok() {
        if is_whole && stream.readable().await.is_ok() && is_closed(&stream) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn is_closed(stream: &tokio::net::TcpStream) -> bool {
    let mut buffer = [0; 4_096];
    match stream.try_read(&mut buffer) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}
