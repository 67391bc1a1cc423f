//! A relay inside another program: its own sockets, hooks in Rust, and no key without effect.

use crate::support::negentropy_client::EMPTY_SET;
use crate::support::{Author, Client, events, id_of};
use negsync::admission::{Judgement, RefusalReason, Source};
use negsync::config::{Config, PeerConfig};
use negsync::relay::{Relay, RelayError};
use negsync::store::Event;
use serde_json::{Value, json};
use std::net::TcpListener;
use tempfile::TempDir;

const AT: u64 = events::EPOCH;

/// The default configuration, with a store in the folder.
fn config(folder: &TempDir) -> Config {
    let mut config = Config::default();
    config.store.path = folder.path().join("events.sqlite");
    config
}

fn socket() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

async fn connect(relay: &Relay) -> Client {
    Client::connect(&format!("ws://{}", relay.address())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_decides_which_events_are_taken_of_clients_and_of_peers() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::builder(config(&folder))
        .listener(socket())
        .admit(|event, _| match event.kind() {
            1 => Ok(()),
            7 => Err("pow: 20 bits, please".to_owned()),
            _ => Err("not here".to_owned()),
        })
        .start()
        .await
        .unwrap();
    let mut client = connect(&relay).await;
    let author = Author::new(1);
    let event = |kind| author.event(kind, AT, json!([]), "");
    for (kind, expected) in
        [(1, (true, "")), (7, (false, "pow: 20 bits, please")), (3, (false, "blocked: not here"))]
    {
        let (accepted, text) = client.publish(&event(kind)).await;
        assert_eq!((accepted, text.as_str()), expected);
    }
    let events: Vec<_> = [3, 1, 7]
        .into_iter()
        .map(|kind| Event::parse(&event(kind).to_string()).unwrap().verify().unwrap())
        .collect();
    let peer = Source::Peer { url: "ws://peer.example".to_owned(), live: false };
    let judged = relay.admission().judge(&events, &peer).await;
    let reasons: Vec<_> = judged
        .iter()
        .map(|judgement| match judgement {
            Judgement::Reject(refusal) => Some(refusal.reason),
            _ => None,
        })
        .collect();
    let refused = Some(RefusalReason::WritePolicy);
    assert_eq!(reasons, [refused, None, refused]);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_decides_who_may_read() {
    let folder = tempfile::tempdir().unwrap();
    let relay = Relay::builder(config(&folder))
        .listener(socket())
        .may_read(|viewer, filters| match viewer.keys() {
            [] => Err("auth-required: members only".to_owned()),
            _ if filters.iter().any(|filter| filter.limit.is_none()) => {
                Err("name a limit".to_owned())
            }
            _ => Ok(()),
        })
        .start()
        .await
        .unwrap();
    let url = format!("ws://{}", relay.address());
    let mut client = connect(&relay).await;
    let author = Author::new(1);
    let note = author.note(AT, "for members");
    assert!(client.publish(&note).await.0);
    let refused = |reason: &str| {
        [
            (json!(["REQ", "x", {}]), json!(["CLOSED", "x", reason])),
            (json!(["COUNT", "x", {}]), json!(["CLOSED", "x", reason])),
            (json!(["NEG-OPEN", "x", {}, EMPTY_SET]), json!(["NEG-ERR", "x", reason])),
        ]
    };
    for (message, answer) in refused("auth-required: members only") {
        assert_eq!(client.ask(&message).await, answer);
    }
    assert_eq!(client.authenticate(&author, &url).await, (true, String::new()));
    for (message, answer) in refused("restricted: name a limit") {
        assert_eq!(client.ask(&message).await, answer);
    }
    let event: Value = client.ask(&json!(["REQ", "x", { "limit": 5 }])).await;
    assert_eq!((&event[0], id_of(&event[2])), (&json!("EVENT"), id_of(&note)));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_would_do_nothing_or_is_out_of_bounds_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    type Change = fn(&mut Config);
    let cases: [(&str, Change); 4] = [
        ("relay.listen", |config| config.relay.listen = "127.0.0.1:1".parse().unwrap()),
        ("log.level", |config| config.log.level = "debug".into()),
        ("attach.url", |config| config.attach.url = "ws://127.0.0.1:1".into()),
        ("peer", |config| config.peers.push(PeerConfig::new("ws://127.0.0.1:1".parse().unwrap()))),
    ];
    for (expected, change) in cases {
        let mut config = config(&folder);
        change(&mut config);
        match Relay::builder(config).listener(socket()).start().await.err() {
            Some(RelayError::Ignored { key, .. }) => assert_eq!(key, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let mut wrong = config(&folder);
    wrong.limits.filters = 0;
    let error = Relay::builder(wrong).listener(socket()).start().await.err().unwrap();
    assert!(error.to_string().starts_with("limits.filters = 0"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_keeps_its_relay_in_sync_with_peers() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let peer = Relay::builder(config(&folders[0])).listener(socket()).start().await.unwrap();
    let note = Author::new(1).note(AT, "from the peer");
    assert!(connect(&peer).await.publish(&note).await.0);
    let mut config = config(&folders[1]);
    let mut kept = PeerConfig::new(format!("ws://{}", peer.address()).parse().unwrap());
    kept.live = true;
    config.peers.push(kept);
    let (relay, schedule) =
        Relay::builder(config).listener(socket()).start_with_peers().await.unwrap();
    let mut client = connect(&relay).await;
    let mut answer = client.ask(&json!(["REQ", "x", {}])).await;
    // Stored events come before EOSE, all others after it.
    if answer[0] == "EOSE" {
        answer = client.next("the peer's event").await;
    }
    assert_eq!(id_of(&answer[2]), id_of(&note));
    schedule.stop().await;
    relay.stop().await;
    peer.stop().await;
}
