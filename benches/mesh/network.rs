//! Relays, links, and the events of simulated time.

use crate::relay::{Conduct, LinkEnd, Message, Outbox, Relay};
use negsync::index::Tree;
use negsync::reconcile::RangeSet;
use negsync::reconcile::item::Item;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Events that clients publish, and how many of them a second in the whole network.
pub const EVENTS: usize = 300;
pub const EVENTS_PER_S: u64 = 10;
/// Events that all relays have from the beginning.
const SHARED_EVENTS: usize = 5_000;
/// Events of the shared ones that each relay lacks from the beginning.
const MISSING_EVENTS: usize = 20;

/// One way, in microseconds.
const LATENCY_US: std::ops::Range<u64> = 5_000..120_000;
/// Bytes a second each way.
const BYTES_PER_S: u64 = 2_500_000;
/// The odds that a message is lost and sent again, and how long TCP waits first.
const LOSS: f64 = 0.01;
const RETRANSMISSION_US: u64 = 250_000;
/// How long a link lasts on average, and how long it is down.
const UP_US: u64 = 60_000_000;
const DOWN_US: std::ops::Range<u64> = 1_000_000..8_000_000;
/// How long a relay takes to verify and flush.
const STORE_US: u64 = 4_000;
/// How long after the last write a network may take.
const HORIZON_US: u64 = 1_800_000_000;

/// Something that happens.
enum Happening {
    Deliver { link: usize, to_asking: bool, connection: u32, message: Message },
    Up(usize),
    Down { link: usize, connection: u32 },
    Publish { relay: usize, event: Item },
}

struct Link {
    asking: usize,
    asked: usize,
    latency_us: u64,
    /// Counts connections; what is under way of an earlier one is lost.
    connection: u32,
    up: bool,
    /// When the last message under way arrives: to the relay that asks, to the other.
    busy_until: [u64; 2],
}

/// What came of a network.
pub struct Outcome {
    pub honest: usize,
    /// Honest relays that hold all.
    pub equal: usize,
    /// From the last write, until half of them do, and all.
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
    /// The links of each relay.
    links_of: Vec<Vec<usize>>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    happened: u64,
    bytes: u64,
    last_write: u64,
    /// How many events an honest relay holds in the end.
    expected: usize,
    complete_at: Vec<Option<u64>>,
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
            (0..SHARED_EVENTS).map(|_| event(&mut rng, 1_700_000_000)).collect();
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
                connection: 0,
                up: false,
                busy_until: [0; 2],
            })
            .collect();
        let complete_at = vec![None; relays.len()];
        let mut network = Self {
            rng,
            now: 0,
            relays,
            links,
            links_of,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            happened: 0,
            bytes: 0,
            last_write: 0,
            expected: SHARED_EVENTS,
            complete_at,
        };
        network.begin();
        network
    }

    fn begin(&mut self) {
        for link in 0..self.links.len() {
            let at = self.rng.random_range(0..1_000_000);
            self.plan(at, Happening::Up(link));
        }
        let honest: Vec<usize> = (0..self.relays.len())
            .filter(|relay| self.relays[*relay].conduct == Conduct::Honest)
            .collect();
        for number in 0..EVENTS as u64 {
            let at = 2_000_000 + number * 1_000_000 / EVENTS_PER_S;
            let relay = honest[self.rng.random_range(0..honest.len())];
            let event = event(&mut self.rng, 1_800_000_000 + at / 1_000_000);
            self.plan(at, Happening::Publish { relay, event });
            self.last_write = at;
        }
        self.expected += EVENTS;
    }

    /// Lets time pass until all honest relays hold all, or the horizon.
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
            && self.relays.iter().zip(&self.complete_at).all(|(relay, complete_at)| {
                relay.conduct != Conduct::Honest || complete_at.is_some()
            })
    }

    fn outcome(self) -> Outcome {
        let honest = self.relays.iter().filter(|it| it.conduct == Conduct::Honest).count();
        let mut times: Vec<u64> = self.complete_at.iter().flatten().copied().collect();
        times.sort_unstable();
        let after = |place: usize| {
            let at = times.get(place)?;
            Some(at.saturating_sub(self.last_write) as f64 / 1e6)
        };
        Outcome {
            honest,
            equal: times.len(),
            half_s: after(honest.div_ceil(2) - 1),
            all_s: after(honest - 1),
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
        let mut out = Outbox::new();
        match happening {
            Happening::Publish { relay, event } => {
                let ends = self.ends(relay);
                self.relays[relay].publish(event, &ends, &mut out);
                self.sent(relay, out, STORE_US);
            }
            Happening::Up(link) => {
                let it = &mut self.links[link];
                (it.up, it.busy_until) = (true, [self.now; 2]);
                it.connection += 1;
                let (connection, asking) = (it.connection, it.asking);
                // TCP, TLS and the WebSocket take three round trips.
                let handshake_us = it.latency_us * 6;
                let lasts_us = self.rng.random_range(0..2 * UP_US);
                self.plan(self.now + lasts_us, Happening::Down { link, connection });
                self.relays[asking].connected(LinkEnd { link, asks: true }, &mut out);
                self.sent(asking, out, handshake_us);
            }
            Happening::Down { link, connection } => {
                if self.links[link].connection == connection {
                    self.links[link].up = false;
                    let Link { asking, asked, .. } = self.links[link];
                    self.relays[asking].disconnected(link);
                    self.relays[asked].disconnected(link);
                    let down_us = self.rng.random_range(DOWN_US);
                    self.plan(self.now + down_us, Happening::Up(link));
                }
            }
            Happening::Deliver { link, to_asking, connection, message } => {
                let Link { asking, asked, up, .. } = self.links[link];
                if !up || self.links[link].connection != connection {
                    return;
                }
                let relay = if to_asking { asking } else { asked };
                let ends = self.ends(relay);
                let from = LinkEnd { link, asks: to_asking };
                let stores = matches!(message, Message::Events(_));
                self.relays[relay].receive(from, message, &ends, &mut out);
                self.note(relay);
                self.sent(relay, out, if stores { STORE_US } else { 0 });
            }
        }
    }

    /// The ends of a relay's links that are up.
    fn ends(&self, relay: usize) -> Vec<LinkEnd> {
        let up = self.links_of[relay].iter().filter(|link| self.links[**link].up);
        up.map(|link| LinkEnd { link: *link, asks: self.links[*link].asking == relay }).collect()
    }

    fn note(&mut self, relay: usize) {
        let it = &self.relays[relay];
        let is_complete = it.conduct == Conduct::Honest && it.set.len() == self.expected;
        if is_complete && self.complete_at[relay].is_none() {
            self.complete_at[relay] = Some(self.now);
        }
    }

    /// Puts messages on their links, in order.
    fn sent(&mut self, relay: usize, out: Outbox, after_us: u64) {
        self.note(relay);
        for (link, message) in out {
            let it = &mut self.links[link];
            if !it.up {
                continue;
            }
            let to_asking = it.asked == relay;
            let bytes = message.bytes();
            self.bytes += bytes as u64;
            let mut takes_us = it.latency_us + bytes as u64 * 1_000_000 / BYTES_PER_S;
            if self.rng.random_bool(LOSS) {
                takes_us += RETRANSMISSION_US;
            }
            let busy_until = &mut it.busy_until[usize::from(to_asking)];
            let at = (self.now + after_us + takes_us).max(*busy_until + 1);
            *busy_until = at;
            let connection = it.connection;
            self.plan(at, Happening::Deliver { link, to_asking, connection, message });
        }
    }
}

/// An event of about this second.
fn event(rng: &mut StdRng, second: u64) -> Item {
    let mut id = [0; 32];
    rng.fill_bytes(&mut id);
    Item::new(second + rng.random_range(0..10), id)
}
