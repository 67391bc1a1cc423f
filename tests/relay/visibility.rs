//! Events of private kinds: REQ, COUNT, live events and NEG show each client exactly its own.

use super::subscriptions::random_filter;
use crate::support::negentropy_client::{neg_ids, reconcile};
use crate::support::{Author, Client, TestRelay, events, id_of, model};
use negsync::config::PublicKeys;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const PRIVATE: [u16; 6] = [4, 13, 14, 15, 1_059, 21_059];

fn authors() -> Vec<Author> {
    (1..=5).map(Author::new).collect()
}

/// Private and public events of five authors, most of them addressed to another one.
fn some_events(rng: &mut StdRng, count: usize, kinds: &[u16]) -> Vec<Value> {
    let authors = authors();
    let any = |rng: &mut StdRng| rng.random_range(0..authors.len());
    (0..count)
        .map(|number| {
            let p: Vec<Value> = (0..rng.random_range(0..3))
                .map(|_| json!(["p", authors[any(rng)].key()]))
                .collect();
            let kind = kinds[rng.random_range(0..kinds.len())];
            let at = events::EPOCH + rng.random_range(0..300);
            authors[any(rng)].event(kind, at, json!(p), &number.to_string())
        })
        .collect()
}

/// A relay with one author's key as a mirror key.
async fn relay_with_a_mirror() -> TestRelay {
    let key = faster_hex::hex_decode_array(authors()[4].key().as_bytes()).unwrap();
    TestRelay::start_with(|config| config.auth.mirror_keys = PublicKeys::from_iter([key])).await
}

/// The events that a client with these keys may see.
fn visible(events: &[Value], keys: &[String]) -> Vec<Value> {
    if keys.contains(&authors()[4].key()) {
        return events.to_vec();
    }
    model::visible(events, &PRIVATE, keys)
}

/// A client that has authenticated none, one or two of the authors' keys, and those keys.
async fn random_viewer(rng: &mut StdRng, relay: &TestRelay) -> (Client, Vec<String>) {
    let mut client = relay.client().await;
    let mut authors = authors();
    authors.shuffle(rng);
    let keys = rng.random_range(0..3);
    for author in &authors[..keys] {
        assert_eq!(client.authenticate(author, &relay.url()).await, (true, String::new()));
    }
    (client, authors[..keys].iter().map(Author::key).collect())
}

/// Whether the answer must be a refusal: private kinds only, and no key.
fn is_refused(filters: &[Value], keys: &[String]) -> bool {
    let is_private = |filter: &Value| {
        filter["kinds"].as_array().is_some_and(|kinds| {
            !kinds.is_empty() && kinds.iter().all(|kind| PRIVATE.iter().any(|it| kind == it))
        })
    };
    keys.is_empty() && filters.iter().all(is_private)
}

#[tokio::test(flavor = "multi_thread")]
async fn req_count_and_neg_show_what_the_naive_model_does() {
    let seed = 600;
    let mut rng = StdRng::seed_from_u64(seed);
    let relay = relay_with_a_mirror().await;
    let all = some_events(&mut rng, 500, &[1, 1, 1, 7, 4, 1_059, 14]);
    relay.client().await.publish_all(&all).await;
    let mut answered = 0;
    for round in 0..60 {
        let (mut client, keys) = random_viewer(&mut rng, &relay).await;
        let visible = visible(&all, &keys);
        for _ in 0..6 {
            let filters: Vec<Value> =
                (0..rng.random_range(1..3)).map(|_| random_filter(&mut rng, &all)).collect();
            let context = format!("seed {seed}, round {round}, {keys:?}: {filters:?}");
            let filter = json!(filters);
            if is_refused(&filters, &keys) {
                let error = reconcile(&mut client, &filter, [], 0).await.unwrap_err();
                assert!(error[2].as_str().unwrap().starts_with("auth-required: "), "{context}");
                for verb in ["REQ", "COUNT"] {
                    let mut message = vec![json!(verb), json!("x")];
                    message.extend_from_slice(&filters);
                    let closed = client.ask(&json!(message)).await;
                    assert_eq!((&closed[0], &closed[1]), (&json!("CLOSED"), &json!("x")));
                    assert!(closed[2].as_str().unwrap().starts_with("auth-required: "));
                }
                continue;
            }
            let expected: Vec<Value> =
                model::answer(&filters, &visible).into_iter().cloned().collect();
            assert_eq!(client.query(&filters).await, expected, "{context}");
            assert_eq!(client.count(&filters).await, expected.len() as u64, "{context}");
            assert_eq!(neg_ids(&mut client, &filter).await, model::ids(&expected), "{context}");
            answered += 1;
        }
    }
    assert!(answered > 200, "only {answered} were answered");
}

/// The ids of the events before the message `end`.
async fn live_ids_until(client: &mut Client, end: Value) -> Vec<String> {
    let mut ids = Vec::new();
    loop {
        let message = client.next("a live event or the end").await;
        if message == end {
            return ids;
        }
        assert_eq!(message[0], "EVENT", "{message}");
        ids.push(id_of(&message[2]).to_owned());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn live_events_reach_those_who_may_see_them_and_no_others() {
    for seed in 610..613 {
        let mut rng = StdRng::seed_from_u64(seed);
        let relay = relay_with_a_mirror().await;
        let all = some_events(&mut rng, 120, &[1, 4, 1_059, 21_059, 20_001]);
        let mut viewers = Vec::new();
        for _ in 0..6 {
            let (mut client, keys) = random_viewer(&mut rng, &relay).await;
            let filter = if rng.random() { json!({}) } else { random_filter(&mut rng, &all) };
            if is_refused(std::slice::from_ref(&filter), &keys) {
                continue;
            }
            client.send(&json!(["REQ", "live", filter])).await;
            client.expect(json!(["EOSE", "live"])).await;
            viewers.push((client, keys, filter));
        }
        let mut publisher = relay.client().await;
        publisher.publish_all(&all).await;
        // All clients get the last one live, and so after all others.
        let last = Author::new(9).event(1, events::EPOCH, json!([]), "the last");
        let mut seen_by = Vec::new();
        for (client, ..) in &mut viewers {
            client.send(&json!(["REQ", "last", { "ids": [id_of(&last)] }])).await;
            seen_by.push(live_ids_until(client, json!(["EOSE", "last"])).await);
        }
        publisher.publish(&last).await;
        for ((mut client, keys, filter), mut seen) in viewers.into_iter().zip(seen_by) {
            seen.extend(live_ids_until(&mut client, json!(["EVENT", "last", last])).await);
            seen.retain(|id| *id != id_of(&last));
            let unique: BTreeSet<String> = seen.iter().cloned().collect();
            assert_eq!(unique.len(), seen.len(), "seed {seed}: some came twice");
            let seen = unique;
            let visible = visible(&all, &keys);
            let matching = visible.iter().filter(|event| model::matches(&filter, event));
            assert_eq!(seen, model::ids(matching), "seed {seed}, {keys:?}, {filter}");
        }
    }
}

/// Private and public events are published while clients reconcile everything: a set for a client
/// without keys has no private id, and each client's set has its own earlier ones.
#[tokio::test(flavor = "multi_thread")]
async fn sets_taken_while_events_are_published_have_no_trace_of_others() {
    let seed = 620;
    let mut rng = StdRng::seed_from_u64(seed);
    let relay = relay_with_a_mirror().await;
    let before = some_events(&mut rng, 300, &[1, 4, 1_059]);
    let during = some_events(&mut rng, 600, &[1, 4, 1_059]);
    let mut publisher = relay.client().await;
    publisher.publish_all(&before).await;
    let done = Arc::new(AtomicBool::new(false));
    let all: Vec<Value> = [&before[..], &during[..]].concat();
    let mut clients = Vec::new();
    for author in [None, Some(Author::new(1)), Some(Author::new(2)), Some(Author::new(5))] {
        let mut client = relay.client().await;
        let mut keys = Vec::new();
        if let Some(author) = author {
            assert!(client.authenticate(&author, &relay.url()).await.0);
            keys.push(author.key());
        }
        let least = model::ids(&visible(&before, &keys));
        let most = model::ids(&visible(&all, &keys));
        let done = Arc::clone(&done);
        clients.push(tokio::spawn(async move {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds < 5 {
                for filter in [json!({}), json!({ "kinds": [1, 4, 1_059] })] {
                    let ids = neg_ids(&mut client, &filter).await;
                    assert!(ids.is_superset(&least), "seed {seed}: {keys:?} lacks some");
                    assert!(ids.is_subset(&most), "seed {seed}: {keys:?} has others'");
                }
                rounds += 1;
            }
        }));
    }
    publisher.publish_all(&during).await;
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}

/// Whether a private event is stored is revealed only to viewers that may see it.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_alone_does_not_show_whether_a_private_event_is_stored() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let letter = Author::new(1).event(4, events::EPOCH, json!([["p", Author::new(2).key()]]), "x");
    client.store(&letter).await;
    // A guess at an event with this id and time has a wrong signature.
    let mut guess = letter.clone();
    guess["kind"] = json!(1);
    guess["tags"] = json!([]);
    let (accepted, text) = client.publish(&guess).await;
    assert!(!accepted && text.starts_with("invalid: "), "{text}");
    let (accepted, text) = client.publish(&letter).await;
    assert!(accepted && text.starts_with("duplicate: "), "{text}");
    assert_eq!(client.query(&[json!({ "ids": [id_of(&letter)] })]).await, Vec::<Value>::new());
}
