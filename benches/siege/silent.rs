//! Clients with large requests that read nothing, beside a client that reads.

use crate::client::{Client, GOOD, metric, neg_open, stranger};
use crate::relay::{Relay, UNLIMITED};
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use std::time::{Duration, Instant};

/// The maximum of one address.
const CONNECTIONS: usize = 50;
/// Rounds between two measurements of the relay.
const ROUNDS: usize = 20;

pub async fn run(extent: Extent) {
    let (count, stored) = (extent.pick(1_000, 50), extent.pick(200_000, 20_000));
    let timeout_s = extent.pick(60, 3);
    println!("\n{count} clients that never read, over {stored} events");
    // The reading client asks as fast as it is answered; rates would refuse it.
    let configuration = format!("{UNLIMITED}[limits]\nsend_timeout_s = {timeout_s}\n");
    let relay = Relay::start(stored, &configuration);
    let mut good = Client::connect(GOOD, relay.address).await.unwrap();
    rounds(&mut good, extent.pick(300, 30)).await;
    let before = relay.memory_mb();
    // Measured in the same way as later: the first answer after a measurement takes longest.
    let mut times = Vec::new();
    // Long enough to include occasional other work of the machine.
    for _ in 0..extent.pick(5_000, 5) {
        times.append(&mut rounds(&mut good, ROUNDS).await);
        relay.memory_mb();
        metric(relay.address, "negsync_connections").await;
    }
    let (middle, alone) = middle_and_p99(times);
    println!("alone: median {:.2} ms, p99 {:.2} ms", milliseconds(middle), milliseconds(alone));

    let address = relay.address;
    let begun = Instant::now();
    let silent = tokio::spawn(async move {
        let mut clients = Vec::new();
        for number in 0..count {
            clients.push(silent_client(stranger(number / CONNECTIONS), address).await);
        }
        // A client that does not read cannot see the close: the relay's metrics show it.
        clients
    });
    let (mut times, mut memory, mut most) = (Vec::new(), before, 0.0_f64);
    let bound = Duration::from_secs(timeout_s * 3 + 60);
    let mut clients = None;
    let mut silent = Some(silent);
    loop {
        times.append(&mut rounds(&mut good, ROUNDS).await);
        memory = memory.max(relay.memory_mb());
        if let Some(ready) = silent.take_if(|task| task.is_finished()) {
            clients = Some(ready.await.unwrap());
        }
        let open = metric(relay.address, "negsync_connections").await;
        most = most.max(open);
        if (clients.is_some() && open <= 1.0) || begun.elapsed() > bound {
            break;
        }
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let left = metric(relay.address, "negsync_connections").await - 1.0;
    println!("at most {most:.0} were connected; memory went from {before:.0} to {memory:.0} MB");
    report_most("still connected at the end", left, "clients", 0.0);
    report_most("all closed after", elapsed, "s", (timeout_s * 2) as f64 + 20.0);
    let (middle, p99) = middle_and_p99(times);
    println!("beside them: median {:.2} ms, p99 {:.2} ms", milliseconds(middle), milliseconds(p99));
    let ratio = p99.as_secs_f64() / alone.as_secs_f64();
    report_most("p99 of the client that reads, beside what it was", ratio, "times", 1.2);
}

/// Repeats a REQ, and a NEG-OPEN with its NEG-CLOSE.
async fn rounds(client: &mut Client, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        let query = r#"["REQ","q",{"kinds":[1],"limit":100}]"#.to_owned();
        times.push(client.ask(query, r#"["EOSE""#).await);
        times.push(client.ask(neg_open("n", "{}"), r#"["NEG-MSG""#).await);
        client.send(r#"["NEG-CLOSE","n"]"#.to_owned()).await.unwrap();
    }
    times
}

/// Asks for everything, many times.
async fn silent_client(from: std::net::Ipv4Addr, to: std::net::SocketAddr) -> Client {
    let mut client = Client::connect_small(from, to).await.unwrap();
    for number in 0..20 {
        // Fails once the relay has closed.
        let _ = client.send(format!(r#"["REQ","{number}",{{}}]"#)).await;
        let list = format!(r#"["NEG-OPEN","{number}",{{}},"6100000200"]"#);
        let _ = client.send(list).await;
    }
    client
}
