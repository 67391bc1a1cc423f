//! Faults of the machine, with the real binary: the errors, the functions that continue, and the
//! recovery once the cause is gone.

use crate::support::client::{Client, PATIENCE};
use crate::support::disk::Disk;
use crate::support::negentropy_client::neg_ids;
use crate::support::process::{RelayProcess, negsync};
use crate::support::{Author, TestRelay, engine, events, id_of, model};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use serde_json::{Value, json};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Refusals in a row that mean the disk is full.
const REFUSED_IN_A_ROW: usize = 200;
/// Above the capacity of every disk that a test creates.
const MOST_EVENTS: usize = 20_000;

/// Notes of many sizes, all different.
struct Notes {
    author: Author,
    rng: StdRng,
    made: u64,
}

impl Notes {
    fn new(seed: u64) -> Self {
        Self { author: Author::new(1), rng: StdRng::seed_from_u64(seed), made: 0 }
    }

    fn take(&mut self, count: usize) -> Vec<Value> {
        let mut note = || {
            self.made += 1;
            let bytes = [10, 1_000, 60_000][self.rng.random_range(0..3)];
            let bytes = self.rng.random_range(0..bytes);
            self.author.note(events::EPOCH + self.made, &"x".repeat(bytes))
        };
        (0..count).map(|_| note()).collect()
    }
}

/// The events with OK true, and all published ones.
#[derive(Default)]
struct Account {
    acknowledged: Vec<Value>,
    refused: Vec<Value>,
}

impl Account {
    /// Publishes until all events are refused. Every refusal must report a fault of the relay.
    async fn publish_until_refused(&mut self, client: &mut Client, notes: &mut Notes) -> String {
        let (mut in_a_row, mut published, mut said) = (0, 0, String::new());
        while in_a_row < REFUSED_IN_A_ROW {
            assert!(published < MOST_EVENTS, "nothing was refused");
            let batch = notes.take(50);
            let outcomes = client.publish_all(&batch).await;
            for event in batch {
                let (accepted, text) = &outcomes[id_of(&event)];
                published += 1;
                if *accepted {
                    in_a_row = 0;
                    self.acknowledged.push(event);
                } else {
                    assert!(text.starts_with("error: "), "{text}");
                    in_a_row += 1;
                    said.clone_from(text);
                    self.refused.push(event);
                }
            }
        }
        said
    }

    /// REQ, COUNT and NEG show exactly the acknowledged events.
    async fn check(&self, client: &mut Client, when: &str) {
        let expected = model::ids(&model::kept(&self.acknowledged, events::unix_now()));
        assert_eq!(neg_ids(client, &json!({})).await, expected, "{when}");
        assert_eq!(client.count(&[json!({ "kinds": [1] })]).await, expected.len() as u64, "{when}");
        let found = model::ids(&client.query(&[json!({})]).await);
        assert_eq!(found, expected, "{when}");
    }
}

/// Checks that the store is sound and contains these events.
fn check_store(store: &Path, expected: &[Value]) {
    let connection = Connection::open(store).unwrap();
    let verdict: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    drop(connection);
    check_export(store, expected);
}

fn check_export(store: &Path, expected: &[Value]) {
    let exported = negsync(&["export", "--store", store.to_str().unwrap()], "");
    let exported: Vec<Value> =
        exported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(model::ids(&exported), model::ids(&model::kept(expected, events::unix_now())));
}

/// A store on a full disk, and its recovery: `fill` takes the free space, `free` returns some.
async fn run_full(
    relay: RelayProcess,
    store: &Path,
    fault: &str,
    fill: impl Fn(&RelayProcess),
    free: impl Fn(&RelayProcess),
) {
    let mut client = relay.client().await;
    let (mut account, mut notes) = (Account::default(), Notes::new(1));
    let due = events::unix_now() + 4;
    let tags = json!([["expiration", due.to_string()]]);
    account.acknowledged.push(notes.author.event(1, events::EPOCH, tags, "due while it is full"));
    client.store(&account.acknowledged[0]).await;
    let first = notes.take(200);
    assert!(client.publish_all(&first).await.values().all(|(accepted, _)| *accepted));
    account.acknowledged.extend(first);
    fill(&relay);
    let said = account.publish_until_refused(&mut client, &mut notes).await;
    assert_eq!(said, format!("error: {fault}"));
    account.check(&mut client, "while it is full").await;
    let until_full = account.acknowledged.len();
    // Events that expire now cannot be removed, and are in no answer and no set nevertheless.
    while events::unix_now() < due {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    account.check(&mut client, "when an event has expired").await;
    account.check(&mut relay.client().await, "on a new connection").await;
    let refused = account.refused.len();
    assert!(refused >= REFUSED_IN_A_ROW);

    free(&relay);
    let freed = Instant::now();
    let again = client.publish_all(&account.refused).await;
    let resumed = freed.elapsed();
    assert!(again.values().all(|(accepted, _)| *accepted), "{again:?}");
    account.acknowledged.append(&mut account.refused);
    account.check(&mut client, "when there is room again").await;
    let more = notes.take(200);
    assert!(client.publish_all(&more).await.values().all(|(accepted, _)| *accepted));
    account.acknowledged.extend(more);
    relay.signal("KILL");
    relay.ended();
    check_store(store, &account.acknowledged);
    let relay = RelayProcess::start(store);
    account.check(&mut relay.client().await, "after kill -9").await;
    relay.signal("TERM");
    let (status, log) = relay.ended();
    assert!(status.success(), "{log}");
    check_store(store, &account.acknowledged);
    let events = account.acknowledged.len();
    println!(
        "{fault}: {until_full} events until then, {refused} refused with `{said}` and taken \
         {:.1} s after there was room; {events} acknowledged, 0 missing",
        resumed.as_secs_f64()
    );
}

/// scripts/disk-full runs only this test.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_64_mb() {
    let Some(disk) = Disk::mount(64) else { return };
    let store = disk.path().join("events.sqlite");
    disk.fill("others", 24 << 20);
    let relay = RelayProcess::start(&store);
    run_full(relay, &store, "the disk is full", |_| {}, |_| disk.remove("others")).await;
}

/// Events that cannot be stored now are requested again later by the same process.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_into_a_full_disk_is_made_up_for_once_there_is_room() {
    let Some(disk) = Disk::mount(16) else { return };
    let peer = TestRelay::start().await;
    let config = disk.path().join("relay.toml");
    let section = format!("[[peer]]\nurl = \"{}\"\ninterval_s = 1\n", peer.url());
    std::fs::write(&config, section).unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    let store = disk.path().join("events.sqlite");
    let relay = RelayProcess::start_by(command, &store, &["--config", config.to_str().unwrap()]);
    let mut client = relay.client().await;
    assert!(neg_ids(&mut client, &json!({})).await.is_empty());
    disk.fill("others", 32 << 20);
    let held = Notes::new(8).take(200);
    peer.client().await.publish_all(&held).await;
    Account::default().publish_until_refused(&mut client, &mut Notes::new(9)).await;
    disk.remove("others");
    let expected = model::ids(&held);
    let deadline = Instant::now() + 3 * PATIENCE;
    while !neg_ids(&mut client, &json!({})).await.is_superset(&expected) {
        assert!(Instant::now() < deadline, "the sync was not taken up again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// By a limit of the process instead of the disk: needs no root, and is another error.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_refuses_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let mut command = Command::new("sh");
    // The accompanying signal would end the process.
    command.args(["-c", r#"trap "" XFSZ; exec "$@""#, "sh", env!("CARGO_BIN_EXE_negsync")]);
    let relay = RelayProcess::start_by(command, &store, &[]);
    let limit = |relay: &RelayProcess| relay.limit("fsize", &(8 << 20).to_string());
    let unlimit = |relay: &RelayProcess| relay.limit("fsize", "unlimited");
    run_full(relay, &store, "the disk cannot be read or written", limit, unlimit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_another_program_writes_to_is_read_on_and_written_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let relay = RelayProcess::start(&store);
    let (mut client, mut notes) = (relay.client().await, Notes::new(2));
    let mut account = Account { acknowledged: notes.take(10), ..Account::default() };
    client.publish_all(&account.acknowledged).await;
    let other = Connection::open(&store).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let event = notes.take(1).remove(0);
    client.send(&json!(["EVENT", event])).await;
    account.check(&mut relay.client().await, "while another program writes").await;
    let text = "error: another program holds the store; try again";
    client.expect(json!(["OK", event["id"], false, text])).await;
    other.execute_batch("ROLLBACK").unwrap();
    client.store(&event).await;
    account.acknowledged.push(event);
    account.check(&mut client, "afterwards").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_open_connections_are_served_and_new_ones_as_soon_as_there_are_some() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let relay = RelayProcess::start(&store);
    let (mut one, mut two) = (relay.client().await, relay.client().await);
    let mut notes = Notes::new(3);
    let mut account = Account { acknowledged: notes.take(20), ..Account::default() };
    one.publish_all(&account.acknowledged).await;
    relay.limit("nofile", &relay.free_descriptor().to_string());
    let url = relay.url().to_owned();
    let waiting = tokio::spawn(async move { Client::connect(&url).await });
    for client in [&mut one, &mut two] {
        let more = notes.take(20);
        assert!(client.publish_all(&more).await.values().all(|(accepted, _)| *accepted));
        account.acknowledged.extend(more);
        account.check(client, "without descriptors").await;
    }
    // Many concurrent readers, each of which needs a connection.
    for client in [&mut one, &mut two] {
        for number in 0..20 {
            client.send(&json!(["REQ", format!("r{number}"), { "limit": 1 }])).await;
        }
        for _ in 0..40 {
            let message = client.next("an EVENT or EOSE").await;
            assert!(message[0] == "EVENT" || message[0] == "EOSE", "{message}");
        }
        for number in 0..20 {
            client.send(&json!(["CLOSE", format!("r{number}")])).await;
        }
    }
    assert!(!waiting.is_finished(), "the limit did not keep the connection out");
    relay.limit("nofile", "1024");
    let mut three = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    account.check(&mut three, "on the connection that waited").await;
    relay.signal("TERM");
    let (_, log) = relay.ended();
    assert_eq!(log.matches("no connection can be accepted").count(), 1, "{log}");
}

/// Shells start with a lower limit on open files than the system allows.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_open_files_is_raised_as_far_as_it_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64:1024", env!("CARGO_BIN_EXE_negsync")]);
    let relay = RelayProcess::start_by(command, &folder.path().join("events.sqlite"), &[]);
    let mut clients = Vec::new();
    for _ in 0..90 {
        clients.push(relay.client().await);
    }
    for client in &mut clients {
        client.fence().await;
    }
    // 4,096 connections are configured.
    let line = relay.logged("limit of open files too low for connections.in_all");
    assert!(line.contains("limit=1024") && line.contains("ulimit -n"), "{line}");
}

/// tokio panics where it cannot start its own threads.
#[test]
fn a_start_without_threads_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let mut command = Command::new("prlimit");
    command.args(["--nproc=1", env!("CARGO_BIN_EXE_negsync"), "relay", "--store"]).arg(store);
    let uid = folder.path().metadata().unwrap().uid();
    if uid == 0 {
        std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
        command.uid(65_534).current_dir("/");
    }
    let ended = command.args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && log.contains("cannot start "), "{log}");
    assert!(log.contains("ulimit -u") && !log.contains("panicked"), "{log}");
}

/// Each read needs a thread, and no more can be started: as under a limit on processes, or with
/// `TasksMax` of systemd.
#[tokio::test(flavor = "multi_thread")]
async fn without_threads_clients_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    // Root has no limit on processes.
    let uid = folder.path().metadata().unwrap().uid();
    if uid == 0 {
        std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
        command.uid(65_534).current_dir("/");
    }
    let relay = RelayProcess::start_by(command, &folder.path().join("events.sqlite"), &[]);
    relay.limit("nproc", "1");
    let mut notes = Notes::new(8);
    let mut account = Account::default();
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(relay.client().await);
    }
    for client in &mut clients {
        let more = notes.take(20);
        assert!(client.publish_all(&more).await.values().all(|(accepted, _)| *accepted));
        account.acknowledged.extend(more);
    }
    // All at the same time, each with a set and long messages.
    let asking = clients.into_iter().map(|mut client| {
        let account = &account;
        async move { account.check(&mut client, "without threads").await }
    });
    futures_util::future::join_all(asking).await;
    relay.signal("TERM");
    let (status, log) = relay.ended();
    assert!(status.success() && !log.contains("panicked"), "{log}");
}

#[test]
fn a_store_where_nothing_can_be_written_is_refused_by_who_writes_and_read_by_who_reads() {
    let Some(disk) = Disk::mount(8) else { return };
    let store = disk.path().join("events.sqlite");
    let path = store.to_str().unwrap();
    let sent: Vec<Value> = Notes::new(4).take(50);
    let text = sent.iter().map(|event| format!("{event}\n")).collect::<String>();
    assert!(negsync(&["import", "--store", path], &text).status.success());
    disk.set_read_only(true);
    for arguments in [&["relay", "--listen", "127.0.0.1:0"][..], &["import"]] {
        let ended = negsync(&[arguments, &["--store", path]].concat(), "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(path) && ended.stderr.contains("Read-only"), "{ended:?}");
    }
    check_export(&store, &sent);
    disk.set_read_only(false);
    assert!(negsync(&["import", "--store", path], &text).stdout.contains("50 duplicate"));
}

/// A user reads the store of a relay that runs as another user.
#[test]
fn a_store_is_read_by_one_who_may_not_write_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let path = store.to_str().unwrap();
    let sent: Vec<Value> = Notes::new(5).take(20);
    let text = sent.iter().map(|event| format!("{event}\n")).collect::<String>();
    assert!(negsync(&["import", "--store", path], &text).status.success());
    for name in ["events.sqlite", "events.sqlite.lock"] {
        let readable = Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.path().join(name), readable).unwrap();
    }
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).unwrap();
    let as_other = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        // Root may write everywhere; any other user is used as is.
        if store.metadata().unwrap().uid() == 0 {
            command.uid(65_534).current_dir("/");
        }
        command.args(arguments).args(["--store", path]).output()
    };
    let Ok(checked) = as_other(&["check"]) else {
        let _ = writeln!(std::io::stderr(), "\n!!!! SKIPPED: nobody else may run the program");
        return;
    };
    let exported = as_other(&["export"]).unwrap();
    let refused = as_other(&["import"]).unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(exported.stdout.split(|byte| *byte == b'\n').count(), 21, "{exported:?}");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && words.contains("give the directory"), "{words}");
}

/// SQLite's files beside the store cannot be created.
#[test]
fn on_a_full_disk_who_writes_is_told_so_at_the_start_and_who_reads_reads() {
    let Some(disk) = Disk::mount(4) else { return };
    let store = disk.path().join("events.sqlite");
    let path = store.to_str().unwrap();
    let sent: Vec<Value> = Notes::new(7).take(20);
    let text = sent.iter().map(|event| format!("{event}\n")).collect::<String>();
    assert!(negsync(&["import", "--store", path], &text).status.success());
    disk.fill("others", 8 << 20);
    for arguments in [&["relay", "--listen", "127.0.0.1:0"][..], &["import"], &["compact"]] {
        let ended = negsync(&[arguments, &["--store", path]].concat(), "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(path) && ended.stderr.contains("disk is full"), "{ended:?}");
    }
    check_export(&store, &sent);
    assert!(negsync(&["check", "--store", path], "").status.success());
    disk.remove("others");
    assert!(negsync(&["import", "--store", path], &text).stdout.contains("20 duplicate"));
}

/// First an index is damaged, which the relay detects when it reads it; then the schema.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("events.sqlite");
    let path = store.to_str().unwrap();
    let sent: Vec<Value> = Notes::new(5).take(500);
    let text = sent.iter().map(|event| format!("{event}\n")).collect::<String>();
    assert!(negsync(&["import", "--store", path], &text).status.success());
    let sound = std::fs::read(&store).unwrap();
    let root = |name: &str| -> usize {
        let connection = Connection::open(&store).unwrap();
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).unwrap() as usize
    };
    let damage = |pages: &[usize]| {
        let mut bytes = sound.clone();
        for page in pages {
            bytes[(page - 1) * 4_096 + 100..page * 4_096].fill(0xa5);
            bytes[(page - 1) * 4_096..][..100].fill(0xa5);
        }
        std::fs::write(&store, bytes).unwrap();
    };
    let (tag, time) = (root("tag"), root("event_time"));
    damage(&[time]);
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    let answer = client.ask(&json!(["NEG-OPEN", "n", {}, "6100000200"])).await;
    assert_eq!(answer, json!(["NEG-ERR", "n", "error: the store could not be read"]));
    let event = sent.last().unwrap();
    let found = client.query(&[json!({ "ids": [event["id"]] })]).await;
    assert_eq!(found, std::slice::from_ref(event));
    let (accepted, text) = client.publish(&Notes::new(6).author.note(1, "new")).await;
    assert!(!accepted && text == "error: the store is damaged", "{text}");
    relay.signal("TERM");
    let (status, log) = relay.ended();
    assert!(status.success() && log.contains(path) && log.contains("negsync check"), "{log}");

    damage(&[1, tag]);
    for arguments in [&["relay", "--listen", "127.0.0.1:0"][..], &["import"], &["export"]] {
        let ended = negsync(&[arguments, &["--store", path]].concat(), "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(path), "{ended:?}");
    }
    std::fs::write(&store, &sound).unwrap();
    check_store(&store, &sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_a_bit_flip_made_no_utf_8_hinders_no_other() {
    if engine::is_left_out("bytes that are no text, which PostgreSQL refuses") {
        return;
    }
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let at = events::EPOCH;
    let [note, hit, profile] =
        [author.note(at, "sound"), author.note(at + 1, "hit"), author.event(0, at, json!([]), "")];
    for event in [&note, &hit, &profile] {
        client.store(event).await;
    }
    let disk = Connection::open(relay.store_path()).unwrap();
    for event in [&hit, &profile] {
        let mut bytes = event.to_string().into_bytes();
        let sig = bytes.windows(5).position(|part| part == b"\"sig\"").unwrap() + 10;
        bytes[sig] ^= 0x80;
        let damage = "UPDATE event SET json = CAST(?1 AS TEXT) WHERE json LIKE ?2";
        let changed = disk.execute(damage, (bytes, format!("%{}%", id_of(event)))).unwrap();
        assert_eq!(changed, 1);
    }
    // The recipient can detect the damage by the signature; everything else is unchanged.
    let answer = client.query(&[json!({})]).await;
    assert_eq!(answer.len(), 3);
    assert!(answer.contains(&note) && !answer.contains(&hit), "{answer:?}");
    // It can be replaced and deleted like any other event.
    let newer = author.event(0, at + 2, json!([]), "newer");
    let deletion = author.deletion(at + 3, json!([["e", id_of(&hit)]]));
    for event in [&newer, &deletion] {
        client.store(event).await;
    }
    let stored = model::ids([&note, &newer, &deletion]);
    assert_eq!(model::ids(&client.query(&[json!({})]).await), stored);
    assert_eq!(neg_ids(&mut client, &json!({})).await, stored);
}
