//! A relay as a value: messages in, messages out. Its set is the index's tree; its sessions are those
//! of negsync-reconcile. It passes on as negsync does: to its subscribers whatever is new, and to the
//! peers that it asks whatever did not come from them.

use negsync::index::Tree;
use negsync::reconcile::InitiatorOptions;
use negsync::reconcile::item::Item;
use negsync::reconcile::sessions::{Packet, SessionLimits, Sessions};

/// What an event takes as JSON in its message.
const EVENT_BYTES: usize = 700;
/// What an id takes in a filter.
const ID_BYTES: usize = 67;
/// What verb, subscription and brackets take.
const WRAPPING_BYTES: usize = 40;
/// The most ids of a REQ.
const REQ_IDS: usize = 500;

/// What travels over a link.
#[derive(Clone, Debug)]
pub enum Message {
    /// NIP-77.
    Session(Packet),
    /// A REQ by ids.
    Want(Vec<[u8; 32]>),
    /// EVENT messages.
    Events(Vec<Item>),
}

impl Message {
    /// What it takes on the wire.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Session(packet) => WRAPPING_BYTES + packet.payload.len() * 2,
            Self::Want(ids) => WRAPPING_BYTES + ids.len() * ID_BYTES,
            Self::Events(events) => events.len() * EVENT_BYTES,
        }
    }
}

/// What a relay does with what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    Honest,
    /// Says nothing at all.
    Silent,
    /// Takes events, and neither passes them on nor shows them.
    Hoarder,
    /// Says that nothing differs, whatever it is asked.
    Liar,
}

/// A relay.
pub struct Relay {
    pub conduct: Conduct,
    pub set: Tree,
    /// Events that came and were there already.
    pub redundant: u64,
    sessions: Sessions<usize, Tree>,
}

/// One end of a link that is up, as its relay sees it.
#[derive(Clone, Copy, Debug)]
pub struct LinkEnd {
    pub link: usize,
    /// Whether the relay at this end asks, and the other one is its configured peer.
    pub asks: bool,
}

/// What to send, over which link.
pub type Outbox = Vec<(usize, Message)>;

impl Relay {
    pub fn new(conduct: Conduct, set: Tree) -> Self {
        let limits = SessionLimits::default().with_sessions(usize::MAX);
        Self { conduct, set, redundant: 0, sessions: Sessions::new(limits, 0) }
    }

    /// A link is up: whoever asks begins to reconcile.
    pub fn connected(&mut self, end: LinkEnd, out: &mut Outbox) {
        if !end.asks || self.conduct == Conduct::Silent {
            return;
        }
        let set = self.set.clone();
        if let Ok(packet) = self.sessions.open(end.link, set, InitiatorOptions::default(), 0) {
            out.push((end.link, Message::Session(packet)));
        }
    }

    /// A link is down.
    pub fn disconnected(&mut self, link: usize) {
        self.sessions.forget(&link);
    }

    /// A client publishes here.
    pub fn publish(&mut self, event: Item, ends: &[LinkEnd], out: &mut Outbox) {
        self.store(&[event], None, ends, out);
    }

    pub fn receive(&mut self, from: LinkEnd, message: Message, ends: &[LinkEnd], out: &mut Outbox) {
        if self.conduct == Conduct::Silent {
            return;
        }
        match message {
            Message::Session(packet) => self.session(from.link, &packet, out),
            Message::Want(ids) => {
                if self.conduct == Conduct::Honest {
                    let wanted = self.set.iter_range(0..usize::MAX);
                    let wanted = wanted.filter(|item| ids.binary_search(&item.id).is_ok());
                    out.push((from.link, Message::Events(wanted.copied().collect())));
                }
            }
            Message::Events(events) => self.store(&events, Some(from.link), ends, out),
        }
    }

    fn session(&mut self, link: usize, packet: &Packet, out: &mut Outbox) {
        let set = self.set.clone();
        let outcome = self.sessions.receive(&link, packet, 0, || Some(set));
        if let Some(mut reply) = outcome.reply {
            if self.conduct == Conduct::Liar && !reply.payload.is_empty() {
                reply.payload.truncate(1);
            }
            out.push((link, Message::Session(reply)));
        }
        if self.conduct != Conduct::Honest {
            return;
        }
        let mut need = outcome.found.need;
        need.sort_unstable();
        for ids in need.chunks(REQ_IDS) {
            out.push((link, Message::Want(ids.to_vec())));
        }
        if !outcome.found.have.is_empty() {
            let mut have = outcome.found.have;
            have.sort_unstable();
            let ours = self.set.iter_range(0..usize::MAX);
            let missing = ours.filter(|item| have.binary_search(&item.id).is_ok());
            out.push((link, Message::Events(missing.copied().collect())));
        }
    }

    /// Stores what is new, and passes it on.
    fn store(&mut self, events: &[Item], from: Option<usize>, ends: &[LinkEnd], out: &mut Outbox) {
        let mut new: Vec<Item> =
            events.iter().filter(|event| !self.set.contains(event)).copied().collect();
        self.redundant += (events.len() - new.len()) as u64;
        new.sort_unstable();
        self.set.insert_batch(&new);
        if new.is_empty() || self.conduct != Conduct::Honest {
            return;
        }
        for end in ends {
            // A subscriber is sent what it published itself, too: NIP-01 knows no exception.
            if !end.asks || Some(end.link) != from {
                out.push((end.link, Message::Events(new.clone())));
            }
        }
    }
}
