//! `/metrics`: every metric changes when its subject occurs, and no other metrics exist.

use crate::support::client::PATIENCE;
use crate::support::events::{EPOCH, unix_now};
use crate::support::http::{HANDSHAKE, answer_to, http};
use crate::support::negentropy_client::EMPTY_SET;
use crate::support::{Author, Client, TestRelay, engine, id_of};
use negsync::config::{Direction, Network, PeerConfig, PublicKeys};
use negsync::moderation::ListEntry;
use negsync::store::{Event, Outcome};
use negsync::sync::Schedule;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// The values of a scrape, by sample name with labels.
type Samples = BTreeMap<String, f64>;

async fn scrape(relay: &TestRelay) -> String {
    let response = http(relay.relay.address(), "GET", "/metrics", &[]).await;
    assert_eq!(response.status, 200, "{}", response.body);
    assert!(response.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    response.body
}

async fn samples(relay: &TestRelay) -> Samples {
    let text = scrape(relay).await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

/// The names of all metrics.
fn families(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// Scrapes, and records which metrics changed.
struct Watch<'relay> {
    relay: &'relay TestRelay,
    before: Samples,
    moved: &'relay mut BTreeSet<String>,
}

impl<'relay> Watch<'relay> {
    async fn new(relay: &'relay TestRelay, moved: &'relay mut BTreeSet<String>) -> Self {
        Self { relay, before: samples(relay).await, moved }
    }

    /// Waits until each of these samples has changed by this amount since the last call; `None` is
    /// for any increase.
    async fn moves(&mut self, expected: &[(&str, Option<f64>)]) {
        let began = Instant::now();
        loop {
            let now = samples(self.relay).await;
            let of = |samples: &Samples, name| samples.get(name).copied().unwrap_or(0.0);
            let late = expected.iter().find(|(name, by)| {
                let difference = of(&now, *name) - of(&self.before, *name);
                by.map_or(difference <= 0.0, |by| difference != by)
            });
            let Some((name, by)) = late else {
                self.before = now;
                break;
            };
            let difference = of(&now, *name) - of(&self.before, *name);
            assert!(began.elapsed() < PATIENCE, "{name} has moved by {difference}, not {by:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (name, _) in expected {
            self.moved.extend([family(name).to_owned(), (*name).to_owned()]);
        }
    }
}

/// The metrics that the dashboard and the alerts use.
fn in_contrib() -> BTreeSet<String> {
    let text = include_str!("../../contrib/grafana/negsync.json");
    let dashboard: Value = serde_json::from_str(text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let shown = targets.map(|target| target["expr"].as_str().unwrap());
    let rules = include_str!("../../contrib/prometheus/negsync.rules.yml");
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = shown.chain(alerts).flat_map(|text| text.split(move |c: char| !of_name(c)));
    words.filter(|name| name.starts_with("negsync_")).map(|name| family(name).to_owned()).collect()
}

/// The metric of a sample.
fn family(sample: &str) -> &str {
    let name = sample.split('{').next().unwrap();
    let parts = ["_count", "_sum", "_bucket"];
    parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name)
}

/// The labels with fixed values: each value has to occur.
const LABELS: [&str; 4] = ["{verb=", "{outcome=", "{reason=", "{kind="];
/// Changes only by a fault of the program.
const NEVER: &str = r#"negsync_auth_total{outcome="error"}"#;

/// The dashboard shows it as negsync_peer_lag_seconds.
const AS_LAG: &str = "negsync_peer_last_converged_timestamp_seconds";

const UP: Option<f64> = None;
const fn by(number: f64) -> Option<f64> {
    Some(number)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_moves_when_what_it_counts_happens() {
    if engine::is_left_out("the write-ahead log and the tombstones, which are of all nodes") {
        return;
    }
    let mut moved = BTreeSet::new();
    let relay = TestRelay::start_with(|config| {
        config.negentropy.max_sync_events = 6_000;
    })
    .await;
    connections(&mut Watch::new(&relay, &mut moved).await).await;
    messages(&mut Watch::new(&relay, &mut moved).await).await;
    events(&mut Watch::new(&relay, &mut moved).await).await;
    subscriptions(&mut Watch::new(&relay, &mut moved).await).await;
    neg_sessions(&mut Watch::new(&relay, &mut moved).await).await;
    index(&mut Watch::new(&relay, &mut moved).await).await;
    large_sets(&mut moved).await;
    let relay = store(relay, &mut moved).await;
    peers(&relay, &mut moved).await;
    limits(&mut moved).await;
    keys(&mut moved).await;
    policy(&mut moved).await;
    hooks(&mut moved).await;
    faults(&mut moved).await;
    let scraped = samples(&relay).await;
    let rows = scraped.keys().filter(|name| LABELS.iter().any(|label| name.contains(label)));
    let still: Vec<&String> = rows.filter(|name| !moved.contains(*name)).collect();
    assert_eq!(still, [NEVER], "no row of this test makes these move");
    moved.retain(|name| !name.contains(['{', '"']) && family(name) == name);
    let there = families(&scrape(&relay).await);
    let still: Vec<&String> = there.difference(&moved).collect();
    assert!(still.is_empty(), "no row of this test makes these move: {still:?}");
    let gone: Vec<&String> = moved.difference(&there).collect();
    assert!(gone.is_empty(), "these are not there: {gone:?}");
    let asked_for = in_contrib();
    assert!(asked_for.len() > 30, "{asked_for:?}");
    let unknown: Vec<&String> = asked_for.difference(&there).collect();
    assert!(unknown.is_empty(), "contrib asks for {unknown:?}");
    let unseen: Vec<&String> = there.difference(&asked_for).collect();
    assert_eq!(unseen, [AS_LAG], "contrib does not show the others");
}

async fn connections(watch: &mut Watch<'_>) {
    let client = watch.relay.client().await;
    watch.moves(&[("negsync_connections", by(1.0)), ("negsync_connections_total", by(1.0))]).await;
    drop(client);
    watch.moves(&[("negsync_connections", by(-1.0)), ("negsync_connections_total", by(0.0))]).await;
    let no_key = ["Upgrade: websocket"];
    http(watch.relay.relay.address(), "GET", "/", &no_key).await;
    watch.moves(&[("negsync_connections_refused_total{reason=\"handshake\"}", by(1.0))]).await;
    let bans = watch.relay.relay.admission().moderation().clone();
    bans.add(&[ListEntry::Ip("127.0.0.1".parse().unwrap(), String::new())]).unwrap();
    assert_eq!(Client::connect_for(&watch.relay.url(), "192.0.2.1").await.err(), Some(403));
    bans.remove(|_| true).unwrap();
    watch.moves(&[("negsync_connections_refused_total{reason=\"banned\"}", by(1.0))]).await;
}

async fn messages(watch: &mut Watch<'_>) {
    let mut client = watch.relay.client().await;
    client.store(&Author::new(1).note(EPOCH, "one")).await;
    client.send(&json!(["REQ", "a", { "ids": [] }])).await;
    client.expect(json!(["EOSE", "a"])).await;
    client.send(&json!(["CLOSE", "a"])).await;
    client.count(&[json!({})]).await;
    client.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await;
    client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await;
    client.send(&json!(["NEG-CLOSE", "n"])).await;
    client.ask(&json!(["WHAT"])).await;
    client.ask(&json!(["AUTH", {}])).await;
    let verbs =
        ["EVENT", "AUTH", "REQ", "CLOSE", "COUNT", "NEG-OPEN", "NEG-MSG", "NEG-CLOSE", "invalid"];
    let rows = verbs.map(|verb| format!("negsync_messages_total{{verb=\"{verb}\"}}"));
    let rows: Vec<(&str, Option<f64>)> = rows.iter().map(|row| (&**row, by(1.0))).collect();
    watch.moves(&rows).await;
}

async fn events(watch: &mut Watch<'_>) {
    let mut client = watch.relay.client().await;
    let author = Author::new(2);
    let (old, new) =
        (author.event(0, EPOCH, json!([]), ""), author.event(0, EPOCH + 1, json!([]), ""));
    let deleted = author.note(EPOCH, "deleted");
    let deletion = author.deletion(EPOCH, json!([["e", id_of(&deleted)]]));
    let expired = author.event(1, EPOCH, json!([["expiration", "1700000001"]]), "");
    let mut forged = author.note(EPOCH, "forged");
    forged["content"] = json!("otherwise");
    for event in [&new, &new, &old, &deletion, &deleted, &expired, &forged] {
        client.publish(event).await;
    }
    client.publish(&author.event(20_001, EPOCH, json!([]), "ephemeral")).await;
    let outcomes = [
        ("stored", 2.0),
        ("duplicate", 1.0),
        ("superseded", 1.0),
        ("deleted", 1.0),
        ("expired", 1.0),
        ("invalid", 1.0),
        ("passed_on", 1.0),
    ];
    let rows = outcomes
        .map(|(outcome, count)| (format!("negsync_events_total{{outcome=\"{outcome}\"}}"), count));
    let rows: Vec<(&str, Option<f64>)> =
        rows.iter().map(|(row, count)| (&**row, by(*count))).collect();
    watch.moves(&rows).await;
}

async fn subscriptions(watch: &mut Watch<'_>) {
    let mut client = watch.relay.client().await;
    let author = Author::new(3);
    client.store(&author.note(EPOCH, "stored")).await;
    client.send(&json!(["REQ", "s", { "authors": [author.key()] }])).await;
    client.next("the stored event").await;
    client.expect(json!(["EOSE", "s"])).await;
    let live = author.note(EPOCH, "live");
    watch.relay.client().await.store(&live).await;
    client.expect(json!(["EVENT", "s", live])).await;
    watch
        .moves(&[
            ("negsync_subscriptions", by(1.0)),
            ("negsync_events_sent_total{kind=\"stored\"}", by(1.0)),
            ("negsync_events_sent_total{kind=\"live\"}", by(1.0)),
            ("negsync_live_wakeups_total", by(1.0)),
        ])
        .await;
    client.send(&json!(["CLOSE", "s"])).await;
    watch.moves(&[("negsync_subscriptions", by(-1.0))]).await;
    client.send(&json!(["REQ", "s", { "limit": 0 }])).await;
    watch.moves(&[("negsync_subscriptions", by(1.0))]).await;
    drop(client);
    watch.moves(&[("negsync_subscriptions", by(-1.0))]).await;
}

async fn neg_sessions(watch: &mut Watch<'_>) {
    let mut client = watch.relay.client().await;
    client.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await;
    watch
        .moves(&[
            ("negsync_neg_sessions", by(1.0)),
            ("negsync_neg_sessions_total", by(1.0)),
            ("negsync_neg_rounds_total", by(1.0)),
            ("negsync_neg_received_bytes_total", by(5.0)),
            ("negsync_neg_sent_bytes_total", UP),
            ("negsync_neg_set_items_count", by(1.0)),
        ])
        .await;
    client.ask(&json!(["NEG-OPEN", "m", {}, EMPTY_SET])).await;
    client.send(&json!(["NEG-CLOSE", "n"])).await;
    client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await;
    client.ask(&json!(["NEG-OPEN", "n", {}, "61zz"])).await;
    client.ask(&json!(["NEG-OPEN", "n", {}, "6100"])).await;
    watch
        .moves(&[
            ("negsync_neg_sessions", by(0.0)),
            ("negsync_neg_sessions_total", by(1.0)),
            ("negsync_neg_refusals_total{reason=\"closed\"}", by(1.0)),
            ("negsync_neg_refusals_total{reason=\"invalid\"}", by(2.0)),
        ])
        .await;
    drop(client);
    watch.moves(&[("negsync_neg_sessions", by(-1.0))]).await;
}

/// More events of one kind than the size up to which a set is not cached.
const KEPT: usize = 5_100;

async fn index(watch: &mut Watch<'_>) {
    let author = Author::new(4);
    let fill = |from: usize, to: usize| {
        let event = |n| Event::parse(&author.event(7, EPOCH + n as u64, json!([]), "").to_string());
        let events: Vec<_> = (from..to).map(|n| event(n).unwrap().verify().unwrap()).collect();
        let (told, outcomes) = std::sync::mpsc::channel();
        let store = watch.relay.relay.index().store().clone();
        store.submit(
            &negsync::store::Origin::Local,
            events,
            Box::new(move |outcomes| told.send(outcomes).unwrap()),
        );
        assert!(outcomes.recv().unwrap().iter().all(|outcome| *outcome == Outcome::Stored));
    };
    fill(0, KEPT);
    let mut client = watch.relay.client().await;
    client.ask(&json!(["NEG-OPEN", "k", { "kinds": [7] }, EMPTY_SET])).await;
    watch
        .moves(&[
            ("negsync_index_items", by(KEPT as f64)),
            ("negsync_index_bytes", UP),
            ("negsync_index_build_seconds_count", by(1.0)),
            ("negsync_index_kept_sets", by(1.0)),
            ("negsync_index_kept_bytes", UP),
        ])
        .await;
    fill(KEPT, 6_001);
    client.ask(&json!(["NEG-OPEN", "k", {}, EMPTY_SET])).await;
    watch.moves(&[("negsync_neg_refusals_total{reason=\"blocked\"}", by(1.0))]).await;
}

/// A set of more items than `index.memory_mb` holds is built once, into a file.
async fn large_sets(moved: &mut BTreeSet<String>) {
    const ITEMS: usize = 24_000;
    let relay = TestRelay::start_with(|config| config.index.memory_mb = 1).await;
    let author = Author::new(4).key();
    let event = |number: usize| {
        let event = json!({
            "id": format!("{number:064x}"), "pubkey": author, "created_at": EPOCH + number as u64,
            "kind": 7, "tags": [], "content": "", "sig": "0".repeat(128),
        });
        Event::parse(&event.to_string()).unwrap().trust()
    };
    relay.relay.index().store().publish((0..ITEMS).map(event).collect()).unwrap();
    let mut watch = Watch::new(&relay, moved).await;
    let mut client = relay.client().await;
    for name in ["first", "second"] {
        let answer = client.ask(&json!(["NEG-OPEN", name, { "kinds": [7] }, EMPTY_SET])).await;
        assert_eq!(answer[0], "NEG-MSG", "{answer}");
    }
    watch
        .moves(&[
            ("negsync_index_build_seconds_count", by(1.0)),
            ("negsync_index_kept_sets", by(1.0)),
            ("negsync_index_kept_file_bytes", by(41.0 * ITEMS as f64)),
        ])
        .await;
}

/// The store's file grows by a checkpoint, for example when the relay stops.
async fn store(relay: TestRelay, moved: &mut BTreeSet<String>) -> TestRelay {
    let mut watch = Watch::new(&relay, moved).await;
    let mut client = relay.client().await;
    client.store(&Author::new(5).note(EPOCH, "one more")).await;
    watch
        .moves(&[
            ("negsync_store_commit_seconds_count", by(1.0)),
            ("negsync_store_commit_seconds_sum", UP),
            ("negsync_store_commit_events_count", by(1.0)),
            ("negsync_store_commit_events_sum", by(1.0)),
            ("negsync_store_wal_bytes", UP),
        ])
        .await;
    // A client that does not read, and more data for it than the sockets can hold.
    let long = "x".repeat(100_000);
    let notes = (0..300).map(|second| Author::new(5).note(EPOCH + second, &long).to_string());
    let notes = notes.map(|note| Event::parse(&note).unwrap().trust()).collect();
    relay.relay.index().store().publish(notes).unwrap();
    let mut silent = relay.client().await;
    silent.send(&json!(["REQ", "all", {}])).await;
    watch.moves(&[("negsync_outbound_bytes", UP)]).await;
    drop(silent);
    let named = json!([["e", "0".repeat(64)], ["e", "1".repeat(64)]]);
    client.store(&Author::new(5).deletion(EPOCH, named)).await;
    watch.moves(&[("negsync_store_tombstones", by(2.0))]).await;
    let before = watch.before["negsync_store_bytes"];
    drop(client);
    let relay = relay.restart_with(|_| {}).await;
    assert!(samples(&relay).await["negsync_store_bytes"] > before);
    moved.insert("negsync_store_bytes".to_owned());
    relay
}

fn peer(url: &str, direction: Direction, kinds: Value) -> PeerConfig {
    let mut peer = PeerConfig::new(url.parse().unwrap());
    peer.filter = json!({ "kinds": kinds }).try_into().unwrap();
    peer.direction = direction;
    // One sync, and then a long pause in which only the time changes.
    peer.interval_s = 3_600;
    peer
}

async fn peers(relay: &TestRelay, moved: &mut BTreeSet<String>) {
    let there = TestRelay::start_with(|config| {
        config.limits.created_at_ahead_s = 1_000_000;
        config.limits.event_tags = 1;
    })
    .await;
    let author = Author::new(6);
    // Of the peer: one to be moved, and one in the future, which we refuse. Of ours: one to be
    // moved, and one with more tags than the peer accepts. Each side has one of kind 9, which is
    // not to be moved.
    let theirs = [
        author.event(8, EPOCH, json!([]), "theirs"),
        author.event(8, unix_now() + 100_000, json!([]), "of the future"),
        author.event(9, EPOCH, json!([]), "stays there"),
    ];
    let ours = [
        author.event(8, EPOCH, json!([]), "ours"),
        author.event(8, EPOCH, json!([["a"], ["b"]]), "with tags"),
        author.event(9, EPOCH, json!([]), "stays here"),
    ];
    for (relay, events) in [(&there, &theirs), (relay, &ours)] {
        let mut client: Client = relay.client().await;
        for event in events {
            client.store(event).await;
        }
    }
    let url = there.url();
    let down = format!("{url}#2");
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = format!("ws://{}", nowhere.local_addr().unwrap());
    drop(nowhere);
    let peers = vec![
        peer(&url, Direction::Both, json!([8])),
        peer(&url, Direction::Down, json!([9])),
        peer(&away, Direction::Both, json!([8])),
    ];
    let schedule = scheduled(relay, peers);
    // Before there are peers, each sample of `moves` is absent.
    let mut watch = Watch::new(relay, moved).await;
    watch.before.retain(|name, _| !name.starts_with("negsync_peer_"));
    let of = |name: &str, peer: &str| format!("negsync_peer_{name}{{peer=\"{peer}\"}}");
    let rows = [
        (of("syncs_total", &url), by(1.0)),
        (of("stored_total", &url), by(1.0)),
        (of("uploaded_total", &url), by(1.0)),
        (of("refused_total", &url), by(1.0)),
        (of("refused_by_peer_total", &url), by(1.0)),
        (of("round_trips_total", &url), UP),
        (of("sent_bytes_total", &url), UP),
        (of("received_bytes_total", &url), UP),
        (of("have_events", &url), by(1.0)),
        (of("need_events", &url), by(1.0)),
        (of("have_events", &down), by(1.0)),
        (of("need_events", &down), by(0.0)),
        (of("errors_total", &away), UP),
    ];
    let rows: Vec<(&str, Option<f64>)> = rows.iter().map(|(name, by)| (&**name, *by)).collect();
    watch.moves(&rows).await;
    schedule.stop().await;
    watch.before.retain(|name, _| !name.starts_with("negsync_peer_"));
    // A lasting connection is tested with a peer of its own.
    let mut live = peer(&url, Direction::Up, json!([10]));
    live.live = true;
    let schedule = scheduled(relay, vec![live]);
    let connected = of("connected", &url);
    let converged = of("last_converged_timestamp_seconds", &url);
    let lag = of("lag_seconds", &url);
    watch.moves(&[(&connected, by(1.0)), (&converged, UP)]).await;
    schedule.stop().await;
    // In sync there is no lag; it begins at the end of the connection.
    watch.moves(&[(&connected, by(-1.0)), (&lag, UP)]).await;
}

/// Keeps `relay` in sync with these peers.
fn scheduled(relay: &TestRelay, peers: Vec<PeerConfig>) -> Schedule {
    let mut config = relay.config.clone();
    config.peers = peers;
    relay.relay.reload(config).unwrap();
    Schedule::start(relay.relay.index(), relay.relay.admission(), relay.relay.peers()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_shown_to_those_only_who_may_see_them() {
    for (allow, headers, status) in [
        (&["127.0.0.1"][..], &[][..], 200),
        (&["10.0.0.0/8", "127.0.0.0/8"], &[], 200),
        (&["10.0.0.0/8", "::1"], &[], 403),
        (&[], &[], 403),
        // The proxy is local, but its client is not.
        (&["127.0.0.1"], &["X-Forwarded-For: 192.0.2.1"], 403),
        (&["127.0.0.1"], &["X-Forwarded-For: 127.0.0.1"], 403),
        (&["127.0.0.1"], &["Forwarded: for=192.0.2.1"], 403),
        (&["127.0.0.1"], &["X-Real-IP: 192.0.2.1"], 403),
    ] {
        let allow: Vec<Network> = allow.iter().map(|network| network.parse().unwrap()).collect();
        let relay = TestRelay::start_with(|config| config.metrics.allow = allow.clone()).await;
        let response = http(relay.relay.address(), "GET", "/metrics", headers).await;
        assert_eq!(response.status, status, "{allow:?} {headers:?}");
        assert_eq!(response.body.contains("negsync_"), status == 200);
        assert_eq!(response.headers.get("access-control-allow-origin"), None);
    }
}

/// The relay's answer to a handshake that it refuses.
async fn refused_handshake(relay: &TestRelay) -> String {
    let request = format!("{HANDSHAKE}Connection: close\r\n\r\n");
    answer_to(relay.relay.address(), &request).await
}

async fn limits(moved: &mut BTreeSet<String>) {
    let relay = TestRelay::start_with(|config| config.connections.in_all = 1).await;
    let mut watch = Watch::new(&relay, moved).await;
    let only = relay.client().await;
    assert!(refused_handshake(&relay).await.starts_with("HTTP/1.1 503 "));
    watch.moves(&[("negsync_connections_refused_total{reason=\"connections\"}", by(1.0))]).await;
    drop(only);

    let one = || (1, 1);
    let relay = TestRelay::start_with(|config| {
        config.connections.per_address = 1;
        (config.rates.events_per_s, config.rates.events_burst) = one();
        (config.rates.queries_per_s, config.rates.queries_burst) = one();
        config.negentropy.sessions = 1;
    })
    .await;
    let mut watch = Watch::new(&relay, moved).await;
    let mut client = relay.client().await;
    assert!(refused_handshake(&relay).await.starts_with("HTTP/1.1 429 "));
    watch.moves(&[("negsync_connections_refused_total{reason=\"address\"}", by(1.0))]).await;
    // More than the allowance of a second, however slow the machine is.
    let author = Author::new(7);
    let auth = author.authentication(unix_now(), &relay.url(), &client.challenge);
    for (message, row) in [
        (json!(["EVENT", author.note(EPOCH, "again")]), "negsync_events_total{outcome"),
        (json!(["AUTH", auth]), "negsync_auth_total{outcome"),
        (json!(["COUNT", "c", {}]), "negsync_query_refusals_total{reason"),
    ] {
        let began = Instant::now();
        while !client.ask(&message).await.to_string().contains("rate-limited: ") {
            assert!(began.elapsed() < PATIENCE, "never limited: {message}");
        }
        watch.moves(&[(&format!("{row}=\"rate-limited\"}}"), by(1.0))]).await;
    }
    client.ask(&json!(["NEG-OPEN", "one", {}, EMPTY_SET])).await;
    client.ask(&json!(["NEG-OPEN", "two", {}, EMPTY_SET])).await;
    watch.moves(&[("negsync_neg_refusals_total{reason=\"rate-limited\"}", by(1.0))]).await;
}

/// Sends each of these messages, and expects each answer to be counted.
async fn asks(watch: &mut Watch<'_>, client: &mut Client, cases: &[(Value, &str)]) {
    for (message, row) in cases {
        client.ask(message).await;
        watch.moves(&[(row, by(1.0))]).await;
    }
}

async fn keys(moved: &mut BTreeSet<String>) {
    let relay = TestRelay::start_with(|config| {
        config.auth.sync_keys = PublicKeys::from_iter([[1; 32]]);
    })
    .await;
    let mut watch = Watch::new(&relay, moved).await;
    let mut client = relay.client().await;
    let author = Author::new(8);
    let protected = author.event(1, EPOCH, json!([["-"]]), "");
    let repost = author.event(6, EPOCH, json!([]), &protected.to_string());
    let farewell = author.event(62, EPOCH, json!([["relay", "ALL_RELAYS"]]), "");
    let auth = |number: u8, challenge: &str| {
        json!(["AUTH", Author::new(number).authentication(unix_now(), &relay.url(), challenge)])
    };
    let open = json!(["NEG-OPEN", "n", {}, EMPTY_SET]);
    let challenge = client.challenge.clone();
    let cases = [
        (
            json!(["REQ", "r", { "kinds": "one" }]),
            r#"negsync_query_refusals_total{reason="invalid"}"#,
        ),
        (
            json!(["REQ", "r", { "search": "x" }]),
            r#"negsync_query_refusals_total{reason="unsupported"}"#,
        ),
        (
            json!(["NEG-OPEN", "n", { "search": "x" }, EMPTY_SET]),
            r#"negsync_neg_refusals_total{reason="unsupported"}"#,
        ),
        (
            json!(["REQ", "r", { "kinds": [4] }]),
            r#"negsync_query_refusals_total{reason="auth-required"}"#,
        ),
        (open.clone(), r#"negsync_neg_refusals_total{reason="auth-required"}"#),
        (json!(["EVENT", protected]), r#"negsync_events_total{outcome="auth-required"}"#),
        (auth(9, "another"), r#"negsync_auth_total{outcome="invalid"}"#),
        (auth(9, &challenge), r#"negsync_auth_total{outcome="accepted"}"#),
        (open, r#"negsync_neg_refusals_total{reason="restricted"}"#),
        (json!(["EVENT", protected]), r#"negsync_events_total{outcome="restricted"}"#),
        (json!(["EVENT", repost]), r#"negsync_events_total{outcome="blocked"}"#),
        (json!(["EVENT", farewell]), r#"negsync_events_total{outcome="stored"}"#),
        (
            json!(["EVENT", author.note(EPOCH, "late")]),
            r#"negsync_events_total{outcome="vanished"}"#,
        ),
    ];
    asks(&mut watch, &mut client, &cases).await;
    // The maximum number of keys of a connection, and one more.
    for number in 10..25 {
        client.ask(&auth(number, &challenge)).await;
    }
    watch.moves(&[(r#"negsync_auth_total{outcome="accepted"}"#, by(15.0))]).await;
    let one_more = [(auth(25, &challenge), r#"negsync_auth_total{outcome="restricted"}"#)];
    asks(&mut watch, &mut client, &one_more).await;
}

/// A write policy that refuses with its own text, and one that ends without an answer.
async fn policy(moved: &mut BTreeSet<String>) {
    const SCRIPT: &str = r#"#!/bin/sh
while IFS= read -r line; do
    id=${line#*'"id":"'}
    id=${id%%'"'*}
    case $line in
        *'"content":"pow'*) msg='pow: too little' ;;
        *'"content":"odd'*) msg='odd: no prefix that is known' ;;
        *) exit 1 ;;
    esac
    echo "{\"id\":\"$id\",\"action\":\"reject\",\"msg\":\"$msg\"}"
done
"#;
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("policy");
    std::fs::write(&program, SCRIPT).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let relay = TestRelay::start_with(|config| {
        config.write_policy.command = program.to_str().unwrap().into();
        config.write_policy.timeout_s = 1;
    })
    .await;
    let mut watch = Watch::new(&relay, moved).await;
    let note = |content| json!(["EVENT", Author::new(1).note(EPOCH, content)]);
    let cases = [
        (note("pow"), r#"negsync_events_total{outcome="pow"}"#),
        (note("odd"), r#"negsync_events_total{outcome="other"}"#),
        (note("ends"), r#"negsync_events_total{outcome="error"}"#),
    ];
    asks(&mut watch, &mut relay.client().await, &cases).await;
}

/// A program that refuses queries, with a prefix that the relay does not use for them or without
/// one.
async fn hooks(moved: &mut BTreeSet<String>) {
    let relay = TestRelay::built_with(
        |_| {},
        |builder| {
            builder.may_read(|_, filters| match filters[0].limit {
                Some(_) => Err("pow: too little".to_owned()),
                None => Err("not yours".to_owned()),
            })
        },
    )
    .await;
    let mut watch = Watch::new(&relay, moved).await;
    let cases = [
        (json!(["REQ", "r", {}]), r#"negsync_query_refusals_total{reason="restricted"}"#),
        (json!(["COUNT", "c", { "limit": 1 }]), r#"negsync_query_refusals_total{reason="other"}"#),
        (
            json!(["NEG-OPEN", "n", { "limit": 1 }, EMPTY_SET]),
            r#"negsync_neg_refusals_total{reason="other"}"#,
        ),
    ];
    asks(&mut watch, &mut relay.client().await, &cases).await;
}

/// A store that can neither be read nor written, because its table was removed.
async fn faults(moved: &mut BTreeSet<String>) {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    client.store(&Author::new(1).note(EPOCH, "one")).await;
    let mut watch = Watch::new(&relay, moved).await;
    let other = rusqlite::Connection::open(relay.store_path()).unwrap();
    other.execute_batch("ALTER TABLE event RENAME TO taken_away").unwrap();
    let cases = [
        (
            json!(["EVENT", Author::new(1).note(EPOCH, "two")]),
            r#"negsync_events_total{outcome="failed"}"#,
        ),
        (json!(["REQ", "r", {}]), r#"negsync_query_refusals_total{reason="error"}"#),
        (
            json!(["COUNT", "c", { "kinds": [1] }]),
            r#"negsync_query_refusals_total{reason="error"}"#,
        ),
        (
            json!(["NEG-OPEN", "n", { "kinds": [1] }, EMPTY_SET]),
            r#"negsync_neg_refusals_total{reason="error"}"#,
        ),
    ];
    asks(&mut watch, &mut client, &cases).await;
}
