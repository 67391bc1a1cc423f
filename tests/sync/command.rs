//! `negsync sync` on the command line.

use super::support::*;
use crate::support::process::negsync;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The ids in the store of a file, after a check by SQLite.
fn ids_in(path: &Path) -> std::collections::BTreeSet<[u8; 32]> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let verdict: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let mut select = connection.prepare("SELECT id FROM event").unwrap();
    let ids = select.query_map([], |row| row.get(0)).unwrap();
    ids.collect::<Result<_, _>>().unwrap()
}

/// Writes events to a file and imports it into a new store.
fn import(folder: &Path, events: &[String]) -> std::path::PathBuf {
    let (file, store) = (folder.join("events.jsonl"), folder.join("store.sqlite"));
    std::fs::write(&file, events.join("\n")).unwrap();
    let paths = [file.to_str().unwrap(), "--store", store.to_str().unwrap()];
    let ended = negsync(&[&["import"], &paths[..]].concat(), "");
    assert!(ended.status.success(), "{ended:?}");
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_and_the_object_tell_what_was_done() {
    let relay = TestRelay::holding(&notes(130, 200)).await;
    let folder = tempfile::tempdir().unwrap();
    let store = import(folder.path(), &notes(131, 100));
    let (store_text, url) = (store.to_str().unwrap().to_owned(), relay.url());
    let run = move |arguments: &[&str]| {
        let all = [&["sync", "--store", &store_text], arguments].concat();
        negsync(&all, "")
    };
    let ended = tokio::task::spawn_blocking(move || {
        for wrong in [
            &[][..],
            &["http://127.0.0.1:1"],
            &[url.as_str(), "--direction", "in"],
            &[url.as_str(), "--filter", "{"],
            &[url.as_str(), "--filter", r#"{"kind":[1]}"#],
            &[url.as_str(), "--nonsense"],
            &[url.as_str(), &format!("{url}/#top")],
            &[url.as_str(), &format!("{}/", url.to_uppercase())],
        ] {
            let ended = run(wrong);
            assert_eq!(ended.status.code(), Some(1), "{wrong:?}: {ended:?}");
            assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{wrong:?}: {ended:?}");
        }
        let dry = run(&[&url, "--dry-run", "--json"]);
        assert_eq!(dry.status.code(), Some(0), "{dry:?}");
        let report: Value = serde_json::from_str(&dry.stdout).unwrap();
        assert_eq!((&report["need"], &report["have"]), (&200.into(), &100.into()), "{report}");
        assert_eq!((&report["stored"], &report["equal"]), (&0.into(), &false.into()), "{report}");
        run(&[&url, "--json"])
    });
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["equal"], true, "{report}");
    for key in ["round_trips", "bytes_up", "bytes_down", "elapsed_ms"] {
        assert!(report[key].is_u64(), "{key}: {report}");
    }
    assert_same(&ids_in(&store), &relay.ids(), "");
    assert_eq!(relay.ids().len(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_tells_the_whole_conversation() {
    let relay = TestRelay::holding(&notes(133, 60)).await;
    let folder = tempfile::tempdir().unwrap();
    let store = import(folder.path(), &notes(134, 40));
    let (store, url) = (store.to_str().unwrap().to_owned(), relay.url());
    let run = move |arguments: &[&str]| {
        negsync(&[&["sync", &url, "--store", &store, "--json"], arguments].concat(), "")
    };
    let ended = tokio::task::spawn_blocking(move || [run(&["--trace"]), run(&[])]).await.unwrap();
    let url = relay.url();
    for (traced, ended) in [true, false].into_iter().zip(ended) {
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        let said: Vec<&str> =
            ended.stderr.lines().filter_map(|line| line.strip_prefix(&format!("{url} "))).collect();
        if !traced {
            assert!(said.is_empty(), "{said:?}");
            continue;
        }
        let count = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(count("< NEG-MSG") as u64, report["round_trips"].as_u64().unwrap(), "{said:?}");
        assert_eq!(count("> NEG-OPEN"), count("> NEG-CLOSE"), "{said:?}");
        assert_eq!((count(r#"< ["EVENT""#), count(r#"> ["EVENT""#)), (60, 40), "{said:?}");
        assert_eq!(count(r#"< ["OK""#), 40, "{said:?}");
        assert_eq!(count(r#"< ["AUTH""#), 1, "{said:?}");
        let first = said.iter().find(|line| line.starts_with("> NEG-OPEN")).unwrap();
        assert!(first.contains(r#"" over {}: "#), "{said:?}");
        assert_eq!(count(">") + count("<"), said.len(), "{said:?}");
        for sentence in ["asks to compare ", "    The relay settles "] {
            assert!(ended.stderr.contains(sentence), "no {sentence:?} in {}", ended.stderr);
        }
    }
}

#[test]
fn a_relay_that_is_not_there_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let store = import(folder.path(), &notes(132, 1));
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}", reserved.local_addr().unwrap());
    drop(reserved);
    let ended = negsync(&["sync", "--store", store.to_str().unwrap(), &url, "--json"], "");
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["complete"], false, "{report}");
    assert!(report["error"].as_str().unwrap().contains("cannot connect"), "{report}");
}

/// `NEGSYNC_KILLS` sets the number; scripts/kill-sync runs fifty.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_was_killed_is_taken_up_again() {
    let kills = std::env::var("NEGSYNC_KILLS").map_or(4, |text| text.parse().unwrap());
    let (shared, ours, theirs) = (notes(140, 500), notes(141, 1_500), notes(142, 1_500));
    let (ours, theirs) = ([shared.clone(), ours].concat(), [shared, theirs].concat());
    for seed in 0..kills {
        let relay = TestRelay::holding(&theirs).await;
        let folder = tempfile::tempdir().unwrap();
        let store = import(folder.path(), &ours);
        let start = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
            command.args(["sync", &relay.url(), "--json", "--store"]).arg(&store);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..rng.random_range(1..4) {
            let mut child = start();
            // The seed determines the time of the kill, but not the state at that time.
            tokio::time::sleep(Duration::from_millis(rng.random_range(1..600))).await;
            child.kill().unwrap();
            child.wait().unwrap();
            let kept = ids_in(&store);
            assert!(kept.len() >= 2_000, "seed {seed}: only {} are left", kept.len());
        }
        let status = tokio::task::spawn_blocking({
            let mut child = start();
            move || child.wait().unwrap()
        });
        assert_eq!(status.await.unwrap().code(), Some(0), "seed {seed}");
        assert_eq!(relay.ids().len(), 3_500, "seed {seed}");
        assert_same(&ids_in(&store), &relay.ids(), &format!("seed {seed}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_cannot_be_written_is_an_error_and_one_that_nobody_reads_is_none() {
    let relay = TestRelay::holding(&notes(135, 10)).await;
    let folder = tempfile::tempdir().unwrap();
    let store = import(folder.path(), &notes(136, 10));
    let url = relay.url();
    let ran = tokio::task::spawn_blocking(move || {
        ["sync", "diff"].map(|verb| {
            let run = |stdout: Stdio| {
                let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
                command.args([verb, &url, "--json", "--store"]).arg(&store);
                command.stdout(stdout).output().unwrap()
            };
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            (run(full.into()), run(writer.into()))
        })
    });
    for (full, closed) in ran.await.unwrap() {
        let words = String::from_utf8_lossy(&full.stderr);
        assert_eq!(full.status.code(), Some(1), "{words}");
        assert!(words.contains("cannot write to standard output"), "{words}");
        assert!(closed.status.success(), "{closed:?}");
    }
}
