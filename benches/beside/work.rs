//! The workloads, one after the other.

use super::client::{Client, id_of};
use super::contender::Contender;
use super::support::signed_events;
use super::world::{World, hex};
use negsync::reconcile::{Initiator, InitiatorOptions, Responder};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::HashSet;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 8;
const REQUESTS: usize = 1_000;
/// Answers of each run that are checked against the events.
const CHECKED: usize = 5;
const SUBSCRIBERS: usize = 200;
const LIVE_EVENTS: usize = 500;
const LIVE_INTERVAL: Duration = Duration::from_millis(10);
const IDLE: usize = 1_000;

/// The result of one run of a workload.
pub struct Measured {
    pub figure: f64,
    pub unit: &'static str,
    /// CPU time of the relay's process.
    pub cpu: Duration,
}

#[derive(Clone, Copy)]
pub enum Work {
    HomeFeed,
    Profiles,
    Thread,
    Live,
    Start,
    IdleMemory,
    IdleConnection,
}

/// The workloads, in order.
pub fn all(world: &World) -> Vec<Work> {
    assert!(!world.events.is_empty());
    use Work::{HomeFeed, IdleConnection, IdleMemory, Live, Profiles, Start, Thread};
    vec![Start, IdleMemory, IdleConnection, HomeFeed, Profiles, Thread, Live]
}

impl Work {
    pub fn name(self) -> &'static str {
        match self {
            Self::HomeFeed => "home feed: kinds 1 and 6 of 100 authors, limit 100, 8 connections",
            Self::Profiles => "profiles: kind 0 of 100 authors, 8 connections",
            Self::Thread => "one thread: `#e` of one id, p50",
            Self::Live => "live events at 100/s to 200 subscribers, p50",
            Self::Start => "start to the first NEG on `{}`, after a clean stop",
            Self::IdleMemory => "anonymous memory, idle",
            Self::IdleConnection => "an idle connection",
        }
    }

    pub async fn measure(self, contender: &mut Contender, world: &World, round: u64) -> Measured {
        if let Self::Start = self {
            return start(contender, world).await;
        }
        let before = contender.cpu();
        let (figure, unit) = match self {
            Self::HomeFeed => (queries(contender, world, round, true).await, "req/s"),
            Self::Profiles => (queries(contender, world, round, false).await, "req/s"),
            Self::Thread => (thread(contender, world, round).await, "ms"),
            Self::Live => (live(contender, round).await, "ms"),
            Self::IdleConnection => (idle_connection(contender).await, "KB"),
            Self::Start | Self::IdleMemory => (contender.anonymous_bytes() / 1e6, "MB"),
        };
        Measured { figure, unit, cpu: contender.cpu().saturating_sub(before) }
    }
}

/// Queries of a hundred authors each, per second, on eight connections.
async fn queries(contender: &Contender, world: &World, round: u64, is_feed: bool) -> f64 {
    let mut rng = StdRng::seed_from_u64(round);
    let asked: Vec<Vec<u64>> = (0..REQUESTS).map(|_| World::some_authors(&mut rng, 100)).collect();
    let filter = |authors: &[u64]| {
        let keys: Vec<String> = authors.iter().map(|key| format!("\"{key:064x}\"")).collect();
        let rest = if is_feed { r#""kinds":[1,6],"limit":100"# } else { r#""kinds":[0]"# };
        format!(r#"{{"authors":[{}],{rest}}}"#, keys.join(","))
    };
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(contender.connect().await);
    }
    for authors in asked.iter().take(CHECKED) {
        let most = if is_feed { 100 } else { usize::MAX };
        let is_of = |kind: u16| if is_feed { kind == 1 || kind == 6 } else { kind == 0 };
        let expected =
            world.newest(most, |made| is_of(made.kind) && authors.contains(&made.author));
        check(&clients[0].req(&filter(authors)).await, &expected);
    }
    let filters: Vec<String> = asked.iter().map(|authors| filter(authors)).collect();
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (mut client, filters) in clients.into_iter().zip(filters.chunks(REQUESTS / CONNECTIONS)) {
        let filters = filters.to_vec();
        tasks.spawn(async move {
            for filter in filters {
                assert!(!client.req(&filter).await.is_empty());
            }
        });
    }
    tasks.join_all().await;
    REQUESTS as f64 / began.elapsed().as_secs_f64()
}

fn check(answer: &[String], expected: &HashSet<String>) {
    let ids: HashSet<String> = answer.iter().map(|text| id_of(text)).collect();
    assert_eq!(answer.len(), ids.len(), "an event came twice");
    assert!(ids == *expected, "{} of {} events", ids.len(), expected.len());
}

async fn thread(contender: &Contender, world: &World, round: u64) -> f64 {
    let mut rng = StdRng::seed_from_u64(round);
    let mut client = contender.connect().await;
    let mut times = Vec::new();
    for number in 0..REQUESTS {
        let thread = world.some_thread(&mut rng);
        let filter = format!(r##"{{"#e":["{thread:064x}"]}}"##);
        let began = Instant::now();
        let answer = client.req(&filter).await;
        times.push(began.elapsed());
        if number < CHECKED {
            check(&answer, &world.newest(500, |made| made.thread == thread));
        }
    }
    median_ms(times)
}

/// The time from sending an event until each subscriber has it.
async fn live(contender: &Contender, round: u64) -> f64 {
    let events = signed_events(LIVE_EVENTS, 1_000 + round);
    let mut subscribers = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let mut client = contender.connect().await;
        client.send(r#"["REQ","live",{"limit":0}]"#.to_owned()).await;
        client.next_of(&["EOSE"]).await;
        subscribers.push(client);
    }
    let (tell, told) = tokio::sync::watch::channel(Vec::<Instant>::new());
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in subscribers {
        let told = told.clone();
        tasks.spawn(async move {
            let mut times = Vec::with_capacity(LIVE_EVENTS);
            for number in 0..LIVE_EVENTS {
                client.next_of(&["EVENT"]).await;
                let heard = Instant::now();
                times.push(heard.saturating_duration_since(told.borrow()[number]));
            }
            times
        });
    }
    let mut publisher = contender.connect().await;
    let mut ticks = tokio::time::interval(LIVE_INTERVAL);
    for event in &events {
        ticks.tick().await;
        tell.send_modify(|sent| sent.push(Instant::now()));
        publisher.send(format!(r#"["EVENT",{event}]"#)).await;
    }
    for _ in &events {
        let answer = publisher.next_of(&["OK"]).await;
        assert!(answer.contains(",true,"), "{answer}");
    }
    median_ms(tasks.join_all().await.concat())
}

/// From the start of the process to an exact answer.
async fn start(contender: &mut Contender, world: &World) -> Measured {
    let tree = world.tree();
    let empty = negsync::index::Tree::new();
    let options = InitiatorOptions::default();
    let question = Initiator::new(&empty, options).unwrap().open();
    let began = contender.restart();
    let mut client = contender.connect().await;
    // Events published meanwhile are not part of the world.
    let last = world.events.last().unwrap().item.created_at;
    client.send(format!(r#"["NEG-OPEN","n",{{"until":{last}}},"{}"]"#, hex(&question))).await;
    let answer = client.next_of(&["NEG-"]).await;
    let figure = began.elapsed().as_secs_f64() * 1e3;
    assert!(answer.starts_with("[\"NEG-MSG"), "{answer}");
    exact(&mut client, &tree).await;
    Measured { figure, unit: "ms", cpu: contender.cpu() }
}

/// A session with an equal set must find no differences.
async fn exact(client: &mut Client, tree: &negsync::index::Tree) {
    use negsync::reconcile::{Difference, InitiatorStep};
    let options = InitiatorOptions::default().frame_limit_bytes(60_000);
    let mut initiator = Initiator::new(tree, options).unwrap();
    assert!(Responder::new(tree, 60_000).is_ok());
    let mut found = Difference::new();
    let mut message = initiator.open();
    let mut verb = "NEG-OPEN";
    loop {
        let filter = if verb == "NEG-OPEN" { "{}," } else { "" };
        client.send(format!(r#"["{verb}","x",{filter}"{}"]"#, hex(&message))).await;
        let text = client.next_of(&["NEG-"]).await;
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer[0], "NEG-MSG", "{text}");
        let mut bytes = vec![0; answer[2].as_str().unwrap().len() / 2];
        faster_hex::hex_decode(answer[2].as_str().unwrap().as_bytes(), &mut bytes).unwrap();
        match initiator.receive(&bytes, &mut found).unwrap() {
            InitiatorStep::Send(next) => (verb, message) = ("NEG-MSG", next),
            InitiatorStep::Done => break,
        }
    }
    // It may only have live events of earlier rounds in addition.
    assert!(found.have.is_empty(), "{} events are missing", found.have.len());
}

async fn idle_connection(contender: &Contender) -> f64 {
    let before = contender.anonymous_bytes();
    let mut clients = Vec::new();
    for _ in 0..IDLE {
        clients.push(contender.connect().await);
    }
    // A connection counts once the relay has answered.
    for client in &mut clients {
        client.req(r#"{"kinds":[65000],"limit":1}"#).await;
    }
    (contender.anonymous_bytes() - before) / IDLE as f64 / 1e3
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
