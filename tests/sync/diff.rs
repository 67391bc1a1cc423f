//! Differences by day, kind and author, with every kind of peer.

use super::scripted::{Script, Scripted, Unknown};
use super::support::*;
use crate::support::process::negsync;
use negsync::store::Event;
use negsync::sync::{By, Diff, DiffOptions, Key, Method, Trace, diff};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Events of several kinds and authors over some weeks, with days without events.
fn events(seed: u64, count: usize) -> Vec<String> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|n| {
            let week = rng.random_range(0..4u64) * 11 * 86_400;
            let at = START + week + rng.random_range(0..3 * 86_400);
            let kind = [1, 6, 7, 1_111][rng.random_range(0..4)];
            let author = Author::new(rng.random_range(1..6));
            event(&author, kind, at, json!([]), &format!("{seed} {n}"))
        })
        .collect()
}

/// The number of events on either side, row by row.
type Rows = BTreeMap<Key, (u64, u64)>;

/// The rows for `ours` and `theirs`, which have no event in common.
fn expected(by: By, ours: &[String], theirs: &[String], matches: impl Fn(&Event) -> bool) -> Rows {
    let mut rows = Rows::new();
    let sides = [(ours, true), (theirs, false)];
    for (event, is_ours) in sides.iter().flat_map(|(side, is)| side.iter().map(|e| (e, *is))) {
        let event = Event::parse(event).unwrap();
        if matches(&event) {
            let row = rows.entry(key(by, &event)).or_default();
            if is_ours { row.0 += 1 } else { row.1 += 1 }
        }
    }
    rows
}

fn key(by: By, event: &Event) -> Key {
    match by {
        By::Day => Key::Day(event.item().created_at / 86_400 * 86_400),
        By::Kind => Key::Kind(event.kind()),
        By::Author => Key::Author(*event.pubkey()),
    }
}

async fn compared(store: &TestStore, url: &str, by: By, json: &str) -> Diff {
    let asked = Arc::new(AtomicBool::new(false));
    let hears = Arc::clone(&asked);
    let trace = Trace::new(move |_, text| {
        // One REQ for one event finds out whether the peer shows private kinds.
        let asks = text.starts_with(r#"["REQ""#) && !text.contains(r#""kinds":[4"#);
        hears.fetch_or(asks, Ordering::Relaxed);
    });
    let options = DiffOptions::default().by(by).filter(filter(json)).trace(trace);
    let found = diff(&store.local, url, &options, |_| {});
    let found = tokio::time::timeout(PATIENCE, found).await.expect("no end").unwrap();
    let by_ids_alone = by == By::Day && found.method == Method::Negentropy;
    assert!(!(by_ids_alone && asked.load(Ordering::Relaxed)), "an event was asked for: {found:?}");
    found
}

fn check(found: &Diff, expected: &Rows, about: &str) {
    let rows: Rows = found.rows.iter().map(|row| (row.key, (row.have, row.need))).collect();
    assert_eq!(&rows, expected, "{about}: {found:?}");
    let have: u64 = expected.values().map(|row| row.0).sum();
    let need: u64 = expected.values().map(|row| row.1).sum();
    assert_eq!((found.have, found.need, found.unseen), (have, need, 0), "{about}: {found:?}");
    assert_eq!(found.equal, have + need == 0, "{about}: {found:?}");
    assert_eq!(found.error, None, "{about}");
}

const ALL: [By; 3] = [By::Day, By::Kind, By::Author];

#[tokio::test(flavor = "multi_thread")]
async fn every_difference_stands_in_its_row_and_nothing_moves() {
    for (seed, [shared, ours, theirs]) in
        [(200, [2_000, 150, 250]), (210, [0, 0, 400]), (220, [0, 300, 0]), (230, [500, 0, 0])]
    {
        let [shared, ours, theirs] =
            [(0, shared), (1, ours), (2, theirs)].map(|(n, count)| events(seed + n, count));
        let store = TestStore::new(&[shared.clone(), ours.clone()].concat());
        let relay = TestRelay::holding(&[shared, theirs.clone()].concat()).await;
        let (ids, their_ids) = (store.ids(), relay.ids());
        for by in ALL {
            let found = compared(&store, &relay.url(), by, "{}").await;
            check(&found, &expected(by, &ours, &theirs, |_| true), &format!("{seed} {by:?}"));
            assert_eq!(found.method, Method::Negentropy);
            let json = r#"{"kinds":[1,7]}"#;
            let found = compared(&store, &relay.url(), by, json).await;
            let some = expected(by, &ours, &theirs, |event| [1, 7].contains(&event.kind()));
            check(&found, &some, &format!("{seed} {by:?} {json}"));
        }
        assert_same(&store.ids(), &ids, "ours");
        assert_same(&relay.ids(), &their_ids, "theirs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_refuse_cut_or_do_not_reconcile_are_told_by_day_too() {
    let (shared, ours, theirs) = (events(240, 800), events(241, 90), events(242, 110));
    let store = TestStore::new(&[shared.clone(), ours.clone()].concat());
    let held = [shared, theirs.clone()].concat();
    let small = TestRelay::holding_with(&held, |config| {
        config.negentropy.max_sync_events = 100;
    })
    .await;
    let tight = Script { frame_limit_bytes: 4_096, ..Script::default() };
    let tight = Scripted::start(&held, tight).await;
    let hangs_up = Script { frame_limit_bytes: 50_000, cut_every: Some(4), ..Script::default() };
    let hangs_up = Scripted::start(&held, hangs_up).await;
    let old = Script {
        without_negentropy: Some(Unknown::Notice),
        events_per_req: 100,
        ..Script::default()
    };
    let old = Scripted::start(&held, old).await;
    for (url, method) in [
        (small.url(), Method::Negentropy),
        (tight.url(), Method::Negentropy),
        (hangs_up.url(), Method::Negentropy),
        (old.url(), Method::Req),
    ] {
        for by in ALL {
            if by != By::Day && url == hangs_up.url() {
                // It ends each connection after fewer messages than there are events to request.
                continue;
            }
            let found = compared(&store, &url, by, "{}").await;
            check(&found, &expected(by, &ours, &theirs, |_| true), &format!("{url} {by:?}"));
            assert_eq!(found.method, method, "{found:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_tells_by_exit_code_table_object_and_drawing() {
    let (shared, ours, theirs) = (events(250, 300), events(251, 20), events(252, 30));
    let relay = TestRelay::holding(&[shared.clone(), theirs.clone()].concat()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (store, lines, svg) = (path("store.sqlite"), path("events.jsonl"), path("diff.svg"));
    std::fs::write(&lines, [shared, ours.clone()].concat().join("\n")).unwrap();
    let url = relay.url();
    let rows = expected(By::Day, &ours, &theirs, |_| true);
    tokio::task::spawn_blocking(move || {
        assert!(negsync(&["import", &lines, "--store", &store], "").status.success());
        let run =
            |arguments: &[&str]| negsync(&[&["diff", "--store", &store], arguments].concat(), "");
        for wrong in
            [&[][..], &["http://127.0.0.1"], &[&url, "--by", "week"], &[&url, "--filter", "x"]]
        {
            let ended = run(wrong);
            assert_eq!(ended.status.code(), Some(1), "{wrong:?}: {ended:?}");
            assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{wrong:?}: {ended:?}");
        }

        // Comparing a missing store does not create it.
        let slip = format!("{store}x");
        let ended = negsync(&["diff", &url, "--store", &slip], "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains("there is no store"), "{ended:?}");
        assert!(!std::path::Path::new(&slip).exists());

        let differs = run(&[&url, "--svg", &svg]);
        assert_eq!(differs.status.code(), Some(3), "{differs:?}");
        let lines: Vec<&str> = differs.stdout.lines().collect();
        assert_eq!(lines.len(), rows.len() + 2, "{differs:?}");
        for (line, (key, (have, need))) in lines[1..].iter().zip(&rows) {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[..3], [key.to_string(), have.to_string(), need.to_string()], "{line}");
            assert!(line.contains('│') && !line.contains('\x1b'), "{line}");
        }
        assert!(lines[lines.len() - 1].contains(": 20 only here, 30 only there; "), "{differs:?}");
        let drawing = std::fs::read_to_string(&svg).unwrap();
        let drawn = |class: &str| drawing.matches(&format!(r#"<rect class="{class}" x="#)).count();
        let sides =
            |side: fn(&(u64, u64)) -> u64| rows.values().filter(|row| side(row) > 0).count();
        // One of each is in the legend.
        assert_eq!(drawn("have"), sides(|row| row.0) + 1, "{drawing}");
        assert_eq!(drawn("need"), sides(|row| row.1) + 1, "{drawing}");

        for by in ["day", "kind", "author"] {
            let ended = run(&[&url, "--json", "--by", by, "--svg", &svg]);
            let object: Value = serde_json::from_str(&ended.stdout).unwrap();
            assert_eq!(ended.status.code(), Some(3), "{ended:?}");
            assert_eq!((&object["by"], &object["have"]), (&by.into(), &20.into()), "{object}");
            let sum = |side: &str| -> u64 {
                let rows = object["rows"].as_array().unwrap();
                rows.iter().map(|row| row[side].as_u64().unwrap()).sum()
            };
            assert_eq!((sum("have"), sum("need")), (20, 30), "{object}");
            let drawing = std::fs::read_to_string(&svg).unwrap();
            assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"), "{drawing}");
        }

        assert_eq!(run(&[&url, "--filter", r#"{"kinds":[30]}"#]).status.code(), Some(0));
        let synced = negsync(&["sync", &url, "--store", &store], "");
        assert!(synced.status.success(), "{synced:?}");
        let equal = run(&[&url]);
        assert_eq!(equal.status.code(), Some(0), "{equal:?}");
        assert_eq!(equal.stdout.lines().count(), 1, "{equal:?}");
        assert!(equal.stdout.contains(": equal; "), "{equal:?}");

        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let unknown = run(&[&format!("ws://{nobody}")]);
        assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
        assert!(unknown.stdout.contains("comparison failed"), "{unknown:?}");
    })
    .await
    .unwrap();
}
