//! `negsync sync --between`: other relays, without a store of our own.

use super::scripted::{Script, Scripted, Unknown};
use super::support::*;
use crate::support::client::Client;
use crate::support::process::{RelayProcess, negsync};
use negsync::config::SyncConfig;
use negsync::sync::{Between, BetweenRelay, Options, Verdict};
use nostr_relay_builder::prelude::{
    JsonUtil, LocalRelay, MemoryDatabase, MemoryDatabaseOptions, NostrDatabase, RateLimit,
    RelayBuilder,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Maximum memory of the command in addition to the events of 5,000 differences.
const MOST_MEMORY_KB: i64 = 100 << 10;

/// Runs the command to its end; returns the exit code, the JSON object and its peak memory in KiB.
async fn between(urls: &[&str], flags: &[&str]) -> (Option<i32>, Value, i64) {
    let words = [&["sync", "--between", "--json"], urls, flags].concat();
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    let run = move || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_negsync"))
            .args(&words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            out.read_to_string(&mut text).unwrap();
            text
        });
        // Not by `wait4`, whose result starts with the memory of this process.
        let mut memory_kb = 0;
        let status = loop {
            memory_kb = peak_kb(child.id()).unwrap_or(memory_kb);
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let out = reading.join().unwrap();
        let report = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
        (status.code(), report, memory_kb)
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The peak memory of a process while it runs.
fn peak_kb(process: u32) -> Option<i64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `sync --between --live`; killed when dropped.
struct Live(Child);

impl Live {
    fn start(urls: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        command.args(["sync", "--between", "--live"]).args(urls);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Fails only if the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ids_of(events: &[&[String]]) -> BTreeSet<[u8; 32]> {
    events.iter().flat_map(|events| events.iter()).map(|json| id(json)).collect()
}

/// Notes with two tags, which a relay with `event_tags = 1` refuses.
fn tagged(seed: u64, count: usize) -> Vec<String> {
    let tags = || json!([["t", "a"], ["t", "b"]]);
    let text = |n| format!("tagged {n}");
    (0..count)
        .map(|n| event(&Author::new(seed as u8), 1, START + n as u64, tags(), &text(n)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_of_random_sets_end_with_the_same_events_and_one_percent_is_refused() {
    let (shared, only_a, only_b) = (notes(200, 1_000), notes(201, 4_000), notes(202, 3_950));
    let refused = tagged(203, 50);
    let a = TestRelay::holding_with(&[shared.clone(), only_a.clone()].concat(), |config| {
        config.limits.event_tags = 1;
    })
    .await;
    let b = TestRelay::holding(&[&shared[..], &only_b, &refused].concat()).await;
    let urls = [a.url(), b.url()];
    let urls = [urls[0].as_str(), &urls[1]];

    let (code, report, _) = between(&urls, &["--dry-run"]).await;
    assert_eq!(code, Some(0), "{report}");
    let pair = &report["pairs"][0];
    assert_eq!((&pair["verdict"], &pair["only"]), (&"differs".into(), &[4_000, 4_000].into()));
    assert_eq!((a.ids().len(), b.ids().len()), (5_000, 5_000));

    let (code, report, memory_kb) = between(&urls, &[]).await;
    assert_eq!(code, Some(0), "{report}");
    assert_same(&b.ids(), &ids_of(&[&shared, &only_a, &only_b, &refused]), &report.to_string());
    assert_same(&a.ids(), &ids_of(&[&shared, &only_a, &only_b]), &report.to_string());
    let (pair, relays) = (&report["pairs"][0], &report["relays"]);
    assert_eq!((&pair["verdict"], &pair["proof"]), (&"differs".into(), &"negentropy".into()));
    assert_eq!(pair["only"], Value::from([0, 50]), "{report}");
    assert_eq!(pair["differs"]["refused by the peer: invalid"], 50, "{report}");
    assert_eq!(relays[0]["refused_by_peer"]["refused by the peer: invalid"], 50, "{report}");
    assert_eq!((&relays[0]["uploaded"], &relays[1]["uploaded"]), (&3_950.into(), &4_000.into()));
    assert_eq!(
        (&relays[1]["verdict"], &relays[0]["verdict"]),
        (&"equal".into(), &"differs".into())
    );
    assert!((1..MOST_MEMORY_KB).contains(&memory_kb), "{memory_kb} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_relays_end_equal_and_each_pair_has_its_proof() {
    let (shared, a, b, c) = (notes(204, 300), notes(205, 60), notes(206, 50), notes(207, 40));
    let all = ids_of(&[&shared, &a, &b, &c]);
    let (here, there) = (
        TestRelay::holding(&[shared.clone(), a].concat()).await,
        TestRelay::holding(&[shared.clone(), b].concat()).await,
    );
    let other = Scripted::start(&[shared, c].concat(), Script::default()).await;
    let urls = [here.url(), there.url(), other.url()];
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let (code, report, _) = between(&urls, &[]).await;
    assert_eq!(code, Some(0), "{report}");
    assert!(report["equal"] == true && report["complete"] == true, "{report}");
    let pairs = report["pairs"].as_array().unwrap();
    let proven = |pair: &Value| pair["verdict"] == "equal" && pair["proof"] == "negentropy";
    assert!(pairs.len() == 3 && pairs.iter().all(proven), "{report}");
    for (ids, name) in [(here.ids(), "a"), (there.ids(), "b"), (other.ids(), "c")] {
        assert_same(&ids, &all, name);
    }
    // No event is moved twice, and the next sync moves none.
    let moved = |report: &Value, what: &str| -> u64 {
        report["relays"].as_array().unwrap().iter().map(|it| it[what].as_u64().unwrap()).sum()
    };
    assert_eq!((moved(&report, "stored"), moved(&report, "uploaded")), (150, 300), "{report}");
    let (_, again, _) = between(&urls, &[]).await;
    assert_eq!((moved(&again, "stored"), moved(&again, "uploaded")), (0, 0), "{again}");
    assert_eq!(again["equal"], true, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_negentropy_is_read_and_a_filter_holds() {
    let (shared, a, b) = (notes(208, 300), notes(209, 40), notes(210, 30));
    for unknown in [Unknown::Notice, Unknown::Closed, Unknown::NegErr] {
        let here = TestRelay::holding(&[shared.clone(), a.clone()].concat()).await;
        let script =
            Script { without_negentropy: Some(unknown), events_per_req: 100, ..Script::default() };
        let there = Scripted::start(&[shared.clone(), b.clone()].concat(), script).await;
        let filter = format!(r#"{{"authors":["{}"]}}"#, Author::new(209u64 as u8 + 1).key());
        let (here_url, there_url) = (here.url(), there.url());
        let urls = [here_url.as_str(), &there_url];
        let (code, report, _) = between(&urls, &["--filter", &filter]).await;
        assert_eq!(code, Some(0), "{unknown:?}: {report}");
        assert_same(&there.ids(), &ids_of(&[&shared, &a, &b]), &report.to_string());
        assert_eq!(here.ids().len(), 340, "{report}");
        let (code, report, _) = between(&urls, &[]).await;
        assert_eq!(code, Some(0), "{unknown:?}: {report}");
        assert_same(&here.ids(), &there.ids(), &report.to_string());
        let pair = &report["pairs"][0];
        assert_eq!((&pair["verdict"], &pair["proof"]), (&"equal".into(), &"read".into()));
        assert_eq!(report["relays"][1]["method"], "req", "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_that_a_relay_hides_are_named_and_not_compared() {
    let private: Vec<String> = (0..20)
        .map(|n| event(&Author::new(7), 4, START + n, json!([]), &format!("secret {n}")))
        .collect();
    let shared = notes(211, 100);
    let open = TestRelay::holding_with(&[shared.clone(), private.clone()].concat(), |config| {
        config.auth.private_kinds.clear();
    })
    .await;
    let hiding = TestRelay::holding(&shared).await;
    let (a, b) = (open.url(), hiding.url());
    let (code, report, _) = between(&[&a, &b], &[]).await;
    assert_eq!(code, Some(0), "{report}");
    let pair = &report["pairs"][0];
    assert_eq!(pair["verdict"], "equal", "{report}");
    assert!(pair["not_compared"].as_array().unwrap().contains(&4.into()), "{report}");
    assert_same(&hiding.ids(), &open.ids(), &report.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_seen_is_named_and_the_others_are_synced() {
    let (shared, a, b) = (notes(212, 100), notes(213, 20), notes(214, 10));
    let here = TestRelay::holding(&[shared.clone(), a].concat()).await;
    let there = TestRelay::holding(&[shared.clone(), b.clone()].concat()).await;
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (a, b, away) = (here.url(), there.url(), format!("ws://{away}"));
    let (code, report, _) = between(&[&a, &away, &b], &[]).await;
    assert_eq!(code, Some(2), "{report}");
    assert_same(&here.ids(), &there.ids(), &report.to_string());
    let verdicts: Vec<&Value> =
        report["pairs"].as_array().unwrap().iter().map(|pair| &pair["verdict"]).collect();
    assert_eq!(verdicts, ["incomplete", "equal", "incomplete"], "{report}");
    let error = report["pairs"][0]["error"].as_str().unwrap();
    assert!(error.contains(&away) && error.contains("nothing serves"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_lists_and_does_not_send_is_fetched_from_another() {
    let (shared, withheld) = (notes(215, 100), notes(216, 30));
    let refuses_ids = Some("blocked: no".to_owned());
    let script = Script { refuses_ids, ..Script::default() };
    let silent = Scripted::start(&[shared.clone(), withheld.clone()].concat(), script).await;
    let lacking = TestRelay::holding(&shared).await;
    let (a, b) = (silent.url(), lacking.url());
    let (code, report, _) = between(&[&a, &b], &[]).await;
    assert_eq!(code, Some(2), "{report}");
    let pair = &report["pairs"][0];
    assert_eq!(pair["differs"]["not sent by the peer"], 30, "{report}");
    let holder = TestRelay::holding(&[shared, withheld].concat()).await;
    let c = holder.url();
    let (_, report, _) = between(&[&a, &b, &c], &[]).await;
    assert_same(&lacking.ids(), &holder.ids(), &report.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_builder_relay_and_ours_end_equal() {
    let (shared, ours, theirs) = (notes(217, 300), notes(218, 60), notes(219, 50));
    let here = TestRelay::holding(&[shared.clone(), ours].concat()).await;
    let options = MemoryDatabaseOptions { events: true, max_events: None };
    let database = Arc::new(MemoryDatabase::with_opts(options));
    for json in shared.iter().chain(&theirs) {
        database.save_event(&nostr::Event::from_json(json).unwrap()).await.unwrap();
    }
    let rate_limit = RateLimit { max_reqs: 1_000, notes_per_minute: 1_000_000 };
    let builder = RelayBuilder::default().database(Arc::clone(&database)).rate_limit(rate_limit);
    let there = LocalRelay::new(builder);
    there.run().await.unwrap();
    let (a, b) = (here.url(), there.url().await.to_string());
    let (code, report, _) = between(&[&a, &b], &[]).await;
    assert_eq!((code, &report["equal"]), (Some(0), &true.into()), "{report}");
    let held = database.query(nostr::Filter::new()).await.unwrap();
    let held: BTreeSet<[u8; 32]> = held.into_iter().map(|event| event.id.to_bytes()).collect();
    assert_same(&here.ids(), &held, &report.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn live_events_go_to_all_other_relays() {
    let (shared, late) = (notes(220, 50), notes(221, 12));
    let relays = [
        TestRelay::holding(&shared).await,
        TestRelay::holding(&shared[..20]).await,
        TestRelay::holding(&[]).await,
    ];
    let urls: Vec<String> = relays.iter().map(TestRelay::url).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let mut live = Live::start(&urls);
    let has = |relay: usize, count: usize| relays[relay].ids().len() == count;
    let wait_for = async |count: usize| {
        let deadline = Instant::now() + PATIENCE;
        while !(0..3).all(|relay| has(relay, count)) {
            let held: Vec<usize> = relays.iter().map(|relay| relay.ids().len()).collect();
            assert!(Instant::now() < deadline, "{held:?}, not {count}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    wait_for(50).await;
    for (number, json) in late.iter().enumerate() {
        fill(relays[number % 3].relay.index(), std::slice::from_ref(json));
    }
    wait_for(62).await;
    let pid = live.0.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let status = tokio::task::spawn_blocking(move || live.0.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(2), "an interrupted sync has proven nothing");
}

/// A relay that comes back gets the events it has missed: those passed on meanwhile, and those
/// published before.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_comes_back_is_synced_again() {
    let (shared, late) = (notes(222, 30), notes(223, 8));
    let here = TestRelay::holding(&shared).await;
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = folder.path().join("relay.toml");
    let store = folder.path().join("store.sqlite");
    let text = format!("[relay]\nlisten = \"{port}\"\n[store]\npath = {store:?}\n");
    std::fs::write(&config, text).unwrap();
    let there = RelayProcess::configured(&config);
    let _live = Live::start(&[&here.url(), &format!("ws://{port}")]);
    let count = async |url: &str| {
        let mut client = Client::connect(url).await;
        client.query(&[serde_json::json!({ "limit": 500 })]).await.len()
    };
    let wait_for = async |wanted: usize| {
        let deadline = Instant::now() + PATIENCE;
        while count(&format!("ws://{port}")).await != wanted || here.ids().len() != wanted {
            assert!(Instant::now() < deadline, "not {wanted}, but {}", here.ids().len());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    wait_for(30).await;
    drop(there);
    fill(here.relay.index(), &late[..4]);
    let there = RelayProcess::configured(&config);
    let mut client = there.client().await;
    for json in &late[4..] {
        client.store(&serde_json::from_str(json).unwrap()).await;
    }
    wait_for(38).await;
}

/// Random relays, seed by seed: a pair is equal only if both have the same events, and honest
/// relays end with all events.
#[tokio::test(flavor = "multi_thread")]
async fn random_relays_are_equal_only_with_the_same_events() {
    let mut equal = 0;
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let pool = notes(224 + seed % 4, 120);
        let mut relays = Vec::new();
        for _ in 0..rng.random_range(2..5) {
            let share: f64 = rng.random_range(0.0..1.0);
            let own: Vec<String> =
                pool.iter().filter(|_| rng.random_bool(share)).cloned().collect();
            let unknown = [Unknown::Notice, Unknown::Closed, Unknown::NegErr];
            let reads = rng.random_bool(0.3);
            let script = Script {
                without_negentropy: reads.then(|| unknown[rng.random_range(0..3)]),
                frame_limit_bytes: if rng.random_bool(0.5) { 4_096 } else { 0 },
                events_per_req: if rng.random_bool(0.5) { 40 } else { usize::MAX },
                cut_every: rng.random_bool(0.3).then(|| rng.random_range(130..400)),
                forgets: rng.random_bool(0.2),
                ..Script::default()
            };
            let is_honest = !script.forgets;
            relays.push((Scripted::start(&own, script).await, is_honest));
        }
        let all: BTreeSet<[u8; 32]> = relays.iter().flat_map(|(relay, _)| relay.ids()).collect();
        let between = Between::configured(&SyncConfig::default()).unwrap();
        let named: Vec<BetweenRelay> = relays
            .iter()
            .map(|(relay, _)| BetweenRelay::new(relay.url().parse().unwrap()))
            .collect();
        let options = Options::default();
        let syncing = between.sync(&named, &options, |_, _| {});
        let report = tokio::time::timeout(PATIENCE, syncing).await;
        let report = report.unwrap_or_else(|_| panic!("seed {seed} does not end")).unwrap();
        let context = || format!("seed {seed}: {}", serde_json::to_string(&report).unwrap());
        let mut pairs = report.pairs.iter();
        for (a, (first, _)) in relays.iter().enumerate() {
            for (second, _) in &relays[a + 1..] {
                let is_equal = pairs.next().unwrap().verdict == Verdict::Equal;
                assert!(!is_equal || first.ids() == second.ids(), "{}", context());
            }
        }
        for ((relay, is_honest), found) in relays.iter().zip(&report.relays) {
            assert!(relay.ids().is_subset(&all), "{}", context());
            let is_done = *is_honest && found.complete && report.complete;
            assert!(!is_done || relay.ids() == all, "{}", context());
        }
        equal += usize::from(report.equal);
        let honest = relays.iter().all(|(_, is_honest)| *is_honest);
        assert!(!honest || report.equal || !report.complete, "{}", context());
    }
    assert!(equal > 2, "only {equal} of 12 were equal");
}

#[test]
fn what_does_not_go_with_it_is_refused() {
    let pair = ["ws://127.0.0.1:9", "ws://127.0.0.1:10"];
    for (words, error) in [
        (&["--between", pair[0]][..], "2 to 16 relays"),
        (&["--between", pair[0], "WS://127.0.0.1:9/"], "named twice"),
        (&["--between", pair[0], pair[1], "--store", "x"], "--store"),
        (&["--between", pair[0], pair[1], "--direction", "up"], "--direction"),
    ] {
        let ended = negsync(&[&["sync"], words].concat(), "");
        assert_eq!(ended.status.code(), Some(1), "{words:?}: {ended:?}");
        assert!(ended.stderr.contains(error), "{words:?}: {ended:?}");
    }
}
