//! What one address brings, or what has to be removed, keeps nobody else waiting: commits are counted,
//! and what is in each.

use crate::support::client::PATIENCE;
use crate::support::{Author, Client, TestRelay, events, id_of, model};
use negsync::config::Network;
use negsync::index::Subscriber;
use negsync::reconcile::RangeSet;
use negsync::store::{Change, Event, Filter, Step, VerifiedEvent};
use serde_json::{Value, json};
use std::sync::Arc;

/// The rows of a commit that others wait for, as `Batches::Short` has them, and of a step between
/// two.
const BATCH_ROWS: usize = 4_096;
const STEP_ROWS: usize = 2_048;

/// A note whose signature is of no matter.
fn made_up(number: u64, author: &Author, created_at: u64, tags: &str) -> VerifiedEvent {
    let json = format!(
        r#"{{"id":"{number:064x}","pubkey":"{}","created_at":{created_at},"kind":1,"tags":[{tags}],"content":"","sig":"{}"}}"#,
        author.key(),
        "0".repeat(128),
    );
    Event::parse(&json).unwrap().trust()
}

fn many_tags(count: usize, of: u64) -> Value {
    json!((0..count).map(|n| json!(["t", format!("{of} {n}")])).collect::<Vec<_>>())
}

/// What a commit has added, in rows, and how many events it has removed.
fn rows_and_removed(change: &Change) -> (usize, usize) {
    change.steps.iter().fold((0, 0), |(rows, removed), step| match step {
        Step::Added(event) => (rows + event.weight(), removed),
        Step::Removed(_) => (rows, removed + 1),
        _ => (rows, removed),
    })
}

async fn next(feed: &mut Subscriber) -> Arc<Change> {
    tokio::time::timeout(PATIENCE, feed.recv()).await.expect("nothing is committed").unwrap()
}

fn adds(change: &Change, event: &Value) -> bool {
    let is_it = |step: &Step| matches!(step, Step::Added(it) if it.id_hex() == id_of(event));
    change.steps.iter().any(is_it)
}

/// 120 events of 2,000 tags were one commit, and whoever came meanwhile waited for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_brings_heavy_events_waits_for_itself() {
    const TAGS: usize = 2_000;
    let proxy: Network = "127.0.0.1".parse().unwrap();
    let relay =
        TestRelay::start_with(|config| config.connections.trusted_proxies = vec![proxy]).await;
    let heavy: Vec<Value> = (0..120)
        .map(|n| Author::new(1).event(1, events::EPOCH + n, many_tags(TAGS, n), ""))
        .collect();
    let mut feed = relay.relay.index().subscribe();
    let mut greedy = Client::connect_for(&relay.url(), "192.0.2.1").await.ok().unwrap();
    let mut modest = Client::connect_for(&relay.url(), "192.0.2.2").await.ok().unwrap();
    let sending = tokio::spawn(async move {
        let oks = greedy.publish_all(&heavy).await;
        assert!(oks.values().all(|(accepted, _)| *accepted));
    });
    next(&mut feed).await;
    let note = Author::new(2).note(events::EPOCH, "a word");
    modest.send(&json!(["EVENT", note])).await;
    while !feed.is_empty() {
        next(&mut feed).await;
    }
    let mut before = 0;
    loop {
        let change = next(&mut feed).await;
        let (rows, _) = rows_and_removed(&change);
        assert!(rows <= BATCH_ROWS, "a commit of {rows} rows");
        if adds(&change, &note) {
            break;
        }
        before += 1;
    }
    // The batch that had begun, and a few that were verified while the note was on its way.
    assert!(before <= 12, "{before} commits came first");
    modest.expect(json!(["OK", note["id"], true, ""])).await;
    sending.await.unwrap();
}

/// A hundred thousand in one second stopped every write for seconds.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_by_the_thousand_goes_in_steps_between_commits() {
    const EVENTS: u64 = 10_000;
    let relay = TestRelay::start().await;
    let (author, due) = (Author::new(1), events::unix_now() + 4);
    let tag = format!(r#"["expiration","{due}"],["t","a"],["t","b"]"#);
    let events: Vec<VerifiedEvent> =
        (0..EVENTS).map(|n| made_up(n, &author, events::EPOCH, &tag)).collect();
    // An event without tags is six rows.
    let of_a_step = STEP_ROWS / 8 + 1;
    let store = relay.relay.index().store().clone();
    tokio::task::spawn_blocking(move || store.publish(events)).await.unwrap().unwrap();
    let mut feed = relay.relay.index().subscribe();
    let mut other = relay.client().await;
    let (mut removed, mut between) = (0, 0);
    for number in 0.. {
        let note = Author::new(2).note(events::EPOCH + number, "meanwhile");
        other.store(&note).await;
        let mut added = false;
        while let Some(change) = feed.try_recv().unwrap() {
            let (_, of_change) = rows_and_removed(&change);
            assert!(of_change <= of_a_step, "a commit of {of_change} removals");
            removed += of_change as u64;
            added |= adds(&change, &note);
        }
        assert!(added, "the OK came before the commit");
        between += usize::from(removed > 0);
        if removed == EVENTS {
            break;
        }
        if removed == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
    // Each OK waits for a step or two.
    let steps = EVENTS as usize / of_a_step;
    assert!(between >= steps / 4, "{between} notes while {steps} steps were done");
}

/// What an author who vanishes leaves is removed by its weight, not by its number.
#[tokio::test(flavor = "multi_thread")]
async fn heavy_events_vanish_one_or_two_at_a_time() {
    let relay = TestRelay::start().await;
    let author = Author::new(1);
    let tags: Vec<String> = (0..1_500).map(|n| format!(r#"["t","{n}"]"#)).collect();
    let heavy: Vec<VerifiedEvent> =
        (0..40).map(|n| made_up(n, &author, events::EPOCH, &tags.join(","))).collect();
    let store = relay.relay.index().store().clone();
    tokio::task::spawn_blocking(move || store.publish(heavy)).await.unwrap().unwrap();
    let mut feed = relay.relay.index().subscribe();
    let request = author.event(62, events::EPOCH, json!([["relay", "ALL_RELAYS"]]), "");
    relay.client().await.store(&request).await;
    let set = relay.relay.index().snapshot(&[Filter::default()], usize::MAX).unwrap();
    assert_eq!(set.len(), model::ids([&request]).len());
    while let Some(change) = feed.try_recv().unwrap() {
        let (_, removed) = rows_and_removed(&change);
        assert!(removed <= 2, "a commit of {removed} removals");
    }
}
