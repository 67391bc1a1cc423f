//! The two engines of the store side by side: SQLite in a file, and PostgreSQL on this machine. The
//! server is the one named in `NEGSYNC_POSTGRES`, or one started for the bench.
//!
//! `cargo bench -p negsync-postgres --bench engines [-- EVENTS]`

use negsync_index::Index;
use negsync_postgres::{Address, PostgresStore};
use negsync_store::{
    Batches, EventStore, Filter, Origin, PrivateKinds, Step, StoreError, StoreOptions,
    VerifiedEvent,
};
use negsync_testserver::TestServer;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

const EVENTS: usize = 1_000_000;
const BATCH: usize = 1_000;
/// Batches in flight at a time.
const BATCHES_IN_FLIGHT: usize = 8;
const SINGLE_EVENTS: usize = 400;
const INDEX_BYTES: usize = 256 << 20;
const IDLE: Duration = Duration::from_secs(10);

/// An engine, and how to open a node of it.
struct Engine<'open> {
    name: &'static str,
    open: Box<dyn Fn(Batches) -> Index + 'open>,
}

fn main() {
    let events =
        std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(EVENTS);
    let settings = [("shared_buffers", "256MB"), ("max_wal_size", "4GB")];
    let Some(server) = std::env::var("NEGSYNC_POSTGRES")
        .map_or_else(|_| TestServer::start_own(&settings), |_| TestServer::start())
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.sqlite");
    let engines = [
        Engine { name: "SQLite", open: Box::new(|batches| sqlite(&path, batches)) },
        Engine { name: "PostgreSQL", open: Box::new(|batches| postgres(server.url(), batches)) },
    ];
    println!("{events} events of about 500 bytes, six in ten of kind 1");
    println!("{:44} {:>12} {:>12}  ratio", "", engines[0].name, engines[1].name);
    let mut rows = engines.iter().map(|engine| measure(engine, events));
    let (sqlite, postgres) = (rows.next().unwrap(), rows.next().unwrap());
    for ((what, one), (_, other)) in sqlite.iter().zip(&postgres) {
        println!("{what:44} {one:12.3} {other:12.3}  {:.2}", other / one);
    }
    starts(server.url());
    between_nodes(server.url());
}

/// The time of a start with index files, compared with one that reads all events.
fn starts(url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::parse(url).unwrap();
    let start = || {
        let mut started = None;
        let seconds = timed(|| {
            let index = Index::over_files(
                folder.path(),
                INDEX_BYTES,
                &PrivateKinds::default(),
                |listener| {
                    Ok(Arc::new(PostgresStore::open_unread(
                        &address,
                        options(Batches::Short),
                        listener,
                    )?))
                },
            );
            let index = index.unwrap();
            // Loaded in the background: the snapshot waits for it.
            index.snapshot(&[Filter::default()], usize::MAX).unwrap();
            started = Some(index);
        });
        (seconds, started.unwrap())
    };
    let (without, index) = start();
    index.close();
    let (with, index) = start();
    println!(
        "start of a node with a folder for its index, s: files not there {without:.3}, there {with:.3}"
    );
    index
        .store()
        .publish((0..10_000).map(|at| event(&mut StdRng::seed_from_u64(at), 80_000_000)).collect())
        .unwrap();
    drop(index);
    let (behind, index) = start();
    println!("the same, 10,000 events behind: {behind:.3}");
    index.close();
}

fn options(batches: Batches) -> StoreOptions {
    StoreOptions::default().batches(batches)
}

fn sqlite(path: &Path, batches: Batches) -> Index {
    let index = Index::open(path, options(batches), INDEX_BYTES).unwrap();
    // Loaded in the background: the snapshot waits for it.
    index.snapshot(&[Filter::default()], usize::MAX).unwrap();
    index
}

fn postgres(url: &str, batches: Batches) -> Index {
    let address = Address::parse(url).unwrap();
    Index::over(INDEX_BYTES, &PrivateKinds::default(), |listener| {
        Ok::<Arc<dyn EventStore>, StoreError>(Arc::new(PostgresStore::open(
            &address,
            options(batches),
            listener,
        )?))
    })
    .unwrap()
}

/// An unsigned event.
fn event(rng: &mut StdRng, number: usize) -> VerifiedEvent {
    let id: [u8; 32] = rng.random();
    let hex = |bytes: &[u8]| {
        bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    };
    let kind = if number % 10 < 6 { 1 } else { 7 };
    let author = hex(&[(number % 200) as u8; 32]);
    let named = hex(&[(number % 251) as u8; 32]);
    let created_at = 1_700_000_000 + number as u64;
    let json = format!(
        r#"{{"id":"{}","pubkey":"{author}","created_at":{created_at},"kind":{kind},"tags":[["e","{named}"],["p","{named}"]],"content":"{}","sig":"{}"}}"#,
        hex(&id),
        "a note of some length ".repeat(5),
        "0".repeat(128),
    );
    negsync_store::Event::parse(&json).unwrap().trust()
}

fn import(store: &Arc<dyn EventStore>, events: usize) -> f64 {
    let mut rng = StdRng::seed_from_u64(1);
    let batches: Vec<Vec<VerifiedEvent>> = (0..events.div_ceil(BATCH))
        .map(|batch| (0..BATCH).map(|place| event(&mut rng, batch * BATCH + place)).collect())
        .collect();
    let began = Instant::now();
    let (done, wait) = sync_channel(BATCHES_IN_FLIGHT);
    let mut under_way = 0;
    for batch in batches {
        while under_way >= BATCHES_IN_FLIGHT {
            wait.recv().unwrap();
            under_way -= 1;
        }
        let done = done.clone();
        let reply = move |_| {
            let _ = done.send(());
        };
        store.submit(&Origin::Local, batch, Box::new(reply));
        under_way += 1;
    }
    (0..under_way).for_each(|_| wait.recv().unwrap());
    events as f64 / began.elapsed().as_secs_f64()
}

fn p50(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2] * 1_000.0
}

fn timed(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

fn single(store: &Arc<dyn EventStore>, seed: u64) -> f64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let once = |number: usize, rng: &mut StdRng| {
        let event = event(rng, 50_000_000 + number);
        timed(|| drop(store.publish(vec![event]).unwrap()))
    };
    p50((0..SINGLE_EVENTS).map(|number| once(number, &mut rng)).collect())
}

fn measure(engine: &Engine<'_>, events: usize) -> Vec<(&'static str, f64)> {
    let index = (engine.open)(Batches::Long { bytes: 16 << 20 });
    let imported = import(index.store(), events);
    index.close();
    let index = (engine.open)(Batches::Short);
    let published = single(index.store(), 2);
    let notes = [Filter::parse(r#"{"kinds":[1]}"#).unwrap()];
    let first = timed(|| drop(index.snapshot(&notes, usize::MAX).unwrap()));
    let kept =
        p50((0..50).map(|_| timed(|| drop(index.snapshot(&notes, usize::MAX).unwrap()))).collect());
    let newest = Filter::parse(r#"{"limit":500}"#).unwrap();
    let store = index.store();
    let newest = p50((0..50)
        .map(|_| timed(|| drop(store.newest(std::slice::from_ref(&newest), 500).unwrap())))
        .collect());
    index.close();
    let mut started = None;
    let start = timed(|| started = Some((engine.open)(Batches::Short)));
    if let Some(index) = started {
        index.close();
    }
    vec![
        ("import, events/s (more is better)", imported),
        ("EVENT, one client, p50 ms (less is better)", published),
        (r#"{"kinds":[1]}, the first time, s"#, first),
        (r#"{"kinds":[1]}, from then on, p50 ms"#, kept),
        ("newest 500 ids, p50 ms", newest),
        ("start of a node, s", start),
    ]
}

/// The cost of a second node over the same database.
fn between_nodes(url: &str) {
    let (one, other) = (postgres(url, Batches::Short), postgres(url, Batches::Short));
    let mut rng = StdRng::seed_from_u64(3);
    let all = [Filter::default()];
    let mut set_after = |index: &Index| {
        let event = event(&mut rng, 60_000_000);
        one.store().publish(vec![event]).unwrap();
        timed(|| drop(index.snapshot(&all, usize::MAX).unwrap()))
    };
    let here = p50((0..SINGLE_EVENTS).map(|_| set_after(&one)).collect());
    let there = p50((0..SINGLE_EVENTS).map(|_| set_after(&other)).collect());
    println!("set after an OK of node A, p50 ms: on A {here:.3}, on B {there:.3}");
    let mut heard = other.subscribe();
    let lag = p50((0..SINGLE_EVENTS).map(|_| lag(&one, &mut heard, &mut rng)).collect());
    println!("a live event of node A on node B after its OK, p50 ms: {lag:.3}");
    one.close();
    let before = cpu();
    std::thread::sleep(IDLE);
    let share = (cpu() - before) / IDLE.as_secs_f64() * 100.0;
    println!("an idle node, without the server: {share:.2} % of a core");
    other.close();
}

fn lag(one: &Index, heard: &mut negsync_index::Subscriber, rng: &mut StdRng) -> f64 {
    while heard.try_recv().unwrap().is_some() {}
    let event = event(rng, 70_000_000);
    let item = event.item();
    one.store().publish(vec![event]).unwrap();
    let is_it = |step: &Step| matches!(step, Step::Added(event) if event.item() == item);
    timed(|| {
        loop {
            match heard.try_recv().unwrap() {
                Some(change) if change.steps.iter().any(is_it) => return,
                Some(_) => {}
                None => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    })
}

/// The CPU time of this process, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let field = |place: usize| -> f64 {
        after_name.split_whitespace().nth(place).unwrap().parse().unwrap()
    };
    (field(11) + field(12)) / 100.0
}
