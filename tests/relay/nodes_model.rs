//! Three relays over one PostgreSQL database. Four writers publish, delete, replace, expire and
//! vanish, and readers open sets on any of the relays: each set is compared with all commits. A
//! trigger of this test records the commits in the database. `scripts/nodes` runs it for longer.

use crate::support::events::unix_now;
use crate::support::negentropy_client::{neg_msg, storage};
use crate::support::process::RelayProcess;
use crate::support::{Author, id_of, model};
use futures_util::{SinkExt, StreamExt};
use negentropy::{Id, Negentropy};
use negsync::config::AuthConfig;
use negsync_testserver::{TestServer, query, run};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

const NODES: usize = 3;
const WRITERS: u64 = 4;
const READERS: u64 = 3;
const AUTHORS: u8 = 4;
/// Timeout for an answer: a node waits for a server that is restarting.
const PATIENCE: Duration = Duration::from_secs(30);

/// Records the additions and removals of each commit.
const HISTORY: &str = "
    CREATE TABLE public.history (place BIGSERIAL PRIMARY KEY, seq BIGINT, added BOOLEAN, id TEXT);
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO public.history (seq, added, id) VALUES (NEW.seq, TRUE, encode(NEW.id, 'hex'));
        ELSE
            INSERT INTO public.history (seq, added, id)
                SELECT seq + 1, FALSE, encode(OLD.id, 'hex') FROM negsync.head;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR DELETE ON negsync.event FOR EACH ROW EXECUTE FUNCTION public.note()";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A request and its viewer.
struct Question {
    filter: Value,
    viewer: Option<u8>,
}

fn questions() -> Vec<Question> {
    let authors = json!([Author::new(1).key(), Author::new(2).key()]);
    let filters = [
        json!({}),
        json!({ "kinds": [1] }),
        json!({ "authors": authors }),
        json!({ "#t": ["x"] }),
        json!({ "kinds": [0, 4, 5, 1_059, 30_023] }),
    ];
    let asked_by =
        |viewer| filters.iter().map(move |filter| Question { filter: filter.clone(), viewer });
    [None, Some(1), Some(2)].into_iter().flat_map(asked_by).collect()
}

impl Question {
    fn selects(&self, event: &Value, private: &[u16]) -> bool {
        let keys: Vec<String> = self.viewer.map(|it| Author::new(it).key()).into_iter().collect();
        model::matches(&self.filter, event)
            && !model::visible(std::slice::from_ref(event), private, &keys).is_empty()
    }
}

/// The number and the sum of a set's ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct SetSum {
    ids: i64,
    sum: u128,
}

impl SetSum {
    fn of(ids: &[Id]) -> Self {
        let mut set = Self::default();
        ids.iter().for_each(|id| set.change(&faster_hex::hex_string(id.as_bytes()), 1));
        set
    }

    /// Adds an id, or removes it with -1.
    fn change(&mut self, id: &str, by: i64) {
        let part = u128::from_str_radix(&id[..32], 16).unwrap();
        self.ids += by;
        self.sum = if by > 0 { self.sum.wrapping_add(part) } else { self.sum.wrapping_sub(part) };
    }
}

/// A set that a node returned.
struct SeenSet {
    question: usize,
    // The number of acknowledged events at the time of the request.
    acknowledged: usize,
    set: SetSum,
}

/// State shared by the tasks.
struct Run {
    nodes: Mutex<Vec<Option<RelayProcess>>>,
    questions: Vec<Question>,
    events: Mutex<Vec<Value>>,
    // Ids, in the order of their OKs.
    acknowledged: Mutex<Vec<String>>,
    seen: Mutex<Vec<SeenSet>>,
    refused: Mutex<u64>,
    is_over: AtomicBool,
}

/// A client whose relay may end at any time.
struct Talk(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Talk {
    /// Connects, and authenticates the viewer. `None`, as for every call, if the relay is gone.
    async fn connect(url: &str, viewer: Option<u8>) -> Option<Self> {
        let mut talk = Self(connect_async(url).await.ok()?.0);
        let challenge = talk.next().await?;
        if let Some(viewer) = viewer {
            let challenge = challenge[1].as_str()?.to_owned();
            let event = Author::new(viewer).authentication(unix_now(), url, &challenge);
            let answer = talk.ask(&json!(["AUTH", event])).await?;
            assert_eq!(answer[2], true, "{answer}");
        }
        Some(talk)
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
            match next.expect("a relay that runs answers within 30 s")?.ok()? {
                Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
                Message::Ping(_) => {}
                _ => return None,
            }
        }
    }

    async fn ask(&mut self, message: &Value) -> Option<Value> {
        self.0.send(Message::text(message.to_string())).await.ok()?;
        self.next().await
    }

    /// The set of a filter; `Some(None)` if it is refused.
    async fn set(&mut self, filter: &Value) -> Option<Option<SetSum>> {
        let mut engine = Negentropy::owned(storage([]), 0).unwrap();
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let opening = faster_hex::hex_string(&engine.initiate().unwrap());
        let mut answer = self.ask(&json!(["NEG-OPEN", "set", filter, opening])).await?;
        loop {
            if answer[0] == "NEG-ERR" {
                return Some(None);
            }
            let message = neg_msg(&answer, "set");
            let next = engine.reconcile_with_ids(&message, &mut have, &mut need).unwrap();
            let Some(next) = next else { break };
            answer = self.ask(&json!(["NEG-MSG", "set", faster_hex::hex_string(&next)])).await?;
        }
        self.0.send(Message::text(r#"["NEG-CLOSE","set"]"#)).await.ok()?;
        assert!(have.is_empty());
        need.sort_unstable();
        need.dedup();
        Some(Some(SetSum::of(&need)))
    }
}

impl Run {
    fn of(nodes: Vec<Option<RelayProcess>>) -> Self {
        Self {
            nodes: Mutex::new(nodes),
            questions: questions(),
            events: Mutex::default(),
            acknowledged: Mutex::default(),
            seen: Mutex::default(),
            refused: Mutex::default(),
            is_over: AtomicBool::new(false),
        }
    }

    fn url(&self, node: usize) -> Option<String> {
        Some(self.nodes.lock().unwrap()[node].as_ref()?.url().to_owned())
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// A random event, sometimes one that was sent before.
    fn event(&self, rng: &mut StdRng, number: u64) -> Value {
        let (author, now) = (Author::new(rng.random_range(1..=AUTHORS)), unix_now());
        let at = now - rng.random_range(0..3);
        let (content, topic) =
            (number.to_string(), if number.is_multiple_of(2) { "x" } else { "y" });
        let to = Author::new(rng.random_range(1..=AUTHORS)).key();
        let earlier = {
            let events = self.events.lock().unwrap();
            let last = events.len().saturating_sub(rng.random_range(1..60));
            events.get(last).cloned()
        };
        let event = match rng.random_range(0..100) {
            0..50 => author.event(1, at, json!([["t", topic]]), &content),
            50..60 => {
                let second = (now + rng.random_range(1..4)).to_string();
                author.event(1, at, json!([["t", "x"], ["expiration", second]]), &content)
            }
            60..65 => author.event(0, at, json!([]), &content),
            65..70 => author.event(30_023, at, json!([["d", (number % 3).to_string()]]), &content),
            70..84 => {
                let named = earlier.as_ref().map_or("00".repeat(32), |it| id_of(it).to_owned());
                author.deletion(now, json!([["e", named]]))
            }
            84..88 => author.event(1_059, at, json!([["p", to]]), &content),
            88..92 => author.event(4, at, json!([["p", to]]), &content),
            92..94 => author.event(62, now - 2, json!([["relay", "ALL_RELAYS"]]), &content),
            _ => match earlier {
                Some(earlier) => return earlier,
                None => author.note(at, &content),
            },
        };
        self.events.lock().unwrap().push(event.clone());
        event
    }

    async fn write(self: Arc<Self>, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut talk, mut number) = (None, seed << 32);
        while !self.is_over() {
            number += 1;
            if talk.is_none() || rng.random_ratio(1, 30) {
                talk = match self.url(rng.random_range(0..NODES)) {
                    Some(url) => Talk::connect(&url, None).await,
                    None => None,
                };
            }
            let event = self.event(&mut rng, number);
            let pause = Duration::from_millis(rng.random_range(0..20));
            tokio::time::sleep(pause).await;
            let Some(client) = &mut talk else { continue };
            match client.ask(&json!(["EVENT", event])).await {
                Some(answer) if answer[2] == true => {
                    self.acknowledged.lock().unwrap().push(id_of(&event).to_owned());
                }
                Some(_) => {}
                None => talk = None,
            }
        }
    }

    /// Requests a set from a node; `None` if it is gone, `Some(false)` if it refuses.
    async fn look(&self, node: usize, question: usize) -> Option<bool> {
        let asked = &self.questions[question];
        let mut talk = Talk::connect(&self.url(node)?, asked.viewer).await?;
        let acknowledged = self.acknowledged.lock().unwrap().len();
        match talk.set(&asked.filter).await? {
            Some(set) => self.seen.lock().unwrap().push(SeenSet { question, acknowledged, set }),
            None => {
                *self.refused.lock().unwrap() += 1;
                return Some(false);
            }
        }
        Some(true)
    }

    async fn read(self: Arc<Self>, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        while !self.is_over() {
            let (node, question) =
                (rng.random_range(0..NODES), rng.random_range(0..self.questions.len()));
            if self.look(node, question).await != Some(true) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Waits until a node returns a set, and returns the time.
    async fn answers(&self, node: usize) -> Duration {
        let began = Instant::now();
        while self.look(node, 0).await != Some(true) {
            assert!(began.elapsed() < PATIENCE, "node {node} answers with no set");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        began.elapsed()
    }
}

/// The nodes, their database, and operations on them.
struct Cluster {
    server: TestServer,
    config: PathBuf,
    // Removed with it.
    _folder: tempfile::TempDir,
    run: Arc<Run>,
    tasks: JoinSet<()>,
}

impl Cluster {
    fn start(seed: u64) -> Option<Self> {
        let server = TestServer::start_own(&[])?;
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("relay.toml");
        let rates =
            "[rates]\nevents_per_s = 0\nqueries_per_s = 0\nneg_per_s = 0\nother_per_s = 0\n";
        let bans = folder.path().join("bans");
        std::fs::write(&config, format!("{rates}[moderation]\nfile = {bans:?}\n")).unwrap();
        let first = node(&server, &config);
        run(server.url(), HISTORY).unwrap();
        let mut nodes = vec![Some(first)];
        nodes.extend((1..NODES).map(|_| Some(node(&server, &config))));
        let run = Arc::new(Run::of(nodes));
        let mut tasks = JoinSet::new();
        for number in 0..WRITERS {
            tasks.spawn(Arc::clone(&run).write(seed + number));
        }
        for number in 0..READERS {
            tasks.spawn(Arc::clone(&run).read(seed + 100 + number));
        }
        Some(Self { server, config, _folder: folder, run, tasks })
    }

    /// Kills a node and starts it again.
    fn restart(&self, number: usize) {
        drop(self.run.nodes.lock().unwrap()[number].take());
        let started = node(&self.server, &self.config);
        self.run.nodes.lock().unwrap()[number] = Some(started);
    }

    /// Ends the tasks, and compares all observations with the history.
    async fn end(mut self) {
        self.run.is_over.store(true, Ordering::Release);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        for node in 0..NODES {
            self.run.answers(node).await;
        }
        check(&self.run, &history(&self.server));
    }
}

fn node(server: &TestServer, config: &Path) -> RelayProcess {
    RelayProcess::start_with(Path::new(server.url()), &["--config", config.to_str().unwrap()])
}

/// A change of the table: the commit, whether an event was added, and its id.
type Noted = (i64, bool, String);

fn history(server: &TestServer) -> Vec<Noted> {
    let rows = query(server.url(), "SELECT seq, added, id FROM public.history ORDER BY place");
    let noted = |row: Vec<Option<String>>| {
        let mut row = row.into_iter().flatten();
        let mut next = || row.next().unwrap();
        (next().parse().unwrap(), next() == "t", next())
    };
    rows.unwrap().into_iter().map(noted).collect()
}

/// Whether `other` deletes an event, is a newer version of it or makes it vanish.
fn removes(other: &Value, event: &Value) -> bool {
    let is_newer = model::created_at(other) >= model::created_at(event)
        && id_of(other) != id_of(event)
        && model::address(event).is_some_and(|it| model::address(other) == Some(it));
    let is_deletion = model::kind(other) == 5 && model::deletes(other, event);
    let is_request = model::kind(other) == 62 && model::vanishes(other, event);
    is_newer || is_deletion || is_request
}

/// Each set equals that of exactly one commit, not older than the last OK before the request; all
/// acknowledged events were in the table.
fn check(run: &Run, history: &[Noted]) {
    let events = run.events.lock().unwrap();
    let events: HashMap<&str, &Value> = events.iter().map(|event| (id_of(event), event)).collect();
    let mut came: HashMap<&str, i64> = HashMap::new();
    for (seq, _, id) in history.iter().filter(|(_, is_added, _)| *is_added) {
        came.entry(id.as_str()).or_insert(*seq);
    }
    // The last commit in effect after each number of OKs.
    let mut least = vec![0];
    for id in run.acknowledged.lock().unwrap().iter() {
        let event = events[id.as_str()];
        let seq = came.get(id.as_str()).copied().unwrap_or_else(|| {
            let is_removed = came.keys().any(|other| removes(events[other], event));
            assert!(is_removed, "acknowledged and lost: {event}");
            // Added and removed in one commit: no set ever had it.
            0
        });
        least.push(seq.max(*least.last().unwrap()));
    }
    let private = AuthConfig::default().private_kinds;
    let seen = run.seen.lock().unwrap();
    let mut with_events = 0;
    for (number, question) in run.questions.iter().enumerate() {
        // The last commit for which the answer was this set.
        let (mut set, mut last) = (SetSum::default(), HashMap::new());
        last.insert(set, 0);
        let mut changes = history.iter().peekable();
        while let Some((seq, is_added, id)) = changes.next() {
            if question.selects(events[id.as_str()], &private) {
                set.change(id, if *is_added { 1 } else { -1 });
            }
            let is_commit = changes.peek().is_none_or(|(next, ..)| next != seq);
            if is_commit {
                let until = changes.peek().map_or(i64::MAX, |(next, ..)| next - 1);
                last.insert(set, until);
            }
        }
        for seen in seen.iter().filter(|seen| seen.question == number) {
            let (filter, viewer) = (&question.filter, question.viewer);
            let Some(until) = last.get(&seen.set) else {
                panic!("{filter} of {viewer:?}: {:?} is no commit's set", seen.set);
            };
            let least = least[seen.acknowledged];
            assert!(*until >= least, "{filter} of {viewer:?} is of {until}, acknowledged {least}");
            with_events += usize::from(seen.set.ids > 0);
        }
    }
    println!(
        "{} commits, {} acknowledged, 0 lost; {} sets, {with_events} with events, each of one commit and \
         none too old; {} refused",
        history.last().map_or(0, |(seq, ..)| *seq),
        least.len() - 1,
        seen.len(),
        run.refused.lock().unwrap()
    );
    assert!(with_events > 0);
}

/// Three notes in three commits, two of them acknowledged, and an answer with `notes`.
fn seen(notes: &[usize]) {
    let author = Author::new(1);
    let events: Vec<Value> = (0..3).map(|number| author.note(number, "a note")).collect();
    let history: Vec<Noted> =
        events.iter().zip(1..).map(|(event, seq)| (seq, true, id_of(event).to_owned())).collect();
    let run = Run::of(Vec::new());
    run.acknowledged.lock().unwrap().extend(events[..2].iter().map(|it| id_of(it).to_owned()));
    let mut set = SetSum::default();
    notes.iter().for_each(|note| set.change(id_of(&events[*note]), 1));
    run.seen.lock().unwrap().push(SeenSet { question: 0, acknowledged: 2, set });
    *run.events.lock().unwrap() = events;
    check(&run, &history);
}

#[test]
fn a_set_of_a_commit_passes() {
    seen(&[0, 1]);
    seen(&[0, 1, 2]);
}

#[test]
#[should_panic(expected = "acknowledged 2")]
fn a_set_without_what_was_acknowledged_before_is_found() {
    seen(&[0]);
}

#[test]
#[should_panic(expected = "is no commit's set")]
fn a_set_between_commits_is_found() {
    seen(&[1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_set_of_any_node_is_of_one_commit_and_none_too_old() {
    let seed = setting("NEGSYNC_SEED", 61);
    let (seconds, sets) = (setting("NEGSYNC_NODES_S", 5), setting("NEGSYNC_NODES_SETS", 100));
    println!("seed {seed}, {seconds} s");
    let Some(cluster) = Cluster::start(seed) else { return };
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let began = Instant::now();
    while (cluster.run.seen.lock().unwrap().len() as u64) < sets {
        assert!(began.elapsed() < 4 * PATIENCE, "fewer than {sets} sets");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_a_server_that_are_killed_lose_nothing_and_answer_right_or_not_at_all() {
    let seed = setting("NEGSYNC_SEED", 62);
    let kills = setting("NEGSYNC_NODES_KILLS", 5);
    println!("seed {seed}, {kills} kills");
    let mut rng = StdRng::seed_from_u64(seed);
    let Some(mut cluster) = Cluster::start(seed) else { return };
    let (mut after_node, mut after_server) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        let moment = Duration::from_millis(rng.random_range(50..800));
        tokio::time::sleep(moment).await;
        if kill % 4 == 3 {
            cluster.server.kill_and_restart();
            for node in 0..NODES {
                after_server.push(cluster.run.answers(node).await);
            }
        } else {
            let number = rng.random_range(0..NODES);
            cluster.restart(number);
            after_node.push(cluster.run.answers(number).await);
        }
    }
    println!("first set of a node that is back: {:?} at the latest", after_node.iter().max());
    println!("first set after the server is back: {:?} at the latest", after_server.iter().max());
    cluster.end().await;
}
