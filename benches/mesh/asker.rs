//! A configured live peer: negsync's sync machine over a relay's set. Performs the machine's work
//! as the driver's worker does over a store.

use crate::event;
use crate::relay::Relay;
use negsync::index::Tree;
use negsync::item::Item;
use negsync::reconcile::{Difference, Initiator, InitiatorStep, RangeSet};
use negsync::store::{PeerTraits, SyncMark};
use negsync::sync::machine::{
    Done, Fate, Items, Loaded, Machine, Now, Opening, Settings, Settled, Work,
};
use negsync::sync::{Direction, PeerFilter, Rows};
use std::collections::HashMap;
use std::time::Duration;

/// The default of `sync.full_interval_s`.
const FULL_INTERVAL_S: u64 = 7 * 86_400;

/// One `[[peer]]` with `live = true`.
pub struct Asker {
    pub machine: Machine,
    sessions: HashMap<u64, Initiator<Tree>>,
    refused: HashMap<[u8; 32], String>,
    mark: SyncMark,
    traits: PeerTraits,
    /// The deadline of the scheduled timer.
    pub timer: Option<Duration>,
}

impl Asker {
    pub fn new(nonce: u64, now: Now) -> Self {
        let settings = Settings {
            filter: PeerFilter::parse("{}").expect("a filter"),
            direction: Direction::Both,
            dry_run: false,
            exact: false,
            live: true,
            attempts: None,
            by: None,
            key: None,
            full_interval_s: FULL_INTERVAL_S,
            nonce,
        };
        Self {
            machine: Machine::new("ws://peer", settings, now),
            sessions: HashMap::new(),
            refused: HashMap::new(),
            mark: SyncMark::default(),
            traits: PeerTraits::default(),
            timer: None,
        }
    }

    /// Performs the machine's work. New events are stored and added to `new`.
    pub fn perform(
        &mut self,
        work: Work,
        relay: &mut Relay,
        items: &HashMap<[u8; 32], Item>,
        new: &mut Vec<Item>,
    ) -> Done {
        let set = relay.set();
        match work {
            Work::Recall => Done::Recalled {
                mark: self.mark,
                traits: self.traits.clone(),
                overlap: self.mark.read.map(|read| read.to),
                kept: None,
            },
            Work::Open(opening) => self.open(&opening, set.clone()),
            Work::Answer { session, payload } => self.answer(session, &payload),
            Work::Divide { session, window, .. } => {
                self.sessions.remove(&session);
                Done::Divided { window, parts: None }
            }
            Work::Forget { session } => {
                self.sessions.remove(&session);
                Done::Finished
            }
            Work::Compare { theirs, .. } => {
                let ours = set.iter_range(0..set.len()).map(|item| item.id);
                let have: Vec<[u8; 32]> = ours.filter(|id| !theirs.contains(id)).collect();
                let remembered = self.remembered(&have);
                Done::Compared { have, remembered, rows: Rows::default() }
            }
            Work::Sort { .. } => Done::Sorted(Rows::default()),
            Work::Kinds { ids } => Done::Kinds(ids.into_iter().map(|id| (id, 1)).collect()),
            Work::Count { subscription, .. } => {
                Done::Counted { subscription, all: set.len() as u64, of_kinds: 0 }
            }
            Work::Load { ids } => {
                let ours = ids.iter().filter_map(|id| items.get(id));
                let ours = ours.filter(|item| set.contains(item)).map(loaded);
                Done::Loaded { events: ours.collect(), protected: Vec::new() }
            }
            Work::Ingest { subscription, texts, bytes, .. } => {
                let mut events = Vec::with_capacity(texts.len());
                for text in &texts {
                    let item = event::item(text);
                    let fate = match relay.store(item) {
                        true => {
                            new.push(item);
                            Fate::Stored
                        }
                        false => Fate::Duplicate,
                    };
                    let (id, created_at) = (Some(item.id), item.created_at);
                    events.push(Settled { id, created_at, fate });
                }
                Done::Ingested { subscription, events, bytes }
            }
            Work::RememberRefused(refused) => {
                self.refused.extend(refused.into_iter().map(|it| (it.id, it.reason)));
                Done::Finished
            }
            Work::RememberMark(mark) => {
                self.mark.equal_up_to = mark.equal_up_to.or(self.mark.equal_up_to);
                self.mark.read = mark.read.or(self.mark.read);
                Done::Finished
            }
            Work::RememberTraits(traits) => {
                self.traits = traits;
                Done::Finished
            }
            Work::Sign { .. } => Done::Finished,
            Work::Conclude { .. } => unreachable!("the set's items have times"),
        }
    }

    fn open(&mut self, opening: &Opening, set: Tree) -> Done {
        let count = set.len();
        let newest = count.checked_sub(1).and_then(|last| set.item(last));
        let newest = newest.map_or(0, |item| item.created_at);
        let options = opening.initiator_options();
        let mut initiator = Initiator::new(set, options).expect("limits within the protocol's");
        let message = initiator.open();
        self.sessions.insert(opening.session, initiator);
        let items = Items { count, newest, ahead: None };
        Done::Opened { session: opening.session, message, items }
    }

    fn answer(&mut self, session: u64, payload: &[u8]) -> Done {
        let Some(initiator) = self.sessions.get_mut(&session) else { return Done::Finished };
        let mut found = Difference::new();
        let next = initiator.receive(payload, &mut found).map(|step| match step {
            InitiatorStep::Send(message) => Some(message),
            InitiatorStep::Done => None,
        });
        let unsettled_items = initiator.unsettled_items();
        let mut remembered = self.remembered(&found.have);
        remembered.extend(self.remembered(&found.need));
        Done::Answered { session, found, remembered, unsettled_items, next }
    }

    fn remembered(&self, ids: &[[u8; 32]]) -> HashMap<[u8; 32], String> {
        ids.iter().filter_map(|id| Some((*id, self.refused.get(id)?.clone()))).collect()
    }
}

/// An event to be sent.
pub fn loaded(item: &Item) -> Loaded {
    Loaded { id: item.id, kind: 1, json: event::json(item) }
}
