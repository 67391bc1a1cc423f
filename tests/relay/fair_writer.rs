//! The events of one address, and long removals, do not delay other clients: commits and their
//! contents are counted.

use crate::support::client::PATIENCE;
use crate::support::{Author, Client, TestRelay, engine, events, id_of, model};
use negsync::config::Network;
use negsync::index::Subscriber;
use negsync::reconcile::RangeSet;
use negsync::store::{Change, Event, Filter, Outcome, Step, VerifiedEvent};
use serde_json::{Value, json};
use std::sync::Arc;

/// Maximum rows of a commit that others wait for, as in `Batches::Short`, and of a step between two
/// commits.
const BATCH_ROWS: usize = 4_096;
const STEP_ROWS: usize = 2_048;
/// Number of targets of a large deletion.
const NAMED: u64 = 3_000;

/// A note with an invalid signature.
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

/// The rows that a commit added, and the number of events it removed.
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

/// 120 events of 2,000 tags were one commit, for which all other clients waited.
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
    // The batch that had begun, and a few that were verified before the note.
    assert!(before <= 12, "{before} commits came first");
    modest.expect(json!(["OK", note["id"], true, ""])).await;
    sending.await.unwrap();
}

/// A hundred thousand in one second blocked all writes for seconds.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_by_the_thousand_goes_in_steps_between_commits() {
    const EVENTS: u64 = 10_000;
    let relay = TestRelay::start().await;
    let (author, due) = (Author::new(1), events::unix_now() + 4);
    let tag = format!(r#"["expiration","{due}"],["t","a"],["t","b"]"#);
    let events: Vec<VerifiedEvent> =
        (0..EVENTS).map(|n| made_up(n, &author, events::EPOCH, &tag)).collect();
    // An event without tags takes six rows.
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

/// The events of a vanished author are removed by weight, not by number.
#[tokio::test(flavor = "multi_thread")]
async fn heavy_events_vanish_one_or_two_at_a_time() {
    let relay = TestRelay::start().await;
    let author = Author::new(1);
    let tags: Vec<String> = (0..1_500).map(|n| format!(r#"["t","{n}"]"#)).collect();
    let heavy: Vec<VerifiedEvent> =
        (0..12).map(|n| made_up(n, &author, events::EPOCH, &tags.join(","))).collect();
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

/// A relay with many notes, and their author's request to delete all of them.
async fn much_to_delete(author: &Author) -> (TestRelay, Value) {
    let relay = TestRelay::start().await;
    let events = (0..NAMED).map(|n| made_up(n, author, events::EPOCH, "")).collect();
    let store = relay.relay.index().store().clone();
    tokio::task::spawn_blocking(move || store.publish(events)).await.unwrap().unwrap();
    let ids: Vec<Value> = (0..NAMED).map(|n| json!(["e", format!("{n:064x}")])).collect();
    let deletion = author.deletion(events::EPOCH, json!(ids));
    (relay, deletion)
}

/// A large deletion was one commit; now it takes several steps. Its OK comes when all targets are
/// gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_of_much_goes_in_steps_and_its_ok_comes_last() {
    let (relay, deletion) = much_to_delete(&Author::new(1)).await;
    let mut feed = relay.relay.index().subscribe();
    let (mut client, mut other) = (relay.client().await, relay.client().await);
    client.send(&json!(["EVENT", deletion])).await;
    let mut changes = vec![next(&mut feed).await];
    let note = Author::new(2).note(events::EPOCH, "meanwhile");
    other.store(&note).await;
    client.expect(json!(["OK", deletion["id"], true, ""])).await;
    let set = relay.relay.index().snapshot(&[Filter::default()], usize::MAX).unwrap();
    assert_eq!(set.len(), model::ids([&deletion, &note]).len());
    while let Some(change) = feed.try_recv().unwrap() {
        changes.push(change);
    }
    let removed: Vec<usize> = changes.iter().map(|change| rows_and_removed(change).1).collect();
    assert!(removed.iter().all(|count| *count <= STEP_ROWS / 6 + 1), "{removed:?}");
    assert_eq!(removed.iter().sum::<usize>(), NAMED as usize);
    assert!(removed.iter().filter(|count| **count > 0).count() >= 5, "{removed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deletion_of_much_names_is_kept_out_at_once_and_goes_after_a_kill() {
    if engine::is_left_out("a request that is stored before what it names is gone") {
        return;
    }
    let author = Author::new(1);
    let (relay, deletion) = much_to_delete(&author).await;
    let mut feed = relay.relay.index().subscribe();
    let (mut client, mut other) = (relay.client().await, relay.client().await);
    client.send(&json!(["EVENT", deletion])).await;
    next(&mut feed).await;
    let again = made_up(NAMED - 1, &author, events::EPOCH, "");
    let store = relay.relay.index().store().clone();
    let outcome = tokio::task::spawn_blocking(move || store.publish(vec![again])).await.unwrap();
    assert_eq!(outcome.unwrap(), [Outcome::Deleted]);
    client.expect(json!(["OK", deletion["id"], true, ""])).await;
    // It continues after a kill, and a store in the middle of it is sound.
    let path = relay.store_path();
    let stays = Author::new(3).note(events::EPOCH, "named by nobody");
    other.store(&stays).await;
    let relay = relay
        .restart_with(|_| {
            let connection = rusqlite::Connection::open(&path).unwrap();
            let sql = "INSERT INTO removal (id) VALUES (unhex(?1))";
            assert_eq!(connection.execute(sql, [id_of(&stays)]).unwrap(), 1);
        })
        .await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while relay.relay.index().snapshot(&[Filter::default()], usize::MAX).unwrap().len() > 1 {
        assert!(std::time::Instant::now() < deadline, "the removal does not go on");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The number of targets of an author's requests is bounded and counted.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_deletion_names_is_bounded_and_given_back_with_it() {
    if engine::is_left_out("the number of tombstones, which other nodes change") {
        return;
    }
    let relay = TestRelay::start_with(|config| config.limits.event_tags = 20_000).await;
    let author = Author::new(1);
    let deletion = |from: u64, count: u64, at: u64, more: Value| {
        let mut tags: Vec<Value> =
            (from..from + count).map(|n| json!(["e", format!("{n:064x}")])).collect();
        tags.push(more);
        author.deletion(at, json!(tags))
    };
    let store = relay.relay.index().store().clone();
    let publish = |event: &Value| {
        let event = Event::parse(&event.to_string()).unwrap().trust();
        let store = store.clone();
        async move {
            tokio::task::spawn_blocking(move || store.publish(vec![event])).await.unwrap().unwrap()
        }
    };
    let tombstones = || store.metrics().tombstones();
    let none = json!(["k", "1"]);
    let too_much = deletion(0, 10_001, events::EPOCH, none.clone());
    assert_eq!(publish(&too_much).await, [Outcome::DeletesTooMuch]);
    let first = deletion(0, 300, events::EPOCH, none.clone());
    assert_eq!(publish(&first).await, [Outcome::Stored]);
    assert_eq!(tombstones(), 300);
    let address = json!(["a", author.address(30_023, "x")]);
    assert_eq!(publish(&deletion(100, 10, events::EPOCH, address)).await, [Outcome::Stored]);
    assert_eq!(tombstones(), 311);
    // A vanished key has no requests.
    let vanish = author.event(62, events::EPOCH, json!([["relay", "ALL_RELAYS"]]), "");
    assert_eq!(publish(&vanish).await, [Outcome::Stored]);
    assert_eq!(tombstones(), 0);
}
