//! The files of the store under a running relay: moved, removed, replaced and unmounted while
//! clients publish; and their permissions.

use crate::support::disk::Disk;
use crate::support::http::http;
use crate::support::process::{Ended, RelayProcess, exported_ids, negsync};
use crate::support::{Author, Client, events, id_of, model};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const CLIENTS: u8 = 3;
/// Events acknowledged before the change of a file, and events refused after it.
const EVENTS: usize = 30;

/// The observations of clients that publish without a pause.
#[derive(Default)]
struct Load {
    acknowledged: Mutex<BTreeSet<String>>,
    // Set after the change: no event sent later may be acknowledged.
    happened: AtomicBool,
    refused: AtomicUsize,
}

impl Load {
    async fn publish(self: Arc<Self>, mut client: Client, author: Author) {
        for number in 0.. {
            let event = author.note(events::EPOCH + number, &number.to_string());
            let has_happened = self.happened.load(Ordering::SeqCst);
            let (accepted, text) = client.publish(&event).await;
            if accepted {
                assert!(!has_happened, "acknowledged afterwards: {event}");
                self.acknowledged.lock().unwrap().insert(id_of(&event).to_owned());
            } else {
                assert!(text.starts_with("error: "), "{text}");
                if self.refused.fetch_add(1, Ordering::SeqCst) >= EVENTS {
                    return;
                }
            }
            // A duplicate must not be acknowledged either.
            if has_happened && number % 5 == 0 {
                let first = author.note(events::EPOCH, "0");
                let (accepted, text) = client.publish(&first).await;
                assert!(!accepted && text.starts_with("error: "), "{text}");
            }
        }
    }

    fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().unwrap().clone()
    }
}

/// Starts a relay on `store`, makes clients publish, changes its files with `happens`, and checks
/// that the relay stops writing and reports it. Returns the relay, and the acknowledged events.
async fn displace(store: &Path, lost: &str, happens: impl FnOnce()) -> (RelayProcess, Load) {
    let relay = RelayProcess::start(store);
    let load = Arc::new(Load::default());
    let mut publishing = Vec::new();
    for author in 1..=CLIENTS {
        let client = relay.client().await;
        publishing.push(tokio::spawn(Arc::clone(&load).publish(client, Author::new(author))));
    }
    while load.acknowledged.lock().unwrap().len() < EVENTS {
        tokio::task::yield_now().await;
    }
    happens();
    load.happened.store(true, Ordering::SeqCst);
    let address = relay.url().trim_start_matches("ws://").parse().unwrap();
    let health = http(address, "GET", "/health", &[]).await;
    assert!(health.status == 503 && health.body.contains("the store"), "{}", health.body);
    for published in publishing {
        published.await.unwrap();
    }
    let mut client = relay.client().await;
    let answer = client.ask(&json!(["NEG-OPEN", "n", {}, "6100000200"])).await;
    let text = "error: the store's file was moved, removed or replaced";
    assert_eq!(answer, json!(["NEG-ERR", "n", text]));
    let line = relay.logged("store file lost");
    assert!(line.contains(lost) && line.contains("ERROR"), "{line}");
    (relay, Arc::into_inner(load).unwrap())
}

fn ended(relay: RelayProcess, signal: &str) {
    relay.signal(signal);
    let (_, log) = relay.ended();
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
}

fn beside(store: &Path, suffix: &str) -> PathBuf {
    let mut name = store.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}

/// Writers and readers get an error about the log, which stays unchanged.
fn refused(store: &Path) {
    let log = std::fs::read(beside(store, "-wal")).unwrap();
    assert!(log.len() > 4_096);
    let path = store.to_str().unwrap();
    for arguments in [&["relay", "--listen", "127.0.0.1:0"][..], &["import"], &["export"]] {
        let Ended { status, stderr, .. } = negsync(&[arguments, &["--store", path]].concat(), "");
        assert!(status.code() == Some(1) && stderr.contains("-wal is the write-ahead"), "{stderr}");
    }
    assert_eq!(std::fs::read(beside(store, "-wal")).unwrap(), log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_moved() {
    for signal in ["KILL", "TERM"] {
        let folder = tempfile::tempdir().unwrap();
        let (store, moved) = (folder.path().join("a.sqlite"), folder.path().join("b.sqlite"));
        let (relay, load) =
            displace(&store, "found=\"nothing\"", || std::fs::rename(&store, &moved).unwrap())
                .await;
        ended(relay, signal);
        refused(&store);
        assert!(!store.exists());
        // As the error says: the log is moved too.
        std::fs::rename(beside(&store, "-wal"), beside(&moved, "-wal")).unwrap();
        assert!(exported_ids(&moved).is_superset(&load.acknowledged()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_directory_is_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (directory, elsewhere) = (folder.path().join("data"), folder.path().join("old"));
    std::fs::create_dir(&directory).unwrap();
    let store = directory.join("a.sqlite");
    let (relay, load) =
        displace(&store, "found=\"nothing\"", || std::fs::rename(&directory, &elsewhere).unwrap())
            .await;
    ended(relay, "KILL");
    assert!(exported_ids(elsewhere.join("a.sqlite")).is_superset(&load.acknowledged()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("a.sqlite");
    let (relay, _) =
        displace(&store, "found=\"nothing\"", || std::fs::remove_file(&store).unwrap()).await;
    ended(relay, "KILL");
    refused(&store);
    // An empty file is not a store either, and SQLite would remove the log for it.
    std::fs::write(&store, "").unwrap();
    refused(&store);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_another_one_replaces() {
    for signal in ["KILL", "TERM"] {
        let folder = tempfile::tempdir().unwrap();
        let (store, other) = (folder.path().join("a.sqlite"), folder.path().join("other"));
        let event = Author::new(9).note(events::EPOCH, "in the other one");
        let import = ["import", "--store", other.to_str().unwrap()];
        assert!(negsync(&import, &event.to_string()).status.success());
        let bytes = std::fs::read(&other).unwrap();
        let (relay, load) = displace(&store, "found=\"another file\"", || {
            std::fs::rename(&other, &store).unwrap();
        })
        .await;
        assert!(load.acknowledged().len() >= EVENTS);
        ended(relay, signal);
        refused(&store);
        assert_eq!(std::fs::read(&store).unwrap(), bytes);
        for suffix in ["-wal", "-shm"] {
            std::fs::rename(beside(&store, suffix), folder.path().join(suffix)).unwrap();
        }
        assert_eq!(exported_ids(&store), model::ids([&event]));
    }
}

/// A copy of a store with all files beside it, made after a kill, is a valid store.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_all_files_is_no_other_store() {
    let folder = tempfile::tempdir().unwrap();
    let (store, copy) = (folder.path().join("a.sqlite"), folder.path().join("b.sqlite"));
    let relay = RelayProcess::start(&store);
    let event = Author::new(1).note(events::EPOCH, "in the log");
    relay.client().await.store(&event).await;
    relay.signal("KILL");
    relay.ended();
    for suffix in ["", "-wal", ".lock"] {
        std::fs::copy(beside(&store, suffix), beside(&copy, suffix)).unwrap();
    }
    let relay = RelayProcess::start(&copy);
    assert_eq!(relay.client().await.query(&[json!({})]).await, [event]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_unmounted() {
    let Some(disk) = Disk::mount(64) else { return };
    let store = disk.path().join("a.sqlite");
    let (relay, _) = displace(&store, "found=\"nothing\"", || disk.unmount()).await;
    ended(relay, "KILL");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("a.sqlite");
    let lock = beside(&store, ".lock");
    let (relay, load) =
        displace(&store, "a.sqlite.lock", || std::fs::remove_file(&lock).unwrap()).await;
    // A process that starts meanwhile is accepted, and continues to write.
    let event = Author::new(9).note(events::EPOCH, "by another process");
    let import = ["import", "--store", store.to_str().unwrap()];
    assert!(negsync(&import, &event.to_string()).status.success());
    ended(relay, "KILL");
    let found = exported_ids(&store);
    assert!(found.is_superset(&load.acknowledged()) && found.contains(id_of(&event)));
}

/// The acknowledged events are only in a log that has no name any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_removed_or_replaced() {
    for replaces in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("a.sqlite");
        let log = beside(&store, "-wal");
        let (relay, load) = displace(&store, "a.sqlite-wal", || {
            std::fs::remove_file(&log).unwrap();
            if replaces {
                std::fs::write(&log, "").unwrap();
            }
        })
        .await;
        relay.logged("write-ahead log removed by another program: what it held is in the store");
        ended(relay, "KILL");
        assert!(exported_ids(&store).is_superset(&load.acknowledged()), "{replaces}");
    }
}

/// A second name bypasses the lock, but no event is lost by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_name_of_the_store_stops_writing_until_it_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (store, name) = (folder.path().join("a.sqlite"), folder.path().join("b.sqlite"));
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    let author = Author::new(1);
    client.store(&author.note(events::EPOCH, "before")).await;
    std::fs::hard_link(&store, &name).unwrap();
    let event = author.note(events::EPOCH + 1, "meanwhile");
    let (accepted, text) = client.publish(&event).await;
    assert!(!accepted && text.contains("more than one name"), "{text}");
    std::fs::remove_file(&name).unwrap();
    client.store(&event).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_store_are_for_their_owner_alone_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("a.sqlite");
        let mut command = Command::new("sh");
        let run = format!(r#"umask {umask}; exec "$@""#);
        command.args(["-c", &run, "sh", env!("CARGO_BIN_EXE_negsync")]);
        let relay = RelayProcess::start_by(command, &store, &[]);
        relay.client().await.store(&Author::new(1).note(events::EPOCH, "one")).await;
        let mode = |suffix: &str| beside(&store, suffix).metadata().unwrap().permissions().mode();
        for suffix in ["", "-wal", "-shm", ".lock"] {
            assert_eq!(mode(suffix) & 0o777, 0o600, "{suffix}, umask {umask}");
        }
        relay.signal("TERM");
        let (_, log) = relay.ended();
        assert!(!log.contains("store open to every user"), "{log}");
        // Permissions that an operator opens stay open, and are reported.
        std::fs::set_permissions(&store, Permissions::from_mode(0o644)).unwrap();
        let relay = RelayProcess::start(&store);
        relay.logged("store open to every user");
        for suffix in ["", "-wal", "-shm", ".lock"] {
            assert_eq!(mode(suffix) & 0o777, 0o644, "{suffix}, umask {umask}");
        }
    }
}
