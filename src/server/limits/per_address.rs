//! The addresses of clients, with the state of their limits.

use super::client_address::counted_as;
use super::event_cost::{EventShare, EventsUnderWay, event_cost};
use super::incoming::{Reservation, Room};
use super::subscribed::{SubscribedShare, SubscribedTotal};
use super::token_bucket::{Rate, TokenBucket};
use crate::config::{Config, ConnectionsConfig, RatesConfig};
use crate::server::message::ClientMessage;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Maximum number of remembered addresses without a connection. Above it, addresses whose bucket is
/// not full yet are dropped too.
const MOST_ADDRESSES: usize = 65_536;

/// All addresses.
pub(crate) struct Addresses {
    state: Mutex<AddressesState>,
    // For incoming messages; sized by the configuration at the first connection.
    incoming: OnceLock<Room>,
    events: EventsUnderWay,
    subscribed: SubscribedTotal,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            incoming: OnceLock::new(),
            events: EventsUnderWay::in_all(),
            subscribed: SubscribedTotal::default(),
        }
    }
}

#[derive(Default)]
struct AddressesState {
    by_address: HashMap<IpAddr, AddressEntry>,
    connections: usize,
}

struct AddressEntry {
    connections: usize,
    incoming: Room,
    buckets: Arc<Mutex<AddressBuckets>>,
    events: Arc<EventsUnderWay>,
    subscribed: SubscribedTotal,
}

/// The rate limits of an address.
struct AddressBuckets {
    events: TokenBucket,
    queries: TokenBucket,
    neg: TokenBucket,
    other: TokenBucket,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// The total number of connections is reached.
    InAll,
    /// The number of connections of this address is reached.
    Address,
}

impl Full {
    /// The label among the metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::InAll => "connections",
            Self::Address => "address",
        }
    }
}

/// A connection's slot; free once this is dropped.
pub(crate) struct Place {
    addresses: Arc<Addresses>,
    client: IpAddr,
    // The address for limits.
    address: IpAddr,
    buckets: Arc<Mutex<AddressBuckets>>,
    // Of the address, and of all addresses.
    incoming: (Room, Room),
    events: Arc<EventsUnderWay>,
    // Of the address.
    subscribed: SubscribedTotal,
}

impl Addresses {
    /// Takes a slot for a connection from `address`.
    pub(crate) fn connect(
        self: &Arc<Self>,
        address: IpAddr,
        config: &ConnectionsConfig,
    ) -> Result<Place, Full> {
        let (client, address) = (address, counted_as(address));
        let now = Instant::now();
        let mut state = self.lock();
        if state.connections >= config.in_all {
            return Err(Full::InAll);
        }
        let entry = state.entry(address, now, config);
        if entry.connections >= config.per_address {
            return Err(Full::Address);
        }
        entry.connections += 1;
        let (buckets, events) = (Arc::clone(&entry.buckets), Arc::clone(&entry.events));
        let subscribed = entry.subscribed.clone();
        let in_all = || Room::new(config.incoming_bytes_in_all);
        let incoming = (entry.incoming.clone(), self.incoming.get_or_init(in_all).clone());
        state.connections += 1;
        let addresses = Arc::clone(self);
        Ok(Place { addresses, client, address, buckets, incoming, events, subscribed })
    }

    /// Takes the cost of an HTTP request, and waits until the rate limit of its address allows it.
    pub(crate) async fn pace(&self, address: IpAddr, config: &Config) {
        let (address, now) = (counted_as(address), Instant::now());
        let buckets = {
            let mut state = self.lock();
            Arc::clone(&state.entry(address, now, &config.connections).buckets)
        };
        pace(&buckets, &config.rates).await;
    }

    fn lock(&self) -> MutexGuard<'_, AddressesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AddressesState {
    /// The state of an address.
    fn entry(
        &mut self,
        address: IpAddr,
        now: Instant,
        config: &ConnectionsConfig,
    ) -> &mut AddressEntry {
        self.make_room(&address, now);
        self.by_address.entry(address).or_insert_with(|| AddressEntry::new(now, config))
    }

    /// Drops addresses in their initial state, if there are too many.
    fn make_room(&mut self, address: &IpAddr, now: Instant) {
        if self.by_address.len() < MOST_ADDRESSES || self.by_address.contains_key(address) {
            return;
        }
        self.by_address.retain(|_, entry| entry.connections > 0 || !entry.is_as_new(now));
        if self.by_address.len() >= MOST_ADDRESSES {
            self.by_address.retain(|_, entry| entry.connections > 0);
        }
    }
}

impl AddressEntry {
    fn new(now: Instant, config: &ConnectionsConfig) -> Self {
        let bucket = TokenBucket::new(now);
        let incoming = Room::new(config.incoming_bytes_per_address);
        let buckets =
            AddressBuckets { events: bucket, queries: bucket, neg: bucket, other: bucket };
        let events = Arc::new(EventsUnderWay::of_an_address());
        let buckets = Arc::new(Mutex::new(buckets));
        Self { connections: 0, incoming, buckets, events, subscribed: SubscribedTotal::default() }
    }

    fn is_as_new(&self, now: Instant) -> bool {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        [buckets.events, buckets.queries, buckets.neg, buckets.other]
            .iter()
            .all(|bucket| bucket.is_full(now))
    }
}

impl Place {
    /// The address of the client.
    pub(crate) fn client(&self) -> IpAddr {
        self.client
    }

    /// The address for limits: an IPv4 address or an IPv6 network.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Waits for room for an incoming message of this many bytes.
    pub(crate) fn reserve(&self, bytes: usize) -> impl Future<Output = Reservation> + Send + use<> {
        let (address, in_all) = self.incoming.clone();
        Reservation::take(address, in_all, bytes)
    }

    /// Takes the cost of a message that is never refused (a ping, a CLOSE, malformed text), and
    /// waits until the rate limit of its address allows it. A connection waits for one at a time.
    pub(crate) async fn pace(&self, rates: &RatesConfig) {
        pace(&self.buckets, rates).await;
    }

    /// Waits until an event of this cost may be verified and stored.
    pub(crate) async fn event_share(&self, cost: u32) -> EventShare {
        EventShare::take(&self.events, &self.addresses.events, cost).await
    }

    /// The memory of the connection's subscriptions; zero at first.
    pub(crate) fn subscribed(&self) -> SubscribedShare {
        SubscribedShare::new(&self.subscribed, &self.addresses.subscribed)
    }

    /// Takes the cost of a message. The error names the limit, if its address has sent too many.
    pub(crate) fn admit(&self, message: &ClientMessage, rates: &RatesConfig) -> Result<(), String> {
        use ClientMessage::{Auth, Close, Count, Event, NegClose, NegMsg, NegOpen, Req};
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        // An event costs by its size; other messages cost one unit.
        let cost = match message {
            Event(json) => u64::from(event_cost(json)),
            _ => 1,
        };
        let (bucket, per_s, burst, what) = match message {
            // Each needs a signature check.
            Event(_) | Auth(_) => {
                (&mut buckets.events, rates.events_per_s, rates.events_burst, "EVENT messages")
            }
            Req { .. } | Count { .. } => {
                (&mut buckets.queries, rates.queries_per_s, rates.queries_burst, "queries")
            }
            NegOpen { .. } | NegMsg { .. } => {
                (&mut buckets.neg, rates.neg_per_s, rates.neg_burst, "NEG messages")
            }
            Close(_) | NegClose(_) => return Ok(()),
        };
        let rate = Rate { per_s, burst };
        if bucket.take(rate, cost, Instant::now()) {
            return Ok(());
        }
        Err(format!("{} {what} a second from one address; slow down", rate.per_s))
    }
}

/// Takes the cost of a message that is never refused, and waits until the rate limit allows it. If
/// the wait ends early, the cost is returned, so that later messages do not wait for it.
async fn pace(buckets: &Mutex<AddressBuckets>, rates: &RatesConfig) {
    let rate = Rate { per_s: rates.other_per_s, burst: rates.other_burst };
    let wait = {
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.other.owe(rate, Instant::now())
    };
    if !wait.is_zero() {
        let mut owed = OwedToken { buckets, rate, is_used: false };
        tokio::time::sleep(wait).await;
        owed.is_used = true;
    }
}

/// A token that is being waited for; returned if the wait ends early.
struct OwedToken<'buckets> {
    buckets: &'buckets Mutex<AddressBuckets>,
    rate: Rate,
    is_used: bool,
}

impl Drop for OwedToken<'_> {
    fn drop(&mut self) {
        if !self.is_used {
            let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            buckets.other.give_back(self.rate);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.addresses.lock();
        state.connections = state.connections.saturating_sub(1);
        let Some(entry) = state.by_address.get_mut(&self.address) else { return };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.connections == 0 && entry.is_as_new(now) {
            state.by_address.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn config(in_all: usize, per_address: usize) -> ConnectionsConfig {
        ConnectionsConfig { in_all, per_address, ..ConnectionsConfig::default() }
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn places_are_counted_by_address_and_in_all_and_given_back() {
        let addresses = Arc::new(Addresses::default());
        let config = config(3, 2);
        let a = addresses.connect(address(1), &config).ok().unwrap();
        let _b = addresses.connect(address(1), &config).ok().unwrap();
        assert_eq!(addresses.connect(address(1), &config).err(), Some(Full::Address));
        let _c = addresses.connect(address(2), &config).ok().unwrap();
        assert_eq!(addresses.connect(address(2), &config).err(), Some(Full::InAll));
        drop(a);
        assert!(addresses.connect(address(1), &config).is_ok());
    }

    /// A new connection does not fill the bucket.
    #[test]
    fn what_was_sent_is_remembered_after_the_connection_and_the_table_is_bounded() {
        let addresses = Arc::new(Addresses::default());
        let config = config(10, 10);
        let rates = RatesConfig { neg_per_s: 1, neg_burst: 2, ..RatesConfig::default() };
        let open = ClientMessage::NegMsg { id: "x".into(), payload: Vec::new() };
        for expected in [true, true, false, false] {
            let place = addresses.connect(address(1), &config).ok().unwrap();
            assert_eq!(place.admit(&open, &rates).is_ok(), expected);
        }
        let place = addresses.connect(address(0), &config).ok().unwrap();
        for number in 2..3 * MOST_ADDRESSES as u32 {
            let place = addresses.connect(address(number), &config).ok().unwrap();
            assert!(place.admit(&open, &rates).is_ok());
            assert!(addresses.lock().by_address.len() <= MOST_ADDRESSES + 1);
        }
        drop(place);
    }

    /// Connections that end while waiting would otherwise block their address for hours.
    #[tokio::test]
    async fn requests_that_leave_while_they_wait_owe_nothing() {
        let addresses = Addresses::default();
        let rates = RatesConfig { other_per_s: 1, other_burst: 5, ..RatesConfig::default() };
        let config = Config { rates: rates.clone(), ..Config::default() };
        for _ in 0..1_000 {
            let waiting = std::pin::pin!(addresses.pace(address(1), &config));
            let _ = futures_util::poll!(waiting);
        }
        let buckets = Arc::clone(
            &addresses.lock().entry(address(1), Instant::now(), &config.connections).buckets,
        );
        let rate = Rate { per_s: rates.other_per_s, burst: rates.other_burst };
        let wait = buckets.lock().unwrap().other.owe(rate, Instant::now());
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
    }
}
