//! One address publishes as many heavy events as possible, another one a note at intervals.

use crate::client::{Client, GOOD, stranger};
use crate::relay::{Relay, UNLIMITED};
use crate::support::{START, report_most};
use crate::{Extent, middle_and_p99, milliseconds};
use nostr::{EventBuilder, JsonUtil, Keys, Kind, Tag, Timestamp};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Tags of a heavy event, as many as the default limits allow: 61 KB.
const TAGS: usize = 5_000;
/// Connections of that one address.
const CONNECTIONS: usize = 16;

pub async fn run(extent: Extent) {
    let stored = extent.pick(1_000_000, 50_000);
    let heavy_mb = extent.pick(60, 12);
    println!("\n{heavy_mb} MB of heavy events from one address, over {stored} events");
    let events = heavy(heavy_mb * 1_000_000 / 61_000);
    for (what, rates) in [("with the default rates", ""), ("without rates", UNLIMITED)] {
        let relay = Relay::start(stored, rates);
        let mut good = Client::connect(GOOD, relay.address).await.unwrap();
        let keys = Keys::generate();
        let alone = publish(&mut good, &keys, extent.pick(200, 50), || true).await;
        let (middle, p99) = middle_and_p99(alone);
        println!(
            "{what}: OK alone, median {:.1} ms, p99 {:.1} ms",
            milliseconds(middle),
            milliseconds(p99)
        );
        let began = Instant::now();
        let mut senders = JoinSet::new();
        for share in events.chunks(events.len().div_ceil(CONNECTIONS)) {
            senders.spawn(bring(stranger(0), relay.address, share.to_vec()));
        }
        let mut accepted = 0;
        let mut longest_log = 0.0;
        let beside = publish(&mut good, &keys, usize::MAX, || {
            longest_log = relay.wal_mb().max(longest_log);
            while let Some(done) = senders.try_join_next() {
                accepted += done.unwrap();
            }
            !senders.is_empty()
        })
        .await;
        let count = beside.len();
        let (middle, p99) = middle_and_p99(beside);
        println!(
            "{what}: {accepted} of {} heavy events were taken in {:.1} s; {count} OKs beside them, \
             median {:.1} ms; log {longest_log:.0} MB; memory {:.0} MB",
            events.len(),
            began.elapsed().as_secs_f64(),
            milliseconds(middle),
            relay.memory_mb()
        );
        report_most(&format!("{what}: OK beside them, p99"), milliseconds(p99), "ms", 200.0);
    }
}

/// Publishes notes one after the other, while `goes_on`; returns the time to each OK.
async fn publish(
    client: &mut Client,
    keys: &Keys,
    most: usize,
    mut goes_on: impl FnMut() -> bool,
) -> Vec<Duration> {
    let mut times = Vec::new();
    while times.len() < most && goes_on() {
        let event = EventBuilder::text_note(times.len().to_string()).sign_with_keys(keys).unwrap();
        let message = format!(r#"["EVENT",{}]"#, event.as_json());
        times.push(client.ask(message, r#"["OK""#).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    times
}

/// Sends events as fast as they are accepted; returns the number accepted.
async fn bring(from: Ipv4Addr, to: SocketAddr, events: Vec<String>) -> usize {
    let mut client = Client::connect(from, to).await.unwrap();
    let (mut sent, mut answered, mut accepted) = (0, 0, 0);
    while answered < events.len() {
        while sent < events.len() && sent < answered + 32 {
            client.send(format!(r#"["EVENT",{}]"#, events[sent])).await.unwrap();
            sent += 1;
        }
        let answer = client.next().await.expect("the relay closed a client");
        answered += usize::from(answer.starts_with(r#"["OK""#));
        accepted += usize::from(answer.contains(",true,"));
    }
    accepted
}

/// Signed events with the maximum number of tags, all different: each needs a separate place in the
/// index.
fn heavy(count: usize) -> Vec<String> {
    let keys = Keys::generate();
    let event = |number: usize| {
        let tag =
            |tag: usize| Tag::parse(["t", &format!("{:04}", (tag * 7_919 + number) % 10_000)]);
        let tags: Vec<Tag> = (0..TAGS).map(|it| tag(it).unwrap()).collect();
        EventBuilder::new(Kind::TextNote, "")
            .tags(tags)
            .allow_self_tagging()
            .custom_created_at(Timestamp::from_secs(START + number as u64))
            .sign_with_keys(&keys)
            .unwrap()
            .as_json()
    };
    (0..count).map(event).collect()
}
