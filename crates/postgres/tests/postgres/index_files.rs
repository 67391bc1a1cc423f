//! Starts of a node from the files of its index. After any changes to the files, the database and
//! the feed, each set equals the table, and only later changes are read if possible.

use crate::support::{event, note};
use negsync_index::Index;
use negsync_nostr::VerifiedEvent;
use negsync_postgres::{Address, PostgresStore};
use negsync_reconcile::{Item, RangeSet};
use negsync_store::{
    EventStore, Filter, MarkedStore, PrivateKinds, Selection, StoreError, StoreOptions,
};
use negsync_testserver::{self as server, HeardSet, TestServer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// More events than the minimum for which a clean stop writes files.
const EVENTS: usize = 17_000;
const PRIVATE: u16 = 1_059;

fn try_open(url: &str, folder: &Path, private: PrivateKinds) -> Result<Index, StoreError> {
    let address = Address::parse(url).unwrap();
    let options = StoreOptions::default().private_kinds(private.clone());
    let open = |listener| Ok(PostgresStore::open_unread(&address, options, listener)?.into());
    Index::over_files(folder, 1 << 20, &private, open)
}

fn open_private(url: &str, folder: &Path, private: PrivateKinds) -> Index {
    try_open(url, folder, private).unwrap()
}

fn open(url: &str, folder: &Path) -> Index {
    open_private(url, folder, PrivateKinds::new([PRIVATE]))
}

/// The contents of the index; waits until it is loaded.
fn held(index: &Index) -> Vec<Item> {
    let set = index.snapshot(&[Filter::default()], usize::MAX).unwrap();
    let mut items = Vec::new();
    set.for_each(0..set.len(), &mut |item| items.push(item));
    items
}

/// The contents of the table.
fn stored(url: &str) -> Vec<Item> {
    let rows = "SELECT created_at, encode(id, 'hex') FROM negsync.event ORDER BY created_at, id";
    let item = |row: &Vec<Option<String>>| {
        let [Some(second), Some(id)] = &row[..] else { panic!("a row without a value") };
        let byte = |at: usize| u8::from_str_radix(&id[2 * at..2 * at + 2], 16).unwrap();
        Item::new(second.parse().unwrap(), std::array::from_fn(byte))
    };
    server::query(url, rows).unwrap().iter().map(item).collect()
}

/// Opens the index. Returns it with the number of items read from the database.
fn started(url: &str, folder: &Path) -> (Index, usize) {
    let index = open(url, folder);
    assert!(held(&index) == stored(url), "the index is the table");
    let read = index.sets().statistics().since_files;
    (index, read)
}

fn store(index: &Index, events: &[VerifiedEvent]) {
    index.store().publish(events.iter().map(crate::support::again).collect()).unwrap();
}

fn notes(rng: &mut StdRng, count: usize) -> Vec<VerifiedEvent> {
    let kind = |number: usize| if number.is_multiple_of(50) { PRIVATE } else { 1 };
    let note = |number| event(rng.random(), 1, kind(number), rng.random_range(0..1_000_000), "[]");
    (0..count).map(note).collect()
}

/// The files of the index, with their contents.
fn kept(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files(folder).into_iter();
    files.map(|file| (file.clone(), std::fs::read(file).unwrap())).collect()
}

fn put_back(kept: &[(PathBuf, Vec<u8>)]) {
    kept.iter().for_each(|(file, bytes)| std::fs::write(file, bytes).unwrap());
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.to_string_lossy().contains("-index-")).collect();
    files.sort();
    files
}

/// A database with events, and the folder with the files of a clean stop.
fn stopped(rng: &mut StdRng) -> Option<(TestServer, tempfile::TempDir)> {
    let server = TestServer::start()?;
    let folder = tempfile::tempdir().unwrap();
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, 0);
    store(&index, &notes(rng, EVENTS));
    assert_eq!(held(&index).len(), EVENTS);
    index.close();
    assert_eq!(files(folder.path()).len(), 2, "of what is for everybody, and of the rest");
    Some((server, folder))
}

#[test]
fn a_start_reads_what_came_since_the_files_were_written() {
    let mut rng = StdRng::seed_from_u64(1);
    let Some((server, folder)) = stopped(&mut rng) else { return };
    let before = stored(server.url());
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, 0, "after a clean stop");

    // Another node adds and removes events, and lifts bans.
    let elsewhere = tempfile::tempdir().unwrap();
    let (other, read) = started(server.url(), elsewhere.path());
    assert_eq!(read, EVENTS, "without files");
    let more = notes(&mut rng, 40);
    store(&other, &more);
    let gone = Selection {
        ids: before[..30].iter().map(|item| item.id).collect(),
        ..Selection::default()
    };
    assert_eq!(other.store().delete(&gone).unwrap().ids.len(), 30);
    store(&other, &[note(&mut rng)]);
    let short_lived = Selection { ids: vec![more[0].item().id], ..Selection::default() };
    assert_eq!(other.store().delete(&short_lived).unwrap().ids.len(), 1);
    assert_eq!(held(&index), stored(server.url()));
    // Like a crash: nothing is written.
    let written = files(folder.path());
    drop(index);
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, 40 + 30 + 1 - 1, "after a crash");
    index.close();
    assert_eq!(files(folder.path()), written);
    other.close();
}

#[test]
fn of_files_that_cannot_be_used_none_is_and_they_are_made_anew() {
    let mut rng = StdRng::seed_from_u64(2);
    let Some((server, folder)) = stopped(&mut rng) else { return };
    let kept = kept(folder.path());
    let put_back = || put_back(&kept);

    for (file, bytes) in &kept {
        let mut bytes = bytes.clone();
        let at = rng.random_range(0..bytes.len());
        bytes[at] ^= 4;
        std::fs::write(file, bytes).unwrap();
        let (index, read) = started(server.url(), folder.path());
        assert_eq!(read, EVENTS, "damaged at {at}");
        index.close();
        put_back();
    }

    std::fs::remove_file(&kept[1].0).unwrap();
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, EVENTS, "one is missing");
    index.close();
    put_back();

    let other_kinds = open_private(server.url(), folder.path(), PrivateKinds::new([4]));
    assert_eq!(held(&other_kinds), stored(server.url()));
    assert_eq!(other_kinds.sets().statistics().since_files, EVENTS, "of other kinds");
    other_kinds.close();
    put_back();

    let other = server.database();
    let (index, read) = started(&other, folder.path());
    assert_eq!(read, 0);
    store(&index, &notes(&mut rng, EVENTS + 1));
    index.close();
    assert!(kept.iter().all(|(file, _)| !file.exists()), "files of another database stay");
    let (index, read) = started(&other, folder.path());
    assert_eq!(read, 0, "made anew");
    index.close();
}

#[test]
fn files_of_commits_that_the_database_lost_or_knows_no_more_are_not_used() {
    let mut rng = StdRng::seed_from_u64(3);
    let Some((server, folder)) = stopped(&mut rng) else { return };
    let kept = kept(folder.path());
    let put_back = || put_back(&kept);

    // Like after a fail-over: the number of the last commit is used again for another one.
    let lose = "BEGIN;
        DELETE FROM negsync.event WHERE seq = (SELECT seq FROM negsync.head);
        UPDATE negsync.head SET mark = mark + 1;
        UPDATE negsync.feed_commit SET mark = mark + 1 WHERE seq = (SELECT seq FROM negsync.head);
        COMMIT";
    server::run(server.url(), lose).unwrap();
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, held(&index).len(), "of a commit that is lost");
    assert!(read < EVENTS);
    index.close();

    // The same history continues, but its removals are no longer recorded.
    let pruned = "BEGIN;
        UPDATE negsync.head SET mark = mark - 1;
        UPDATE negsync.feed_commit SET mark = mark - 1 WHERE seq = (SELECT seq FROM negsync.head);
        INSERT INTO negsync.feed_commit (seq, mark, added, removed) SELECT seq + 1, 7, 0, 0 FROM negsync.head;
        DELETE FROM negsync.feed_commit WHERE seq <= (SELECT seq FROM negsync.head);
        UPDATE negsync.head SET (seq, mark) = (seq + 1, 7);
        COMMIT";
    server::run(server.url(), pruned).unwrap();
    put_back();
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, held(&index).len(), "of a commit that the feed does not reach back to");
    index.close();
}

#[test]
fn files_are_written_anew_before_the_feed_forgets_their_commit() {
    let mut rng = StdRng::seed_from_u64(6);
    let Some((server, folder)) = stopped(&mut rng) else { return };
    let written = files(folder.path());
    let commits = "BEGIN;
        INSERT INTO negsync.feed_commit (seq, mark, added, removed)
            SELECT seq + number, number, 0, 0 FROM negsync.head, generate_series(1, 25000) AS number;
        UPDATE negsync.head SET (seq, mark) = (seq + 25000, 25000);
        COMMIT";
    server::run(server.url(), commits).unwrap();
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, 0);
    index.close();
    let fresh = files(folder.path());
    assert!(fresh.len() == 2 && fresh != written);
    let (index, read) = started(server.url(), folder.path());
    assert_eq!(read, 0);
    index.close();
}

#[test]
fn one_process_writes_to_a_folder_and_others_start_from_it() {
    let mut rng = StdRng::seed_from_u64(4);
    let Some((server, folder)) = stopped(&mut rng) else { return };
    let written = files(folder.path());
    let (owner, read) = started(server.url(), folder.path());
    assert_eq!(read, 0);
    let (guest, read) = started(server.url(), folder.path());
    assert_eq!(read, 0, "beside the one that writes");
    store(&guest, &notes(&mut rng, EVENTS));
    guest.close();
    assert_eq!(files(folder.path()), written, "written by two");
    assert_eq!(held(&owner).len(), 2 * EVENTS);
    owner.close();
    assert_ne!(files(folder.path()), written);
}

#[test]
fn while_a_node_starts_from_files_what_others_commit_is_in_its_sets() {
    let mut rng = StdRng::seed_from_u64(5);
    let Some((server, folder)) = stopped(&mut rng) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let (other, _) = started(server.url(), elsewhere.path());
    for start in 0..20 {
        let ended = AtomicBool::new(false);
        let index = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = StdRng::seed_from_u64(start);
                while !ended.load(Ordering::Relaxed) {
                    let some = notes(&mut rng, 3);
                    store(&other, &some);
                    let gone = Selection { ids: vec![some[1].item().id], ..Selection::default() };
                    other.store().delete(&gone).unwrap();
                }
            });
            let index = open(server.url(), folder.path());
            let _ = held(&index);
            ended.store(true, Ordering::Relaxed);
            index
        });
        assert!(held(&index) == stored(server.url()), "start {start}");
        drop(index);
    }
    other.close();
}

/// The files have commits that the replica lacks: their tail was lost with the primary.
#[test]
fn a_node_that_starts_while_a_replica_is_promoted_holds_what_that_has() {
    let Some(mut primary) = TestServer::start_own(&[]) else { return };
    let mut rng = StdRng::seed_from_u64(7);
    let mut replica = primary.server().replica();
    let url = primary.url_with(&replica);
    let folder = tempfile::tempdir().unwrap();
    let (index, _) = started(&url, folder.path());
    store(&index, &notes(&mut rng, EVENTS));
    let here = "SELECT 1 / CASE WHEN pg_current_wal_lsn() <= replay_lsn THEN 1 ELSE 0 END \
        FROM pg_stat_replication";
    while server::run(&url, here).is_err() {}
    replica.kill();
    store(&index, &notes(&mut rng, 100));
    index.close();
    assert_eq!(files(folder.path()).len(), 2);
    primary.server().kill();

    let index = std::thread::scope(|scope| {
        // Fails until a server takes commits.
        let opening = scope.spawn(|| {
            loop {
                let opened = try_open(&url, folder.path(), PrivateKinds::new([PRIVATE]));
                if let Ok(index) = opened {
                    return index;
                }
            }
        });
        replica.start();
        replica.promote();
        opening.join().unwrap()
    });
    assert_eq!(held(&index).len(), EVENTS);
    assert!(held(&index) == stored(&url));
    assert_eq!(index.sets().statistics().since_files, EVENTS, "made anew");
    index.close();
    let (index, read) = started(&url, folder.path());
    assert_eq!(read, 0, "of the files that were written since");
    index.close();
}

/// A replica that has the commit of a mark has all commits of the sets that were taken with it.
#[test]
fn the_sets_of_a_mark_are_of_exactly_its_commit() {
    let Some(server) = TestServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (other, _) = started(server.url(), folder.path());
    let address = Address::parse(server.url()).unwrap();
    let heard = HeardSet::default();
    let node = PostgresStore::open(&address, StoreOptions::default(), Box::new(heard.clone()));
    let (node, ended) = (node.unwrap(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = StdRng::seed_from_u64(8);
            while !ended.load(Ordering::Relaxed) {
                store(&other, &notes(&mut rng, 2));
            }
        });
        for _ in 0..30 {
            let mut taken = 0;
            let mark = node.begin_index_mark(&mut || taken = heard.items().len()).unwrap();
            let seq = i64::from_be_bytes(*mark.first_chunk().unwrap());
            let rows = format!("SELECT count(*)::text FROM negsync.event WHERE seq <= {seq}");
            let stored = server::query(server.url(), &rows).unwrap();
            assert_eq!(stored[0][0].as_deref(), Some(taken.to_string().as_str()));
        }
        ended.store(true, Ordering::Relaxed);
    });
    node.close();
    other.close();
}
