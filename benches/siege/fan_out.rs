//! The cost of a live event, depending on the number of connections and filters that it does not
//! match.

use crate::client::{Client, GOOD, stranger};
use crate::relay::{Relay, UNLIMITED};
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use nostr::{EventBuilder, JsonUtil, Keys, Kind, Tag};
use std::time::Duration;

/// Idle connections of one address.
const PER_ADDRESS: usize = 50;
/// Tags of the heavy event.
const TAGS: usize = 5_000;
/// The maximum of a connection.
const SUBSCRIPTIONS: usize = 64;
const FILTERS: usize = 32;

pub async fn run(extent: Extent) {
    let idle = extent.pick(4_000, 400);
    println!("\na live event beside {idle} idle connections, and beside filters that it meets");
    // Pings would be counted as events.
    let configuration = format!("{UNLIMITED}[connections]\nin_all = 10000\nping_interval_s = 0\n");
    let relay = Relay::start(0, &configuration);
    let mut good = Client::connect(GOOD, relay.address).await.unwrap();
    let count = extent.pick(300, 100);
    // The first ones find cold caches.
    publish(&relay, &mut good, count, 0).await;
    let (alone, _) = publish(&relay, &mut good, count, 0).await;
    let mut connections = Vec::new();
    for number in 0..idle {
        let from = stranger(number / PER_ADDRESS);
        connections.push(Client::connect(from, relay.address).await.unwrap());
    }
    let (beside, _) = publish(&relay, &mut good, count, 0).await;
    println!("CPU an event: alone {alone:.3} ms, beside {idle} connections {beside:.3} ms");
    report_most("CPU of an event beside idle connections", beside / alone, "times", 1.5);
    drop(connections);

    let count = extent.pick(20, 5);
    let (alone, _) = publish(&relay, &mut good, count, TAGS).await;
    let mut subscribers = Vec::new();
    for number in 0..5 {
        let mut client = Client::connect(stranger(number), relay.address).await.unwrap();
        for subscription in 0..SUBSCRIPTIONS {
            let filter = |filter: usize| {
                // Met by its first tags, but not matched.
                let at = (subscription * FILTERS + filter) * 2 % TAGS;
                format!(r##"{{"#t":["{at:05}","{:05}"],"#p":["a","b","c"]}}"##, at + 1)
            };
            let filters: Vec<String> = (0..FILTERS).map(filter).collect();
            let request = format!(r#"["REQ","{subscription}",{}]"#, filters.join(","));
            client.ask(request, r#"["EOSE""#).await;
        }
        subscribers.push(client);
    }
    let (beside, times) = publish(&relay, &mut good, count, TAGS).await;
    let filters = subscribers.len() * SUBSCRIPTIONS * FILTERS;
    println!("CPU an event of {TAGS} tags: alone {alone:.1} ms, beside filters {beside:.1} ms");
    report_most(&format!("CPU that {filters} filters add to it"), beside - alone, "ms", 20.0);
    let (middle, p99) = middle_and_p99(times);
    println!("OK for another client meanwhile: median {:.1} ms", milliseconds(middle));
    report_most("OK for another client meanwhile, p99", milliseconds(p99), "ms", 100.0);
}

/// Publishes events one by one. Returns the relay's CPU time for each in ms, and the time to the OK
/// of another client's light event sent directly after each.
async fn publish(
    relay: &Relay,
    client: &mut Client,
    count: usize,
    tags: usize,
) -> (f64, Vec<Duration>) {
    let author = Keys::generate();
    let mut other = Client::connect(stranger(900), relay.address).await.unwrap();
    let event = |number: usize, tags: usize| {
        let tags = (0..tags).map(|tag| Tag::parse(["t", &format!("{tag:05}")]).unwrap());
        let event = EventBuilder::new(Kind::from_u16(1), format!("event {number}"));
        let event = event.tags(tags).sign_with_keys(&author).unwrap();
        format!(r#"["EVENT",{}]"#, event.as_json())
    };
    let heavy: Vec<String> = (0..count).map(|number| event(number, tags)).collect();
    let light: Vec<String> = (0..count).map(|number| event(count + number, 0)).collect();
    let (before, mut times) = (relay.cpu_ms(), Vec::new());
    for (heavy, light) in heavy.into_iter().zip(light) {
        if tags == 0 {
            client.ask(heavy, r#"["OK""#).await;
            continue;
        }
        let (_, time) = tokio::join!(client.ask(heavy, r#"["OK""#), other.ask(light, r#"["OK""#));
        times.push(time);
    }
    // Includes the work of dispatching after the last OK.
    tokio::time::sleep(Duration::from_millis(300)).await;
    ((relay.cpu_ms() - before) / count as f64, times)
}
