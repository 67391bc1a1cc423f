//! Our side of a sync as a value: performs the machine's work without a disk.

use super::model_peer::{ModelEvent, matches};
use negsync::item::Item;
use negsync::reconcile::{Difference, Initiator, InitiatorStep, RangeSet, SortedItems};
use negsync::store::{PeerTraits, RetentionWindow, SyncMark};
use negsync::sync::machine::{Asked, Done, Fate, Items, Loaded, Seen, Settled, Work};
use negsync::sync::{Reason, Rows};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub struct ModelStore {
    pub events: BTreeMap<Item, ModelEvent>,
    sessions: HashMap<u64, Initiator<SortedItems>>,
    refused: HashMap<[u8; 32], String>,
    mark: SyncMark,
    traits: PeerTraits,
    seconds: u64,
    pub kept: Option<RetentionWindow>,
}

impl ModelStore {
    pub fn new(events: Vec<ModelEvent>, seconds: u64) -> Self {
        Self {
            events: events.into_iter().map(|event| (event.item, event)).collect(),
            sessions: HashMap::new(),
            refused: HashMap::new(),
            mark: SyncMark::default(),
            traits: PeerTraits::default(),
            seconds,
            kept: None,
        }
    }

    pub fn add_some(&mut self, rng: &mut StdRng) {
        for _ in 0..rng.random_range(0..4) {
            let event = ModelEvent::random(rng, self.seconds);
            self.events.insert(event.item, event);
        }
    }

    pub fn ids(&self, filter: &str) -> BTreeSet<[u8; 32]> {
        let filter: Value = serde_json::from_str(filter).unwrap();
        self.events.values().filter(|event| matches(&filter, event)).map(|it| it.item.id).collect()
    }

    pub fn second(&self, id: &[u8; 32]) -> Option<u64> {
        self.by_id(id).map(|event| event.item.created_at)
    }

    /// Whether it has an event outside a window of retention.
    pub fn is_past(&self, id: &[u8; 32], kept: &RetentionWindow) -> bool {
        self.by_id(id).is_some_and(|event| event.is_past(kept))
    }

    pub fn is_private(&self, id: &[u8; 32]) -> bool {
        self.events.values().any(|event| event.item.id == *id && [4, 1_059].contains(&event.kind))
    }

    fn set(&self, filter: &serde_json::Map<String, Value>) -> SortedItems {
        let filter = Value::Object(filter.clone());
        let matching = self.events.values().filter(|event| matches(&filter, event));
        SortedItems::new(matching.map(|event| event.item).collect())
    }

    fn remembered(&self, ids: &[[u8; 32]]) -> HashMap<[u8; 32], String> {
        ids.iter().filter_map(|id| Some((*id, self.refused.get(id)?.clone()))).collect()
    }

    fn by_id(&self, id: &[u8; 32]) -> Option<&ModelEvent> {
        self.events.values().find(|event| event.item.id == *id)
    }

    pub fn perform(&mut self, work: Work) -> Done {
        match work {
            Work::Recall => Done::Recalled {
                mark: self.mark,
                traits: self.traits.clone(),
                overlap: self.mark.read.map(|read| read.to.saturating_sub(2)),
                kept: self.kept.clone(),
            },
            Work::Open(opening) => {
                let set = self.set(opening.filter.json());
                let count = set.len();
                let newest = count.checked_sub(1).and_then(|last| set.item(last));
                let items =
                    Items { count, newest: newest.map_or(0, |item| item.created_at), ahead: None };
                let options = opening.initiator_options();
                let mut initiator = Initiator::new(set, options).unwrap();
                let message = initiator.open();
                self.sessions.insert(opening.session, initiator);
                Done::Opened { session: opening.session, message, items }
            }
            Work::Answer { session, payload } => {
                let Some(initiator) = self.sessions.get_mut(&session) else {
                    return Done::Finished;
                };
                let mut found = Difference::new();
                let next = initiator.receive(&payload, &mut found).map(|step| match step {
                    InitiatorStep::Send(message) => Some(message),
                    InitiatorStep::Done => None,
                });
                let unsettled_items = initiator.unsettled_items();
                let all = [found.have.clone(), found.need.clone()].concat();
                let remembered = self.remembered(&all);
                Done::Answered { session, found, remembered, unsettled_items, next }
            }
            Work::Divide { session, window, .. } => {
                self.sessions.remove(&session);
                let (since, until) = (window.since.unwrap_or(0), window.until.unwrap_or(u64::MAX));
                let times: Vec<u64> = self.events.keys().map(|item| item.created_at).collect();
                let middle = times.get(times.len() / 2).copied().unwrap_or(since);
                let middle = if (since + 1..=until).contains(&middle) {
                    middle
                } else {
                    since + (until.min(2_000_000_000) - since.min(2_000_000_000)) / 2
                };
                let parts = (since < middle && middle <= until).then(|| {
                    let mut halves = [window, window];
                    halves[0].until = Some(middle - 1);
                    halves[1].since = Some(middle);
                    halves.to_vec()
                });
                Done::Divided { window, parts }
            }
            Work::Forget { session } => {
                self.sessions.remove(&session);
                Done::Finished
            }
            Work::Compare { filter, theirs, .. } => {
                let set = self.set(filter.json());
                let mut have = Vec::new();
                set.for_each(0..set.len(), &mut |item| {
                    if !theirs.contains(&item.id) {
                        have.push(item.id);
                    }
                });
                Done::Compared { remembered: self.remembered(&have), have, rows: Rows::default() }
            }
            Work::Sort { .. } => Done::Sorted(Rows::default()),
            Work::Kinds { ids } => {
                let kind = |id| Some((id, self.by_id(&id)?.kind));
                Done::Kinds(ids.into_iter().filter_map(kind).collect())
            }
            Work::Count { subscription, filter, kinds } => {
                let set = self.set(filter.json());
                let mut private = 0;
                set.for_each(0..set.len(), &mut |item| {
                    private += u64::from(kinds.contains(&self.events[&item].kind));
                });
                Done::Counted { subscription, all: set.len() as u64, of_kinds: private }
            }
            Work::Load { ids } => {
                let load = |id: &[u8; 32]| {
                    let event = self.by_id(id)?;
                    Some(Loaded { id: *id, kind: event.kind, json: event.json() })
                };
                Done::Loaded { events: ids.iter().filter_map(load).collect(), protected: vec![] }
            }
            Work::Ingest { subscription, asked, texts, bytes, .. } => {
                let events = texts.iter().map(|text| self.settle(&asked, text)).collect();
                Done::Ingested { subscription, events, bytes }
            }
            Work::RememberRefused(refused) => {
                self.refused.extend(refused.into_iter().map(|it| (it.id, it.reason)));
                Done::Finished
            }
            Work::Conclude { .. } => unreachable!("the store's events have times"),
            Work::RememberMark(mark) => {
                self.mark.equal_up_to = mark.equal_up_to.or(self.mark.equal_up_to);
                self.mark.read = mark.read.or(self.mark.read);
                Done::Finished
            }
            Work::RememberTraits(traits) => {
                self.traits = traits;
                Done::Finished
            }
            Work::Sign { challenge } => {
                let mut id = [0xa5; 32];
                id[0] = challenge.bytes().fold(0, u8::wrapping_add);
                let id_hex = faster_hex::hex_string(&id);
                let tags = [["challenge", challenge.as_str()]];
                let json = serde_json::json!({ "id": id_hex, "tags": tags }).to_string();
                Done::Signed { id, json }
            }
        }
    }

    fn settle(&mut self, asked: &Asked, text: &str) -> Settled {
        let event = ModelEvent::parse(text);
        if !text.contains(r#""tags":[]"#) || i64::try_from(event.item.created_at).is_err() {
            let (id, created_at) = (Some(event.item.id), event.item.created_at);
            return Settled { id, created_at, fate: Fate::Refused(Reason::Invalid) };
        }
        let (item, fate) = (
            event.item,
            match asked {
                Asked::Ids(_, filter) | Asked::ListingIds(_, filter)
                    if !filter.takes_kind(event.kind) =>
                {
                    Fate::Refused(Reason::OutsideFilter)
                }
                _ if self.events.contains_key(&event.item) => Fate::Duplicate,
                Asked::Listing(_) | Asked::ListingIds(..) => {
                    Fate::Seen(Seen { kind: event.kind, pubkey: event.pubkey })
                }
                Asked::Ids(..) | Asked::Matching(_) => {
                    self.events.insert(event.item, event);
                    Fate::Stored
                }
            },
        );
        Settled { id: Some(item.id), created_at: item.created_at, fate }
    }
}
