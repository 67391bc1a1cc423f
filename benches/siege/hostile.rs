//! A client that sends what costs it little and the relay much, beside one that reconciles.

use crate::client::{Client, GOOD, neg_open, stranger};
use crate::relay::{Relay, UNLIMITED};
use crate::support::{START, report_most};
use crate::{Extent, middle_and_p99, milliseconds};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::task::JoinSet;

/// The maximum of an address.
const CONNECTIONS: usize = 100;
/// Number of requested NEG sessions.
const SESSIONS: usize = 2_000;

pub async fn run(extent: Extent) {
    let stored = extent.pick(1_000_000, 50_000);
    println!("\na hostile client, over {stored} events");
    // With rates most of its requests are refused; without, only the fair queues protect others.
    for (what, rates) in [("with the default rates", ""), ("without rates", UNLIMITED)] {
        let relay = Relay::start(stored, rates);
        let mut good = Client::connect(GOOD, relay.address).await.unwrap();
        let rounds = extent.pick(1_000, 100);
        // The first one waits for the index.
        opens(&mut good, 20, Duration::ZERO).await;
        let (middle, p99) = middle_and_p99(opens(&mut good, rounds, Duration::ZERO).await);
        println!(
            "{what}: alone, median {:.2} ms, p99 {:.2} ms",
            milliseconds(middle),
            milliseconds(p99)
        );
        let mut hostile = JoinSet::new();
        for number in 0..CONNECTIONS {
            hostile.spawn(attack(relay.address, number, stored as u64));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let pause = Duration::from_millis(extent.pick(20, 2));
        let (middle, p99) = middle_and_p99(opens(&mut good, rounds, pause).await);
        hostile.abort_all();
        println!("{what}: beside it, median {:.2} ms", milliseconds(middle));
        let what = format!("{what}: NEG-OPEN beside it, p99");
        report_most(&what, milliseconds(p99), "ms", 20.0);
        println!("memory: {:.0} MB", relay.memory_mb());
    }
}

async fn opens(client: &mut Client, count: usize, pause: Duration) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..count {
        times.push(client.ask(neg_open("n", "{}"), r#"["NEG-MSG""#).await);
        tokio::time::sleep(pause).await;
    }
    times
}

/// One of the hostile client's connections: opens its share of sessions, then sends costly
/// messages.
async fn attack(to: SocketAddr, number: usize, stored: u64) {
    let Ok(mut client) = Client::connect(stranger(0), to).await else { return };
    for session in 0..SESSIONS / CONNECTIONS {
        if client.send(neg_open(&session.to_string(), "{}")).await.is_err() {
            return;
        }
        client.next().await;
    }
    let message = match number % 4 {
        // Many empty ranges: each is looked up and compared.
        0 => neg_msg(&empty_ranges(100_000)),
        // Short ranges that ask for sixteen fingerprints each.
        1 => neg_msg(&small_ranges(190, stored)),
        // The shortest message with the longest answer.
        2 => neg_msg("6100000200"),
        // A set that is not kept has to be read from the store.
        _ => String::new(),
    };
    for round in 0.. {
        let text = match message.as_str() {
            "" => {
                let kinds = format!(r#"{{"kinds":[1,7,{}]}}"#, 10 + (round * 31 + number) % 50_000);
                neg_open("0", &kinds)
            }
            text => text.to_owned(),
        };
        if client.send(text).await.is_err() {
            return;
        }
        match client.next().await {
            // An ended session is opened again.
            Some(answer) if answer.starts_with(r#"["NEG-ERR""#) => {
                if client.send(neg_open("0", "{}")).await.is_err() || client.next().await.is_none()
                {
                    return;
                }
            }
            Some(_) => {}
            None => return,
        }
    }
}

fn neg_msg(hex: &str) -> String {
    format!(r#"["NEG-MSG","0","{hex}"]"#)
}

/// Fingerprint ranges that all end where they begin: one byte of time, one of length, one of mode.
fn empty_ranges(count: usize) -> String {
    let range = format!("010001{}", "00".repeat(16));
    format!("61{}", range.repeat(count))
}

/// Fingerprint ranges that divide the stored events among them, each with a wrong fingerprint.
fn small_ranges(count: u64, stored: u64) -> String {
    let mut message = "61".to_owned();
    let mut last = 0;
    for number in 0..count {
        let bound = START + stored * number / count;
        message += &format!("{}0001{}", varint(bound - last + 1), "00".repeat(16));
        last = bound;
    }
    message
}

fn varint(value: u64) -> String {
    let digits = (64 - value.leading_zeros()).div_ceil(7).max(1);
    let digit = |place: u32| {
        let more = if place == 0 { 0 } else { 0x80 };
        format!("{:02x}", (value >> (7 * place)) & 0x7f | more)
    };
    (0..digits).rev().map(digit).collect()
}
