//! Our side of the sync with one of the relays: the events of the other relays instead of a store.

use super::super::driver::{OurEvents, OurSide};
use super::super::filter::Window;
use super::super::machine::{Asked, Done, Fate, Id, Items, Loaded, Opening, Settled, Work};
use super::super::message::page_event;
use super::super::reason::Reason;
use super::exchange::{Exchange, PassedEvents};
use super::id_list::IdListBuilder;
use crate::hex;
use crate::index::{Slice, Tree};
use crate::reconcile::{Difference, Initiator, InitiatorOptions, InitiatorStep, Rule};
use crate::relay_url::RelayUrl;
use crate::store::{Clock, Event, Origin, PeerTraits, SyncMark, Verifier};
use nostr::{EventBuilder, JsonUtil, Keys};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared by the sides of all relays.
pub(super) struct Common {
    pub(super) exchange: Exchange,
    pub(super) verifier: Verifier,
    pub(super) keys: Option<Keys>,
    /// Whether to move events that only their author may publish (NIP-70).
    pub(super) moves_protected: bool,
    pub(super) dry_run: bool,
    pub(super) clock: Clock,
}

/// The other relays, as our side of the sync with one relay.
pub(super) struct RelaySide {
    common: Arc<Common>,
    relay: usize,
    url: RelayUrl,
    sessions: Mutex<HashMap<u64, Initiator<Slice>>>,
    /// The ids that the relay has shown since its last complete list.
    listing: Mutex<IdListBuilder>,
    /// How to query the relay; outlives the pass.
    traits: Arc<Mutex<PeerTraits>>,
    live: Option<PassedEvents>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RelaySide {
    pub(super) fn new(
        common: &Arc<Common>,
        relay: usize,
        url: &RelayUrl,
        traits: &Arc<Mutex<PeerTraits>>,
    ) -> Self {
        Self {
            common: Arc::clone(common),
            relay,
            url: url.clone(),
            sessions: Mutex::default(),
            listing: Mutex::default(),
            traits: Arc::clone(traits),
            live: common.exchange.listen(),
        }
    }

    fn failed(&self, error: &io::Error) -> Done {
        Done::Failed(format!("the exchange with {}: {error}", self.url))
    }

    /// `losses` is the number of lost connections at the start of the work.
    fn try_perform(&self, work: Work, losses: u64) -> io::Result<Done> {
        Ok(match work {
            Work::Recall => {
                let (mark, traits) = (SyncMark::default(), lock(&self.traits).clone());
                Done::Recalled { mark, traits, overlap: None, kept: None }
            }
            Work::Open(opening) => self.open(&opening)?,
            Work::Answer { session, payload } => self.answer(session, &payload)?,
            Work::Divide { session, window, cap } => self.divide(session, window, cap),
            Work::Forget { session } => {
                lock(&self.sessions).remove(&session);
                Done::Finished
            }
            Work::Conclude { look, is_first, is_whole } => {
                self.conclude(look, is_first, is_whole, losses)?
            }
            Work::Load { ids } => self.load(&ids, losses)?,
            Work::RememberTraits(traits) => {
                *lock(&self.traits) = traits;
                Done::Finished
            }
            Work::Sign { challenge } => self.sign(&challenge),
            // Pages are compared when all of them are read: see `conclude`.
            Work::Compare { .. } => Done::Finished,
            // No state outlives the command, and there are no rows.
            Work::RememberRefused(_)
            | Work::RememberMark(_)
            | Work::Sort { .. }
            | Work::Count { .. }
            | Work::Kinds { .. }
            | Work::Ingest { .. } => Done::Finished,
        })
    }

    /// An empty set: the relay answers with all its ids.
    fn open(&self, opening: &Opening) -> io::Result<Done> {
        let options = InitiatorOptions::default()
            .rule(Rule::Exact)
            .frame_limit_bytes(opening.frame_limit_bytes)
            .opening_limit_bytes(opening.opening_limit_bytes)
            .since(opening.window.since);
        let mut initiator = Initiator::new(nothing(), options).map_err(io::Error::other)?;
        let message = initiator.open();
        lock(&self.sessions).insert(opening.session, initiator);
        Ok(Done::Opened { session: opening.session, message, items: Items::default() })
    }

    fn answer(&self, session: u64, payload: &[u8]) -> io::Result<Done> {
        let initiator = lock(&self.sessions).remove(&session);
        let Some(mut initiator) = initiator else { return Ok(Done::Finished) };
        let mut found = Difference::new();
        let next = initiator.receive(payload, &mut found).map(|step| match step {
            InitiatorStep::Send(message) => Some(message),
            InitiatorStep::Done => None,
        });
        lock(&self.sessions).insert(session, initiator);
        let mut listing = lock(&self.listing);
        for id in found.need {
            listing.push(id)?;
        }
        let found = Difference::new();
        let remembered = HashMap::new();
        Ok(Done::Answered { session, found, remembered, unsettled_items: 0, next })
    }

    fn divide(&self, session: u64, window: Window, cap: Option<u64>) -> Done {
        lock(&self.sessions).remove(&session);
        Done::Divided { window, parts: window.divide(&nothing(), cap, self.common.clock.now()) }
    }

    fn conclude(&self, look: u64, is_first: bool, is_whole: bool, losses: u64) -> io::Result<Done> {
        let list = std::mem::take(&mut *lock(&self.listing)).finish();
        let exchange = &self.common.exchange;
        if self.common.dry_run {
            exchange.noted(self.relay, list);
            return Ok(Done::Concluded { look, have: Vec::new(), need: Vec::new() });
        }
        let orders = exchange.listed(self.relay, list, is_first, is_whole, losses)?;
        Ok(Done::Concluded { look, have: orders.have, need: orders.need })
    }

    fn load(&self, ids: &[Id], losses: u64) -> io::Result<Done> {
        let delivery = self.common.exchange.load(self.relay, ids, losses)?;
        let load = |(id, json): (Id, String)| {
            let kind = page_event(&json).map_or(0, |event| event.kind);
            Loaded { id, kind, json }
        };
        let events = delivery.events.into_iter().map(load).collect();
        Ok(Done::Loaded { events, protected: delivery.protected })
    }

    /// NIP-42.
    fn sign(&self, challenge: &str) -> Done {
        let url = nostr::RelayUrl::parse(&self.url.address());
        let (Some(keys), Ok(url)) = (&self.common.keys, url) else { return Done::Finished };
        match EventBuilder::auth(challenge, url).sign_with_keys(keys) {
            Ok(event) => Done::Signed { id: event.id.to_bytes(), json: event.as_json() },
            Err(error) => {
                tracing::warn!(%error, "a challenge could not be signed");
                Done::Finished
            }
        }
    }
}

fn nothing() -> Slice {
    Slice::new(Tree::new(), None, None, None)
}

impl OurSide for RelaySide {
    fn begin(self: Arc<Self>, work: Work) -> impl FnOnce() -> Done + Send {
        let losses = self.common.exchange.losses(self.relay);
        move || self.try_perform(work, losses).unwrap_or_else(|error| self.failed(&error))
    }

    async fn ingest(&self, work: Work) -> Done {
        let Work::Ingest { subscription, asked, texts, bytes, live } = work else {
            return Done::Finished;
        };
        let origin = Origin::Peer(self.url.to_string().into());
        let (common, relay) = (Arc::clone(&self.common), self.relay);
        let is_page = matches!(asked, Asked::Matching(_) | Asked::Listing(_)) && !live;
        let check = move || {
            let take = |text: &str| match is_page {
                true => list(&asked, text),
                false => common.take(relay, &asked, text, live),
            };
            texts.iter().map(|text| take(text)).collect::<Vec<Settled>>()
        };
        let Some(events) = self.common.verifier.check(&origin, bytes, check).await else {
            return self.failed(&io::Error::other("a check failed"));
        };
        if is_page {
            let mut listing = lock(&self.listing);
            for id in events.iter().filter(|it| it.fate == Fate::Noted).filter_map(|it| it.id) {
                if let Err(error) = listing.push(id) {
                    return self.failed(&error);
                }
            }
        }
        Done::Ingested { subscription, events, bytes }
    }

    async fn next_events(&self) -> OurEvents {
        match &self.live {
            Some(live) => self.common.exchange.next(self.relay, live).await,
            None => std::future::pending().await,
        }
    }

    fn peer_lost(&self, is_out_of_reach: bool) {
        self.common.exchange.lost(self.relay, is_out_of_reach);
    }

    fn download_ended(&self) {
        self.common.exchange.ended(self.relay);
    }

    fn stop(&self) {
        self.common.exchange.stop();
    }
}

/// Records the id of an event on a page.
fn list(asked: &Asked, text: &str) -> Settled {
    match Event::parse(text) {
        Err(error) => invalid(asked, error.id.as_deref()),
        Ok(event) if asked.accepts(&event) => Settled::of(event.item(), Fate::Noted),
        Ok(event) => asked.refusal(&event),
    }
}

fn invalid(asked: &Asked, hex: Option<&str>) -> Settled {
    let id = hex.and_then(hex::decode_array).filter(|id| asked.names(id));
    Settled { id, created_at: 0, fate: Fate::Refused(Reason::Invalid) }
}

impl Common {
    /// Takes an event that goes to other relays.
    fn take(&self, relay: usize, asked: &Asked, text: &str, live: bool) -> Settled {
        let event = match Event::parse(text) {
            Err(error) => return invalid(asked, error.id.as_deref()),
            Ok(event) if !asked.accepts(&event) => return asked.refusal(&event),
            Ok(event) => event,
        };
        let (item, kind) = (event.item(), event.kind());
        let is_held = event.is_protected() && !self.moves_protected;
        let settled = |fate| Settled::of(item, fate);
        if is_held {
            self.exchange.arrived_protected(&item.id);
            return settled(Fate::Refused(Reason::Protected));
        }
        let event = match event.verify() {
            Ok(event) => event.into_inner(),
            Err(_) => return settled(Fate::Refused(Reason::Invalid)),
        };
        let json = event.json();
        let taken = if live {
            let event = Loaded { id: item.id, kind, json: json.to_owned() };
            let passed = self.exchange.pass_on(relay, event);
            passed.map(|is_new| if is_new { Fate::Stored } else { Fate::Duplicate })
        } else {
            let kept = self.exchange.arrived(&item.id, json);
            kept.map(|kept| if kept { Fate::Stored } else { Fate::Refused(Reason::NotMoved) })
        };
        settled(taken.unwrap_or_else(|error| Fate::Failed(error.to_string())))
    }
}
