//! Relays, links, and events in simulated time.

use crate::asker::{Asker, loaded};
use crate::event;
use crate::relay::{Conduct, Relay};
use crate::served::{Answer, MAX_LIMIT, Served};
use negsync::index::Tree;
use negsync::item::Item;
use negsync::sync::Information;
use negsync::sync::machine::{Loss, Now, Work};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

/// Events that clients publish, and their rate per second in the whole network.
pub const EVENTS: usize = 300;
pub const EVENTS_PER_S: u64 = 10;
/// Events that all relays have at the beginning.
const SHARED_EVENTS: usize = 5_000;
/// Shared events that each relay lacks at the beginning.
const MISSING_EVENTS: usize = 20;

/// Latency in one direction, in microseconds.
const LATENCY_US: std::ops::Range<u64> = 5_000..120_000;
/// Bytes per second in each direction.
const BYTES_PER_S: u64 = 2_500_000;
/// Probability that a message is lost and sent again, and TCP's delay before that.
const LOSS: f64 = 0.01;
const RETRANSMISSION_US: u64 = 250_000;
/// Average time that a link is up, and time that it is down.
const UP_US: u64 = 60_000_000;
const DOWN_US: std::ops::Range<u64> = 1_000_000..8_000_000;
/// Time for a relay to verify and flush an event.
const STORE_US: u64 = 4_000;
/// Maximum time for a network after the last write.
const HORIZON_US: u64 = 1_800_000_000;

/// Time for other work of a sync: opening a set, reading an answer.
const WORK_US: u64 = 300;
/// Time without another message after which a batch of events is closed.
const QUIET_US: u64 = 50;
/// The start of the network, in seconds since the Unix epoch.
const START_S: u64 = 1_800_000_000;
/// The `created_at` of the shared events.
const SHARED_S: u64 = 1_700_000_000;

/// An event of the simulation.
enum Happening {
    /// A link comes up or breaks.
    Line {
        link: usize,
        is_up: bool,
    },
    /// The asking relay has a connection, or its attempt failed.
    Dialed {
        link: usize,
        attempt: u32,
    },
    Deliver {
        link: usize,
        connection: u32,
        to_asking: bool,
        message: Message,
    },
    /// Work of the sync over a link is done.
    Worked {
        link: usize,
        work: Box<Work>,
    },
    Timer {
        link: usize,
        at: Duration,
    },
    /// No further message has arrived.
    Quiet {
        link: usize,
    },
    /// A relay has verified and flushed an event.
    Flushed {
        link: usize,
        connection: u32,
        event: Item,
    },
    Publish {
        relay: usize,
        event: Item,
    },
}

/// A message on a link.
enum Message {
    Text(String),
    Ping,
    Pong,
}

struct Link {
    asking: usize,
    asked: usize,
    latency_us: u64,
    /// The asking relay's sync; `None` if it is hostile and asks nothing.
    asker: Option<Asker>,
    /// The connection on the side of the asked relay.
    served: Served,
    /// Counts connections; messages of an earlier one are lost.
    connection: u32,
    /// Counts attempts to connect.
    attempt: u32,
    is_up: bool,
    is_dialing: bool,
    is_connected: bool,
    /// The arrival of the last message in transit: to the asking relay, to the other.
    busy_until: [u64; 2],
}

/// The result of a network.
pub struct Outcome {
    pub honest: usize,
    /// The size of the largest group of honest relays that links between honest relays connect.
    pub connected: usize,
    /// The number of these that have all events.
    pub equal: usize,
    /// The time from the last write until half of them do, and until all do.
    pub half_s: Option<f64>,
    pub all_s: Option<f64>,
    bytes: u64,
    redundant: u64,
    deliveries: u64,
}

impl Outcome {
    pub fn bytes_per_delivery(&self) -> f64 {
        self.bytes as f64 / self.deliveries.max(1) as f64
    }

    pub fn redundant_per_delivery(&self) -> f64 {
        self.redundant as f64 / self.deliveries.max(1) as f64
    }
}

pub struct Network {
    rng: StdRng,
    now: u64,
    relays: Vec<Relay>,
    links: Vec<Link>,
    /// All events of the network, by id.
    items: HashMap<[u8; 32], Item>,
    /// The links of each relay.
    links_of: Vec<Vec<usize>>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    happened: u64,
    bytes: u64,
    last_write: u64,
    /// The number of events that an honest relay has at the end.
    expected: usize,
    complete_at: Vec<Option<u64>>,
    /// The relays of the largest connected group of honest ones: clients publish to these, and
    /// these are checked.
    connected: Vec<bool>,
}

impl Network {
    pub fn new(relays: usize, links: &[(usize, usize)], hostile: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6d65_7368);
        let mut numbers: Vec<usize> = (0..relays).collect();
        numbers.shuffle(&mut rng);
        let conducts = [Conduct::Silent, Conduct::Hoarder, Conduct::Liar];
        let mut conduct = vec![Conduct::Honest; relays];
        for (number, relay) in numbers.into_iter().take(hostile).enumerate() {
            conduct[relay] = conducts[number % conducts.len()];
        }
        let shared: Vec<Item> =
            (0..SHARED_EVENTS).map(|_| random_item(&mut rng, SHARED_S)).collect();
        let whole = Tree::from_unsorted(shared.clone());
        let relays: Vec<Relay> = conduct
            .into_iter()
            .map(|conduct| {
                let mut set = whole.clone();
                let mut missing: Vec<Item> = (0..MISSING_EVENTS)
                    .map(|_| shared[rng.random_range(0..shared.len())])
                    .collect();
                missing.sort_unstable();
                missing.dedup();
                set.remove_batch(&missing);
                Relay::new(conduct, set)
            })
            .collect();
        let mut links_of = vec![Vec::new(); relays.len()];
        for (number, (asking, asked)) in links.iter().enumerate() {
            links_of[*asking].push(number);
            links_of[*asked].push(number);
        }
        let links: Vec<Link> = links
            .iter()
            .map(|(asking, asked)| Link {
                asking: *asking,
                asked: *asked,
                latency_us: rng.random_range(LATENCY_US),
                asker: relays[*asking].is_honest().then(|| Asker::new(rng.random(), moment(0))),
                served: Served::default(),
                connection: 0,
                attempt: 0,
                is_up: false,
                is_dialing: false,
                is_connected: false,
                busy_until: [0; 2],
            })
            .collect();
        let complete_at = vec![None; relays.len()];
        let connected = largest_group(&relays, &links);
        let mut network = Self {
            rng,
            now: 0,
            relays,
            links,
            items: shared.into_iter().map(|item| (item.id, item)).collect(),
            links_of,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            happened: 0,
            bytes: 0,
            last_write: 0,
            expected: SHARED_EVENTS,
            complete_at,
            connected,
        };
        network.begin();
        network
    }

    fn begin(&mut self) {
        for link in 0..self.links.len() {
            let at = self.rng.random_range(0..1_000_000);
            self.plan(at, Happening::Line { link, is_up: true });
            self.advance(link);
        }
        let connected: Vec<usize> =
            (0..self.relays.len()).filter(|relay| self.connected[*relay]).collect();
        for number in 0..EVENTS as u64 {
            let at = 2_000_000 + number * 1_000_000 / EVENTS_PER_S;
            let relay = connected[self.rng.random_range(0..connected.len())];
            let event = random_item(&mut self.rng, START_S + at / 1_000_000);
            self.items.insert(event.id, event);
            self.plan(at, Happening::Publish { relay, event });
            self.last_write = at;
        }
        self.expected += EVENTS;
    }

    /// Runs until all honest relays have all events, or until the horizon.
    pub fn run(mut self) -> Outcome {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > self.last_write + HORIZON_US || self.is_complete() {
                break;
            }
            self.now = at;
            if let Some(happening) = self.happenings.remove(&number) {
                self.happen(happening);
            }
        }
        self.outcome()
    }

    fn is_complete(&self) -> bool {
        self.now > self.last_write
            && self
                .connected
                .iter()
                .zip(&self.complete_at)
                .all(|(connected, complete_at)| !connected || complete_at.is_some())
    }

    fn outcome(self) -> Outcome {
        let honest = self.relays.iter().filter(|it| it.is_honest()).count();
        let connected = self.connected.iter().filter(|connected| **connected).count();
        let times = self.complete_at.iter().zip(&self.connected);
        let times = times.filter(|(_, connected)| **connected);
        let mut times: Vec<u64> = times.filter_map(|(complete_at, _)| *complete_at).collect();
        times.sort_unstable();
        let after = |place: usize| {
            let at = times.get(place)?;
            Some(at.saturating_sub(self.last_write) as f64 / 1e6)
        };
        Outcome {
            honest,
            connected,
            equal: times.len(),
            half_s: after(connected.div_ceil(2) - 1),
            all_s: after(connected - 1),
            bytes: self.bytes,
            redundant: self.relays.iter().map(|relay| relay.redundant).sum(),
            deliveries: (EVENTS * honest) as u64,
        }
    }

    fn plan(&mut self, at: u64, happening: Happening) {
        self.queue.push(Reverse((at, self.happened)));
        self.happenings.insert(self.happened, happening);
        self.happened += 1;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Publish { relay, event } => {
                self.relays[relay].store(event);
                self.pass_on(relay, &[event], None);
            }
            Happening::Line { link, is_up } => self.line(link, is_up),
            Happening::Dialed { link, attempt } => self.dialed(link, attempt),
            Happening::Deliver { link, connection, to_asking, message } => {
                let it = &self.links[link];
                if it.is_connected && it.connection == connection {
                    match to_asking {
                        true => self.receive(link, message),
                        false => self.serve(link, message),
                    }
                }
            }
            Happening::Worked { link, work } => self.worked(link, *work),
            Happening::Timer { link, at } => {
                let now = moment(self.now);
                let Some(asker) = &mut self.links[link].asker else { return };
                if asker.timer == Some(at) {
                    asker.timer = None;
                    asker.machine.handle_timeout(now);
                    self.advance(link);
                }
            }
            Happening::Quiet { link } => {
                let now = moment(self.now);
                if let Some(asker) = &mut self.links[link].asker {
                    asker.machine.handle_quiet(now);
                    self.advance(link);
                }
            }
            Happening::Flushed { link, connection, event } => self.flushed(link, connection, event),
        }
    }

    fn line(&mut self, link: usize, is_up: bool) {
        self.links[link].is_up = is_up;
        let lasts_us = match is_up {
            true => self.rng.random_range(0..2 * UP_US),
            false => self.rng.random_range(DOWN_US),
        };
        self.plan(self.now + lasts_us, Happening::Line { link, is_up: !is_up });
        if !is_up {
            self.lost(link);
        }
    }

    /// Handles a broken link.
    fn lost(&mut self, link: usize) {
        if std::mem::take(&mut self.links[link].is_connected) {
            self.links[link].served = Served::default();
            let now = moment(self.now);
            if let Some(asker) = &mut self.links[link].asker {
                asker.machine.handle_lost(Loss::Gone("the line broke".to_owned()), now);
                self.advance(link);
            }
        }
    }

    fn dialed(&mut self, link: usize, attempt: u32) {
        let now = moment(self.now);
        let it = &mut self.links[link];
        let Some(asker) = &mut it.asker else { return };
        if it.attempt != attempt {
            return;
        }
        it.is_dialing = false;
        if it.is_up {
            it.connection += 1;
            (it.is_connected, it.busy_until) = (true, [self.now; 2]);
            let information = match self.relays[it.asked].conduct {
                Conduct::Silent => Information::default(),
                _ => said(),
            };
            asker.machine.handle_connected(information, now);
        } else {
            asker.machine.handle_lost(Loss::Gone("no line".to_owned()), now);
        }
        self.advance(link);
    }

    /// Delivers a message to the asking relay.
    fn receive(&mut self, link: usize, message: Message) {
        let now = moment(self.now);
        let Some(asker) = &mut self.links[link].asker else { return };
        match message {
            Message::Text(text) => asker.machine.handle_message(&text, now),
            Message::Ping | Message::Pong => asker.machine.handle_control(now),
        }
        if asker.machine.has_batch() {
            self.plan(self.now + QUIET_US, Happening::Quiet { link });
        }
        self.advance(link);
    }

    /// Delivers a message to the asked relay.
    fn serve(&mut self, link: usize, message: Message) {
        let it = &mut self.links[link];
        let relay = &self.relays[it.asked];
        if relay.conduct == Conduct::Silent {
            return;
        }
        let Message::Text(text) = message else { return self.send(link, true, Message::Pong) };
        match it.served.receive(&text, relay.conduct, relay.shown(), &self.items) {
            Answer::Send(texts) => {
                for text in texts {
                    self.send(link, true, Message::Text(text));
                }
            }
            Answer::Store(event) => {
                let connection = it.connection;
                self.plan(self.now + STORE_US, Happening::Flushed { link, connection, event });
            }
        }
    }

    fn flushed(&mut self, link: usize, connection: u32, event: Item) {
        let relay = self.links[link].asked;
        let is_new = self.relays[relay].store(event);
        let why = if is_new { "" } else { "duplicate: it is here" };
        let id = faster_hex::hex_string(&event.id);
        if self.links[link].connection == connection {
            self.send(link, true, Message::Text(format!(r#"["OK","{id}",true,"{why}"]"#)));
        }
        if is_new {
            self.pass_on(relay, &[event], None);
        }
    }

    fn worked(&mut self, link: usize, work: Work) {
        let now = moment(self.now);
        let it = &mut self.links[link];
        let Some(asker) = &mut it.asker else { return };
        let (relay, mut new) = (it.asking, Vec::new());
        let done = asker.perform(work, &mut self.relays[relay], &self.items, &mut new);
        asker.machine.handle_work(done, now);
        self.advance(link);
        self.pass_on(relay, &new, Some(link));
    }

    /// Passes new events on as negsync does: to subscribers, including the publisher (NIP-01 has no
    /// exception), and to the peers, except the one they came from.
    fn pass_on(&mut self, relay: usize, new: &[Item], from: Option<usize>) {
        self.note(relay);
        if new.is_empty() || !self.relays[relay].is_honest() {
            return;
        }
        let now = moment(self.now);
        for link in self.links_of[relay].clone() {
            let it = &mut self.links[link];
            if it.asked == relay && it.is_connected {
                let mut texts = Vec::new();
                for item in new {
                    it.served.deliver(item, &event::json(item), &mut texts);
                }
                for text in texts {
                    self.send(link, true, Message::Text(text));
                }
            } else if it.asking == relay
                && from != Some(link)
                && let Some(asker) = &mut it.asker
            {
                asker.machine.handle_local_events(new.iter().map(loaded).collect(), now);
                self.advance(link);
            }
        }
    }

    /// Performs the actions of a link's sync, as the driver does.
    fn advance(&mut self, link: usize) {
        let it = &mut self.links[link];
        let Some(asker) = &mut it.asker else { return };
        let machine = &mut asker.machine;
        let works: Vec<Work> = std::iter::from_fn(|| machine.poll_work()).collect();
        while machine.poll_progress().is_some() {}
        if it.is_connected && !machine.is_up() {
            it.is_connected = false;
            it.served = Served::default();
        }
        let mut messages: Vec<Message> =
            std::iter::from_fn(|| machine.poll_transmit()).map(Message::Text).collect();
        if machine.take_ping() {
            messages.push(Message::Ping);
        }
        let dials = machine.wants_connection() && !it.is_dialing;
        if dials {
            it.is_dialing = true;
            it.attempt += 1;
        }
        let timeout = machine.poll_timeout().filter(|at| asker.timer != Some(*at));
        if timeout.is_some() {
            asker.timer = timeout;
        }
        // TCP, TLS and the WebSocket upgrade take three round trips.
        let (attempt, handshake_us) = (it.attempt, it.latency_us * 6);
        if dials {
            self.plan(self.now + handshake_us, Happening::Dialed { link, attempt });
        }
        if let Some(at) = timeout {
            self.plan(self.now.max(at.as_micros() as u64 + 1), Happening::Timer { link, at });
        }
        for work in works {
            let stores = matches!(work, Work::Ingest { .. });
            let takes_us = if stores { STORE_US } else { WORK_US };
            self.plan(self.now + takes_us, Happening::Worked { link, work: Box::new(work) });
        }
        for message in messages {
            self.send(link, false, message);
        }
    }

    fn note(&mut self, relay: usize) {
        let it = &self.relays[relay];
        if it.is_honest() && it.count() == self.expected && self.complete_at[relay].is_none() {
            self.complete_at[relay] = Some(self.now);
        }
    }

    /// Queues a message on its link.
    fn send(&mut self, link: usize, to_asking: bool, message: Message) {
        let it = &mut self.links[link];
        if !it.is_connected {
            return;
        }
        let bytes = match &message {
            Message::Text(text) => text.len() as u64,
            Message::Ping | Message::Pong => 0,
        };
        self.bytes += bytes;
        let mut takes_us = it.latency_us + bytes * 1_000_000 / BYTES_PER_S;
        if self.rng.random_bool(LOSS) {
            takes_us += RETRANSMISSION_US;
        }
        let busy_until = &mut it.busy_until[usize::from(to_asking)];
        let at = (self.now + takes_us).max(*busy_until + 1);
        *busy_until = at;
        let connection = it.connection;
        self.plan(at, Happening::Deliver { link, connection, to_asking, message });
    }
}

/// The time for a machine.
fn moment(now_us: u64) -> Now {
    Now { at: Duration::from_micros(now_us), unix_s: START_S + now_us / 1_000_000 }
}

/// The NIP-11 information of a relay.
fn said() -> Information {
    Information {
        message_bytes: 1 << 20,
        events_per_req: MAX_LIMIT,
        max_limit: Some(MAX_LIMIT),
        negentropy: Some(true),
        ..Information::default()
    }
}

/// The relays in the largest group of honest ones that links connect.
fn largest_group(relays: &[Relay], links: &[Link]) -> Vec<bool> {
    let mut group: Vec<usize> = (0..relays.len()).collect();
    let honest = |relay: usize| relays[relay].is_honest();
    loop {
        let mut changed = false;
        for link in links.iter().filter(|link| honest(link.asking) && honest(link.asked)) {
            let least = group[link.asking].min(group[link.asked]);
            for relay in [link.asking, link.asked] {
                changed |= group[relay] != least;
                group[relay] = least;
            }
        }
        if !changed {
            break;
        }
    }
    let size = |number: usize| {
        let members = group.iter().enumerate();
        members.filter(|(relay, of)| **of == number && honest(*relay)).count()
    };
    let largest = (0..relays.len()).max_by_key(|number| size(*number)).unwrap_or_default();
    group.iter().enumerate().map(|(relay, of)| *of == largest && honest(relay)).collect()
}

/// An event near this second.
fn random_item(rng: &mut StdRng, second: u64) -> Item {
    let mut id = [0; 32];
    rng.fill_bytes(&mut id);
    Item::new(second + rng.random_range(0..10), id)
}
