//! A backup during constant publishing: the delay for another publishing client, and whether the
//! copy is sound and of one snapshot.

use crate::client::{Client, GOOD, stranger};
use crate::relay::{Relay, UNLIMITED};
use crate::support::report_most;
use crate::{Extent, middle_and_p99, milliseconds};
use nostr::{EventBuilder, JsonUtil, Keys};
use rusqlite::Connection;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Events published per second during the backup.
const RATE: u64 = 1_000;
/// Pause of the other client between an OK and its next event.
const PAUSE: Duration = Duration::from_millis(5);
/// Number of backups, each after a period without one.
const ROUNDS: usize = 3;

/// The events with an OK, and those sent.
#[derive(Default)]
struct Published {
    acknowledged: AtomicU64,
    sent: AtomicU64,
    is_over: AtomicBool,
}

pub async fn run(extent: Extent) {
    let stored = extent.pick(1_000_000, 50_000);
    println!("\nA backup of {stored} events while {RATE} a second come");
    let relay = Relay::start(stored, UNLIMITED);
    let published = Arc::new(Published::default());
    let began = Instant::now();
    let publishing = tokio::spawn(publish_steadily(relay.address, Arc::clone(&published)));
    let mut good = Client::connect(GOOD, relay.address).await.unwrap();
    let (mut without, mut beside, mut longest_log) = (Vec::new(), Vec::new(), 0.0_f64);
    let copy = relay.directory.path().join("copy.sqlite");
    for _ in 0..ROUNDS {
        let end = Instant::now() + Duration::from_secs(extent.pick(12, 3));
        without.extend(publish(&mut good, &published, || Instant::now() < end).await);
        let _ = std::fs::remove_file(&copy);
        let (before, since) = (published.acknowledged.load(Ordering::SeqCst), Instant::now());
        let mut backup = backup(&relay.directory.path().join("events.sqlite"), &copy);
        let times = publish(&mut good, &published, || {
            longest_log = relay.wal_mb().max(longest_log);
            backup.try_wait().unwrap().is_none()
        });
        let times = times.await;
        let (took, after) = (since.elapsed(), published.sent.load(Ordering::SeqCst));
        assert!(backup.wait().unwrap().success());
        let events = sound_events(&copy) - stored as u64;
        assert!((before..=after).contains(&events), "{before} {events} {after}");
        println!(
            "a backup took {:.1} s; {} OKs meanwhile; it is sound",
            took.as_secs_f64(),
            times.len()
        );
        beside.extend(times);
    }
    published.is_over.store(true, Ordering::SeqCst);
    publishing.await.unwrap();
    let rate = published.acknowledged.load(Ordering::SeqCst) as f64 / began.elapsed().as_secs_f64();
    println!("{rate:.0} events a second were taken; log {longest_log:.0} MB");
    let [without, beside] =
        [("without a backup", without), ("beside one", beside)].map(|(what, times)| {
            let (middle, p99) = middle_and_p99(times);
            println!(
                "OK {what}: median {:.1} ms, p99 {:.1} ms",
                milliseconds(middle),
                milliseconds(p99)
            );
            p99.as_secs_f64()
        });
    report_most("OK beside a backup, p99, over that without one", beside / without, "times", 2.0);
}

fn backup(store: &Path, copy: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.arg("backup").arg(copy).arg("--store").arg(store).stdout(Stdio::null()).spawn().unwrap()
}

/// The number of events in a copy; fails unless SQLite finds the file sound.
fn sound_events(copy: &Path) -> u64 {
    let connection = Connection::open(copy).unwrap();
    let found: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
    assert_eq!(found, "ok");
    let count = connection.query_row("SELECT count(*) FROM event", [], |row| row.get::<_, u32>(0));
    count.unwrap().into()
}

fn note(keys: &Keys, number: u64) -> String {
    let event = EventBuilder::text_note(number.to_string()).sign_with_keys(keys).unwrap();
    format!(r#"["EVENT",{}]"#, event.as_json())
}

/// Publishes notes one after the other, while `goes_on`; returns the time to each OK.
async fn publish(
    client: &mut Client,
    published: &Published,
    mut goes_on: impl FnMut() -> bool,
) -> Vec<Duration> {
    let (keys, mut times) = (Keys::generate(), Vec::new());
    while goes_on() {
        published.sent.fetch_add(1, Ordering::SeqCst);
        times.push(client.ask(note(&keys, times.len() as u64), r#"["OK""#).await);
        published.acknowledged.fetch_add(1, Ordering::SeqCst);
        sleep(PAUSE).await;
    }
    times
}

/// Publishes [`RATE`] notes per second, or as many as are accepted.
async fn publish_steadily(to: SocketAddr, published: Arc<Published>) {
    let mut client = Client::connect(stranger(0), to).await.unwrap();
    let (keys, mut sent) = (Keys::generate(), 0);
    while !published.is_over.load(Ordering::SeqCst) {
        let round = Instant::now();
        for _ in 0..RATE / 100 {
            published.sent.fetch_add(1, Ordering::SeqCst);
            client.send(note(&keys, sent)).await.unwrap();
            sent += 1;
        }
        for _ in 0..RATE / 100 {
            let answer = client.next().await.expect("the relay closed a client");
            assert!(answer.contains(",true,"), "{answer}");
            published.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        sleep(Duration::from_millis(10).saturating_sub(round.elapsed())).await;
    }
}
