//! Queries that cost a client one message and the relay as much as its limits allow, beside a
//! client with few requests and one that publishes heavy events.

use crate::client::{Client, GOOD, neg_open, stranger};
use crate::relay::{Relay, UNLIMITED};
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use nostr::{EventBuilder, JsonUtil, Keys, Tag};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Number of costly clients, and of their addresses.
const COSTLY_CLIENTS: usize = 6;
const COSTLY_ADDRESSES: usize = 2;
/// Number of values in both lists of a message together.
const VALUES: usize = 10_000;
/// The tags of a heavy event.
const HEAVY_TAGS: usize = 900;
/// Maximum of the write-ahead log in MB, including the head of each page (see
/// `store/checkpoint.rs`) and the commit that exceeds it.
const WAL_MB: f64 = 2.0 * 65_536.0 * 4_120.0 / 1e6 + 20.0;

pub async fn run(extent: Extent) {
    let stored = extent.pick(1_000_000, 50_000);
    let rounds = extent.pick(500, 50);
    println!("\ncostly queries, over {stored} events");
    let mut relay = Relay::start(stored, UNLIMITED);
    let mut good = Client::connect(GOOD, relay.address).await.unwrap();
    // The first rounds wait for the index.
    asks(&relay, &mut good, 20).await;
    let (before, _) = asks(&relay, &mut good, rounds).await;

    let mut stranger_client = Client::connect(stranger(0), relay.address).await.unwrap();
    let used = relay.cpu();
    stranger_client.send(two_long_lists()).await.unwrap();
    let answer = stranger_client.next().await.unwrap();
    let cpu = (relay.cpu() - used).as_secs_f64();
    println!("one NEG-OPEN with two lists of {VALUES} values: {answer:.40}");
    report_most("its CPU", cpu, "s", 1.0);

    // On separate threads: the measured client waits for the relay only.
    let others = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for number in 0..COSTLY_CLIENTS {
        others.spawn(attack(relay.address, number));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = (relay.cpu(), Instant::now());
    let (beside, _) = asks(&relay, &mut good, rounds).await;
    let share = (relay.cpu() - used.0).as_secs_f64() / used.1.elapsed().as_secs_f64();
    println!("{COSTLY_CLIENTS} costly clients: the relay uses {share:.1} cores");
    for ((what, before), (_, beside)) in before.iter().zip(&beside) {
        let (before, beside) = (show(what, "alone", before), show(what, "beside them", beside));
        let ratio = beside.as_secs_f64() / before.as_secs_f64();
        report_most(&format!("{what}: p99 beside them, of what it was"), ratio, "times", 2.0);
    }
    others.spawn(publish_heavy(relay.address, heavy_events(extent.pick(4_000, 500))));
    let (beside, longest_log) = asks(&relay, &mut good, rounds).await;
    for (what, times) in &beside {
        show(what, "beside heavy events as well", times);
    }
    report_most("the write-ahead log, at most", longest_log, "MB", WAL_MB);
    let took = relay.terminate();
    report_most("SIGTERM while they work, until the process ended", took.as_secs_f64(), "s", 5.0);
    others.shutdown_background();
}

/// Prints the median and the p99 of some times, and returns the p99.
fn show(what: &str, when: &str, times: &[Duration]) -> Duration {
    let (middle, p99) = middle_and_p99(times.to_vec());
    let [middle_ms, p99_ms] = [middle, p99].map(milliseconds);
    println!("{what} {when}: median {middle_ms:.2} ms, p99 {p99_ms:.2} ms");
    p99
}

/// The requests, and the time of each answer.
type Times = [(&'static str, Vec<Duration>); 3];

/// The times of repeated REQs, COUNTs and NEG-OPENs, and the maximum length of the write-ahead log
/// meanwhile, in MB.
async fn asks(relay: &Relay, client: &mut Client, count: usize) -> (Times, f64) {
    let mut longest_log = 0.0_f64;
    let mut times = [("REQ", Vec::new()), ("COUNT", Vec::new()), ("NEG-OPEN", Vec::new())];
    for _ in 0..count {
        let [(_, req), (_, counts), (_, neg)] = &mut times;
        let query = r#"["REQ","q",{"kinds":[9735],"limit":100}]"#.to_owned();
        req.push(client.ask(query, r#"["EOSE""#).await);
        let query = r#"["COUNT","c",{"kinds":[7]}]"#.to_owned();
        counts.push(client.ask(query, r#"["COUNT""#).await);
        neg.push(client.ask(neg_open("n", "{}"), r#"["NEG-MSG""#).await);
        client.send(r#"["NEG-CLOSE","n"]"#.to_owned()).await.unwrap();
        longest_log = longest_log.max(relay.wal_mb());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (times, longest_log)
}

/// Each event has a value of the first list as a tag, and none has one of the second.
fn two_long_lists() -> String {
    let authors: Vec<String> = (0..2_000).map(author).collect();
    let others: Vec<String> = (0..VALUES - 2_000).map(|number| format!("\"{number}\"")).collect();
    let filter = format!(r##"{{"#p":[{}],"#k":[{}]}}"##, authors.join(","), others.join(","));
    neg_open("x", &filter)
}

fn author(number: usize) -> String {
    format!("\"{number:064x}\"")
}

/// Sends queries that have to search half of all events, eight in one message.
async fn attack(to: SocketAddr, number: usize) {
    let from = stranger(number % COSTLY_ADDRESSES);
    let Ok(mut client) = Client::connect(from, to).await else { return };
    let half: Vec<String> = (0..1_000).map(author).collect();
    let half = half.join(",");
    for round in 0.. {
        // A different one each time, so that no set of it is cached.
        let filter = |part: usize, limit: &str| {
            let kind = 10 + (round * 97 + number * 31 + part) % 50_000;
            format!(r##"{{"authors":[{half}],"#p":[{half}],"kinds":[1,7,{kind}]{limit}}}"##)
        };
        let text = match (round + number) % 3 {
            0 => neg_open("a", &filter(0, "")),
            1 => format!(r#"["COUNT","a",{}]"#, filter(0, "")),
            _ => {
                let filters: Vec<String> =
                    (0..8).map(|part| filter(part, r#","limit":500"#)).collect();
                format!(r#"["REQ","a",{}]"#, filters.join(","))
            }
        };
        if client.send(text).await.is_err() {
            return;
        }
        loop {
            match client.next().await {
                Some(answer) if answer.starts_with(r#"["EVENT""#) => {}
                Some(_) => break,
                None => return,
            }
        }
    }
}

/// Messages with events of many tags, signed in advance.
fn heavy_events(count: usize) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(9);
    let keys = Keys::generate();
    (0..count)
        .map(|_| {
            let tags = (0..HEAVY_TAGS).map(|_| {
                let value = faster_hex::hex_string(&rng.random::<[u8; 32]>());
                Tag::parse(["e", &value]).unwrap()
            });
            let event = EventBuilder::text_note("heavy").tags(tags).sign_with_keys(&keys).unwrap();
            format!(r#"["EVENT",{}]"#, event.as_json())
        })
        .collect()
}

/// Publishes them as fast as they are accepted.
async fn publish_heavy(to: SocketAddr, events: Vec<String>) {
    let mut client = Client::connect(stranger(500), to).await.unwrap();
    for event in events {
        if client.send(event).await.is_err() || client.next().await.is_none() {
            return;
        }
    }
}
