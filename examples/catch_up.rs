//! A client that was away updates its own store, and shows the progress.
//!
//! `cargo run --example catch_up -- wss://relay.example.com '{"kinds":[1],"limit":500}'`; without
//! arguments it starts a relay of its own to catch up with.

use negsync::config::Config;
use negsync::index::Index;
use negsync::relay::Relay;
use negsync::store::{Event, StoreOptions};
use negsync::sync::{Direction, Local, Options, PeerFilter, Progress, sync};
use std::error::Error;

/// Three signed notes.
const EVENTS: &str = include_str!("three-events.jsonl");

#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut arguments = std::env::args().skip(1);
    let (url, filter, relay) = match arguments.next().filter(|text| text.contains("://")) {
        Some(url) => (url, arguments.next(), None),
        None => {
            let relay = start_relay(&folder.path().join("relay.sqlite")).await?;
            (format!("ws://{}", relay.address()), None, Some(relay))
        }
    };
    let filter = PeerFilter::parse(filter.as_deref().unwrap_or("{}"))?;

    let store = folder.path().join("client.sqlite");
    let index = Index::open(&store, StoreOptions::default(), 0)?;
    let local = Local::new(index)?;
    let options = Options::default().filter(filter).direction(Direction::Down);
    let report = sync(&local, &url, &options, |progress| match progress {
        Progress::Moved(counts) => println!("{} of {}", counts.downloaded, counts.to_download),
        Progress::Note(text) => println!("{text}"),
        _ => {}
    })
    .await?;
    println!("{} events, equal: {}", report.stored, report.equal);
    if let Some(relay) = relay {
        assert!(report.equal && report.stored == 3);
        relay.stop().await;
    }
    Ok(())
}

async fn start_relay(path: &std::path::Path) -> Result<Relay, Box<dyn Error>> {
    let mut config = Config::default();
    config.store.path = path.to_owned();
    config.relay.listen.set_port(0);
    let relay = Relay::start(config).await?;
    let events: Result<Vec<_>, _> =
        EVENTS.lines().map(|line| Event::parse(line)?.verify()).collect();
    relay.index().store().publish(events?)?;
    Ok(relay)
}
