//! Every command on a store in a PostgreSQL database, also beside relays that run on it: it works,
//! or is refused with a hint at the alternative. And `negsync copy` between the engines.

use super::import::{import, lines};
use crate::support::events::{EPOCH, generate, unix_now};
use crate::support::process::{Ended, RelayProcess, exported, negsync};
use crate::support::{Author, id_of};
use negsync_testserver::TestServer;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn succeeded(ended: Ended) -> String {
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_on_a_database_or_says_what_does() {
    let Some(server) = TestServer::start() else { return };
    let url = server.url();
    let (author, now) = (Author::new(1), unix_now());
    let notes: Vec<Value> = (0..20).map(|age| author.note(now - age, "a note")).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (rules, bans) = (file("rules.toml"), file("bans"));
    std::fs::write(&rules, format!("[moderation]\nfile = \"{bans}\"\n")).unwrap();
    // Another store, with all of the notes, and a relay on the database.
    let other = folder.path().join("other.sqlite");
    succeeded(import(&other, &[], &lines(&notes)));
    let (relay, peer) = (RelayProcess::start(Path::new(url)), RelayProcess::start(&other));
    let mut client = relay.client().await;
    let id = id_of(&notes[0]);
    let (copied, key) = (file("copied.sqlite"), author.key());
    let run =
        |command: &[&str]| negsync(&[command, &["--store", url, "--config", &rules]].concat(), "");
    let works = |command: &[&str], said: &str| {
        let ended = run(command);
        // `diff` reports differences by its exit code.
        let is_done = ended.status.success() || ended.status.code() == Some(3);
        assert!(is_done && ended.stdout.contains(said), "{command:?}: {ended:?}");
    };
    let refused = |command: &[&str], instead: &str| {
        let ended = run(command);
        assert!(
            !ended.status.success() && ended.stderr.contains(instead),
            "{command:?}: {ended:?}"
        );
    };
    works(&["export"], "");
    works(&["sync", peer.url()], "20 needed, 20 stored");
    works(&["diff", peer.url()], "equal");
    works(&["export", "--filter", r#"{"limit":1}"#], id);
    refused(&["export", "--since-last", &bans], "--filter");
    works(&["neg-open", "{}"], "NEG-OPEN");
    works(&["delete", "--id", id, "--dry-run"], "1 event");
    works(&["delete", "--id", id], "1 event");
    works(&["diff", peer.url()], "0 only here, 1 only there");
    works(&["undelete", "--id", id], "1 event");
    works(&["sync", peer.url()], "1 needed, 1 stored");
    works(&["ban", &key], "20 stored events kept");
    works(&["bans"], &key);
    works(&["ban", &key, "--delete"], "20 events");
    works(&["unban", &key], "1 ban");
    works(&["undelete", "--all"], "20 events");
    refused(&["compact"], "VACUUM");
    refused(&["backup", &copied], "pg_dump");
    refused(&["restore", &copied], "pg_restore");
    works(&["check"], "nothing is wrong");
    works(&["config", "show"], "url = \"postgres://");
    let imported = import(Path::new(url), &[], &lines(&notes));
    assert!(imported.stdout.contains("20 stored"), "{imported:?}");
    // The relay on the database shows all of it.
    assert_eq!(client.count(&[json!({})]).await, 20);
    assert_eq!(exported(url), exported(other.to_str().unwrap()));

    refused(&["retention"], "[retention] has no rules");
    let text = "[retention]\nrules = [{ max_per_author = 5 }, { max_age_s = 86400 }]\n";
    std::fs::write(&rules, text).unwrap();
    works(&["retention", "--dry-run"], "max_per_author = 5: 15 events would go");
    // The rules are not in force after the dry run.
    client.store(&Author::new(2).note(now - 90_000, "old")).await;
    assert_eq!(client.count(&[json!({})]).await, 21);
    works(&["retention"], "max_per_author = 5: 15 events went");
    assert_eq!(client.count(&[json!({})]).await, 5);
    // The relay was started without rules and uses those of the database.
    let past = (false, "blocked: retention: older than what this relay keeps".to_owned());
    assert_eq!(client.publish(&notes[19]).await, past);
    assert_eq!(client.publish(&author.note(now - 90_000, "too old")).await, past);
    works(&["sync", peer.url()], "0 stored");
    assert_eq!(client.count(&[json!({})]).await, 5);
    std::fs::write(&rules, "[retention]\nstore_mb = 5\n").unwrap();
    refused(&["retention"], "store_mb");
    refused(&["sync", peer.url()], "max_age_s");
}

/// Events of all kinds: replaced, deleted, private, and removed by the operator.
fn filled(store: &str) -> String {
    let mut events = generate(81, 400);
    let author = Author::new(7);
    for number in 0..60 {
        let to = json!([["p", Author::new(8).key()]]);
        events.push(author.event(1_059, EPOCH + number, to.clone(), "wrapped"));
        events.push(author.event(4, EPOCH + number, to, "letter"));
    }
    let gone = author.note(EPOCH, "removed by the operator");
    events.push(gone.clone());
    succeeded(import(Path::new(store), &[], &lines(&events)));
    succeeded(negsync(&["delete", "--store", store, "--id", id_of(&gone)], ""));
    lines(&events)
}

#[test]
fn check_finds_whatever_is_changed_in_a_database() {
    let Some(server) = TestServer::start() else { return };
    let url = server.url();
    filled(url);
    let checked = || -> Value {
        let ended = negsync(&["check", "--store", url, "--json"], "");
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"))
    };
    let mut last = checked();
    assert_eq!(last["sound"], true, "{last}");
    assert!(last["events"].as_u64() > Some(300) && last["tags"].as_u64() > Some(300), "{last}");
    let one = "(SELECT id FROM negsync.event WHERE kind = 1 ORDER BY id LIMIT 1)";
    for (what, damage) in [
        ("event", format!("UPDATE negsync.event SET json = 'x' WHERE id = {one}")),
        ("column", "UPDATE negsync.event SET expires_at = 7 WHERE kind = 4".to_owned()),
        (
            "signature",
            "UPDATE negsync.event SET json = regexp_replace(json, '\"sig\": *\"..', '\"sig\":\"00')
             WHERE kind = 4"
                .to_owned(),
        ),
        ("tag", "DELETE FROM negsync.tag WHERE kind = 1059".to_owned()),
        (
            "tag",
            "INSERT INTO negsync.tag SELECT '\\x0102', created_at, id, kind FROM negsync.event LIMIT 3"
                .to_owned(),
        ),
        ("rule", "DELETE FROM negsync.tombstone".to_owned()),
        (
            "rule",
            "INSERT INTO negsync.operator_tombstone (id, at)
             SELECT id, 1 FROM negsync.event WHERE kind = 1059"
                .to_owned(),
        ),
        (
            "rule",
            "INSERT INTO negsync.vanished SELECT pubkey, 9000000000, FALSE FROM negsync.event
             WHERE kind = 4 LIMIT 1"
                .to_owned(),
        ),
        ("feed", "UPDATE negsync.head SET mark = mark + 1".to_owned()),
        (
            "feed",
            "INSERT INTO negsync.gone SELECT seq + 1, id, created_at FROM negsync.event LIMIT 1"
                .to_owned(),
        ),
    ] {
        negsync_testserver::run(url, &damage).unwrap();
        let now = checked();
        let count = |checked: &Value| checked["found"][what].as_u64().unwrap_or_default();
        // An unreadable row hides its other findings.
        assert!(count(&now) > count(&last), "{damage}: {last} {now}");
        last = now;
    }
}

#[test]
fn a_store_is_copied_from_engine_to_engine_and_proven_equal() {
    let Some(server) = TestServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (first, second, third) = (file("first.sqlite"), server.database(), file("third.sqlite"));
    let all = filled(&first);
    for (from, to) in [(&first, &second), (&second, &third)] {
        let report = succeeded(negsync(&["copy", from, to, "--json"], ""));
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!((&report["equal"], &report["removed_by_operator"]), (&json!(true), &json!(1)));
        assert_eq!(exported(from), exported(to));
        let again = succeeded(negsync(&["copy", from, to], ""));
        assert!(again.starts_with("0 events copied"), "{again}");
    }
    let checked = negsync(&["check", "--store", &third], "");
    assert!(checked.status.success(), "{checked:?}");
    // Events that were deleted, replaced or removed in the first store are refused by the last.
    succeeded(import(Path::new(&third), &[], &all));
    assert_eq!(exported(&first), exported(&third));
}

#[test]
fn a_copy_says_what_differs() {
    let Some(server) = TestServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("first.sqlite");
    let note = |text: &str| lines(&[Author::new(1).note(EPOCH, text)]);
    succeeded(import(&file, &[], &note("here")));
    succeeded(import(Path::new(server.url()), &[], &note("there")));
    let ended = negsync(&["copy", file.to_str().unwrap(), server.url()], "");
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let differs = "0 events only in the first, 1 only in the second";
    assert!(ended.stdout.contains(differs), "{ended:?}");
    let itself = negsync(&["copy", server.url(), server.url()], "");
    assert!(itself.stderr.contains("one store"), "{itself:?}");
}

/// Killed at random times and repeated, it ends like an uninterrupted copy.
#[test]
fn a_copy_that_is_killed_goes_on() {
    let Some(server) = TestServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first.sqlite");
    let first = first.to_str().unwrap();
    let seed = 82;
    let mut rng = StdRng::seed_from_u64(seed);
    let events: Vec<Value> =
        (0..3_000).map(|number| Author::new(1).note(EPOCH + number, "a note")).collect();
    succeeded(import(Path::new(first), &[], &lines(&events)));
    let third = folder.path().join("third.sqlite");
    for to in [server.url(), third.to_str().unwrap()] {
        let mut broken_off = 0;
        for _ in 0..6 {
            let mut copying = Command::new(env!("CARGO_BIN_EXE_negsync"))
                .args(["copy", first, to])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_millis(rng.random_range(0..500)));
            broken_off += u32::from(copying.try_wait().unwrap().is_none());
            copying.kill().unwrap();
            copying.wait().unwrap();
        }
        println!("seed {seed}: {broken_off} of 6 copies were killed under way");
        let copied = succeeded(negsync(&["copy", first, to], ""));
        assert!(copied.contains("equal: both stores hold the same 3000 events"), "{copied}");
        assert_eq!(exported(first), exported(to));
    }
}
