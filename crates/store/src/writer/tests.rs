//! What is written while pages are moved out of the write-ahead log.

use super::*;
use crate::checkpoint::LogLength;
use crate::doubt::{Mender, open_log};
use crate::presence::Presence;
use crate::read_gate::ReadGate;
use crate::retention::Retaining;
use crate::vanish::Vanishing;
use crate::{lock, schema};
use negsync_nostr::Event;
use std::sync::mpsc::Receiver;

const PATIENCE: Duration = Duration::from_secs(20);

fn submit(writer: &Writer, number: usize, tags: usize) -> Receiver<Vec<Outcome>> {
    let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
    let tags: Vec<String> = (0..tags).map(|tag| format!(r#"["t","{number} {tag}"]"#)).collect();
    let tags = tags.join(",");
    let json = format!(
        r#"{{"id":"{id}","pubkey":"{id}","created_at":1,"kind":1,"tags":[{tags}],"content":"","sig":"{zeros}"}}"#
    );
    let (send, outcomes) = sync_channel(1);
    let events = vec![Event::parse(&json).unwrap().trust()];
    let reply = Box::new(move |outcomes| send.send(outcomes).unwrap());
    writer.submit(&Origin::Peer(number.to_string().into()), events, reply);
    outcomes
}

/// A writer on a store whose log is moved at a megabyte, and what keeps it from being moved.
fn start(path: &Path) -> (Writer, Arc<Mutex<()>>) {
    let mut connection = schema::open_writer(path).unwrap();
    let own = schema::open_checkpointer(path).unwrap();
    let (log, lock) = (open_log(path).unwrap(), lock::take(path).unwrap());
    let presence = Presence::of(path, &log, &lock).unwrap();
    let mender = Mender::new(path, log, false, presence);
    let (length, gate) = (LogLength::from_mb(1), ReadGate::default());
    let checkpointer = Checkpointer::start(&mut connection, own, length, mender, gate).unwrap();
    let moving = checkpointer.moving();
    let rules = RuleMemory {
        vanishing: Vanishing::load(&connection, None).unwrap(),
        retaining: Retaining::load(&connection, None).unwrap(),
    };
    let beside = WriterContext {
        checkpointer,
        commits: Commits::default(),
        expired_until: Arc::default(),
        metrics: StoreMetrics::default(),
        batches: Batches::Short,
        clock: Clock::system(),
    };
    let writer = Writer::start(path, connection, beside, rules, || Ok(()), Box::new(|_| {}));
    (writer.unwrap(), moving)
}

/// All that a heavy event writes has to be moved, too.
#[test]
fn a_heavy_event_waits_for_pages_to_be_moved_and_a_light_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let (writer, moving) = start(&folder.path().join("store.sqlite"));
    let log = folder.path().join("store.sqlite-wal");
    let moving = moving.lock().unwrap();
    let stored = vec![Outcome::Stored];
    let light = |number, tags| {
        assert_eq!(submit(&writer, number, tags).recv_timeout(PATIENCE), Ok(stored.clone()));
    };
    let mut number = 1;
    // Each page has a head of 24 bytes there.
    while log.metadata().unwrap().len() < (1 << 20) + 256 * 24 + 32 {
        light(number, 500);
        number += 1;
    }
    let heavy = submit(&writer, number, 3_000);
    (number + 1..number + 4).for_each(|number| light(number, 1));
    assert!(heavy.try_recv().is_err());
    drop(moving);
    assert_eq!(heavy.recv_timeout(PATIENCE), Ok(stored));
    writer.stop();
}
