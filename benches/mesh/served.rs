//! A connection on the side of the asked relay: REQ, EVENT, CLOSE and NIP-77, as text.

use crate::event;
use crate::relay::Conduct;
use negsync::index::Tree;
use negsync::item::Item;
use negsync::reconcile::{RangeSet, Responder};
use serde_json::Value;
use std::collections::HashMap;

/// Maximum number of events returned for a REQ.
pub const MAX_LIMIT: usize = 500;
/// Maximum length of a negentropy message in an answer, before hex encoding.
const FRAME_LIMIT_BYTES: usize = 500_000;

/// The reaction to a client's message.
pub enum Answer {
    /// Messages to the client.
    Send(Vec<String>),
    /// An event to be stored; its OK follows.
    Store(Item),
}

/// The state of a connection.
#[derive(Default)]
pub struct Served {
    subscriptions: HashMap<String, Wanted>,
    sessions: HashMap<String, Responder<Tree>>,
}

/// The parts of a NIP-01 filter that apply to events of kind 1 by one author.
struct Wanted {
    ids: Option<Vec<[u8; 32]>>,
    takes_notes: bool,
    since: u64,
    until: u64,
    limit: usize,
}

impl Wanted {
    fn read(filter: &Value) -> Self {
        let second = |key: &str, default| filter[key].as_u64().unwrap_or(default);
        let ids = filter["ids"].as_array();
        let kinds = filter["kinds"].as_array();
        Self {
            ids: ids.map(|ids| ids.iter().filter_map(Value::as_str).map(event::id).collect()),
            takes_notes: kinds.is_none_or(|kinds| kinds.contains(&Value::from(1))),
            since: second("since", 0),
            until: second("until", u64::MAX),
            limit: filter["limit"]
                .as_u64()
                .map_or(MAX_LIMIT, |limit| limit as usize)
                .min(MAX_LIMIT),
        }
    }

    fn matches(&self, item: &Item) -> bool {
        self.takes_notes
            && (self.since..=self.until).contains(&item.created_at)
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&item.id))
    }

    /// The newest matching events of `set`.
    fn stored(&self, set: &Tree, items: &HashMap<[u8; 32], Item>) -> Vec<Item> {
        let mut found: Vec<Item> = match &self.ids {
            Some(ids) => {
                let named = ids.iter().filter_map(|id| items.get(id));
                named.filter(|item| set.contains(item) && self.matches(item)).copied().collect()
            }
            None => {
                let from = set.lower_bound(&Item::new(self.since, [0; 32]));
                let end = self.until.checked_add(1);
                let end = end.map_or(set.len(), |end| set.lower_bound(&Item::new(end, [0; 32])));
                let from = from.max(end.saturating_sub(self.limit));
                let range = set.iter_range(from..end);
                range.filter(|item| self.matches(item)).copied().collect()
            }
        };
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(self.limit);
        found
    }
}

impl Served {
    /// Answers a message over the events that the relay shows.
    pub fn receive(
        &mut self,
        text: &str,
        conduct: Conduct,
        shown: &Tree,
        items: &HashMap<[u8; 32], Item>,
    ) -> Answer {
        let message: Value = serde_json::from_str(text).expect("the machine sends JSON");
        let (verb, name) = (message[0].as_str().unwrap_or(""), message[1].as_str().unwrap_or(""));
        Answer::Send(match verb {
            "EVENT" => return Answer::Store(event::item(text)),
            "REQ" => {
                let wanted = Wanted::read(&message[2]);
                let stored = wanted.stored(shown, items);
                let events = stored.iter().map(|item| event_message(name, &event::json(item)));
                let answer = events.chain([format!(r#"["EOSE","{name}"]"#)]).collect();
                self.subscriptions.insert(name.to_owned(), wanted);
                answer
            }
            "CLOSE" => {
                self.subscriptions.remove(name);
                Vec::new()
            }
            "NEG-OPEN" => {
                let responder = Responder::new(shown.clone(), FRAME_LIMIT_BYTES);
                let responder = responder.expect("the limit is within the protocol's");
                self.sessions.insert(name.to_owned(), responder);
                self.reconcile(name, message[3].as_str().unwrap_or(""), conduct)
            }
            "NEG-MSG" => self.reconcile(name, message[2].as_str().unwrap_or(""), conduct),
            "NEG-CLOSE" => {
                self.sessions.remove(name);
                Vec::new()
            }
            _ => vec![format!(r#"["NOTICE","error: no {verb} here"]"#)],
        })
    }

    fn reconcile(&mut self, name: &str, hex: &str, conduct: Conduct) -> Vec<String> {
        let mut payload = vec![0; hex.len() / 2];
        faster_hex::hex_decode(hex.as_bytes(), &mut payload).expect("the machine sends hex");
        let answer = self.sessions.get_mut(name).map(|session| session.answer(&payload));
        let Some(Ok(mut answer)) = answer else {
            return vec![format!(r#"["NEG-ERR","{name}","closed: no such session"]"#)];
        };
        if conduct == Conduct::Liar {
            // Only the protocol version: no differences.
            answer.truncate(1);
        }
        vec![format!(r#"["NEG-MSG","{name}","{}"]"#, faster_hex::hex_string(&answer))]
    }

    /// Adds the messages of a new event for this connection's subscriptions.
    pub fn deliver(&self, item: &Item, json: &str, out: &mut Vec<String>) {
        let matching = self.subscriptions.iter().filter(|(_, wanted)| wanted.matches(item));
        out.extend(matching.map(|(name, _)| event_message(name, json)));
    }
}

fn event_message(name: &str, json: &str) -> String {
    format!(r#"["EVENT","{name}",{json}]"#)
}
