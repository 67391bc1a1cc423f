//! A relay as a value, with some of the behaviours of relays.

use super::model_store::ModelStore;
use negsync::item::Item;
use negsync::reconcile::{Responder, SortedItems};
use negsync::store::RetentionWindow;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// An unsigned event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelEvent {
    pub item: Item,
    pub kind: u16,
    pub pubkey: [u8; 32],
}

impl ModelEvent {
    pub fn random(rng: &mut StdRng, seconds: u64) -> Self {
        let kind = [1, 1, 1, 7, 0, 4, 1_059, 30_023][rng.random_range(0..8)];
        let author = rng.random_range(1..5u8);
        let created_at = 1_700_000_000 + rng.random_range(0..seconds);
        Self { item: Item::new(created_at, rng.random()), kind, pubkey: [author; 32] }
    }

    pub fn json(&self) -> String {
        json!({
            "id": faster_hex::hex_string(&self.item.id),
            "pubkey": faster_hex::hex_string(&self.pubkey),
            "created_at": self.item.created_at,
            "kind": self.kind,
            "tags": [],
            "content": "",
            "sig": "",
        })
        .to_string()
    }

    pub fn is_past(&self, kept: &RetentionWindow) -> bool {
        self.item.created_at < kept.since && !kept.ageless_kinds.contains(&self.kind)
    }

    pub fn parse(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).unwrap();
        let bytes = |name: &str| {
            let mut bytes = [0; 32];
            faster_hex::hex_decode(value[name].as_str().unwrap().as_bytes(), &mut bytes).unwrap();
            bytes
        };
        Self {
            item: Item::new(value["created_at"].as_u64().unwrap(), bytes("id")),
            kind: value["kind"].as_u64().unwrap() as u16,
            pubkey: bytes("pubkey"),
        }
    }
}

/// NIP-01, Filters, as far as the sync uses them.
pub fn matches(filter: &Value, event: &ModelEvent) -> bool {
    let lists = |key: &str, value: Value| {
        filter.get(key).is_none_or(|list| list.as_array().unwrap().contains(&value))
    };
    let second = event.item.created_at;
    lists("ids", json!(faster_hex::hex_string(&event.item.id)))
        && lists("authors", json!(faster_hex::hex_string(&event.pubkey)))
        && lists("kinds", json!(event.kind))
        && filter.get("since").is_none_or(|since| since.as_u64().unwrap() <= second)
        && filter.get("until").is_none_or(|until| second <= until.as_u64().unwrap())
}

/// The reaction to NEG-OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neg {
    Works,
    Notice,
    LateNotice,
    Closed,
    Refused,
    Silent,
    HangUp,
    /// Sets with more items than this are too large.
    TooLarge(usize),
    /// NEG-OPEN is answered, and each NEG-MSG gets an error.
    FailsLater,
    /// The same without any answer.
    SilentLater,
    /// Each NEG-MSG is answered as if nothing were different.
    SkipsLater,
    /// It hangs up at each NEG-MSG.
    HangUpLater,
    /// The first NEG-OPEN of a connection is postponed by a NOTICE, but answered after a while.
    PutOff,
}

/// The faults of a peer. Without any it is a relay with NIP-77.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Faults {
    /// Maximum number of events returned for a REQ.
    pub cap: Option<usize>,
    pub by_arrival: bool,
    /// A REQ excludes the second of its `until`.
    pub until_excludes: bool,
    pub bare_empty: bool,
    pub need_kinds: bool,
    /// AUTH: at the start, or in answer to the first question.
    pub auth: Option<bool>,
    pub refuses_key: bool,
    /// AUTH is required only for EVENT, which is refused without its id.
    pub unnamed: bool,
    pub most_values: Option<usize>,
    /// Of ten events, the number accepted but not kept.
    pub drops: u64,
    /// Of ten events, the number refused.
    pub refuses: u64,
    /// Number of REQs of a connection that are answered.
    pub most_reqs: Option<u32>,
    /// Above most_reqs, a NOTICE instead of no answer.
    pub req_notice: bool,
    /// Number of events of a connection that are accepted at once.
    pub rate: Option<u32>,
    pub chats: bool,
    /// Private kinds are never shown.
    pub hides_private: bool,
    /// Of ten events, the number listed but never sent.
    pub unsent: u64,
    /// Each message may be the last of its connection.
    pub cuts: bool,
    pub hints: bool,
    /// Hints always say `finish`.
    pub finishes: bool,
    /// Pages begin with an event of a second that no store accepts.
    pub far_future: bool,
    pub counts: bool,
    /// COUNT returns a random number.
    pub miscounts: bool,
    /// Tags are a JSON string.
    pub garbled: bool,
    /// Every EVENT fails.
    pub fails: bool,
    /// Hangs up at a list that is too long, instead of not answering.
    pub hangs_up: bool,
    /// The same filter is answered from a cache for a second.
    pub caches: bool,
    /// Confirms each CLOSE, and ends what has ended.
    pub verbose: bool,
    /// Number of events of a page that come after its end.
    pub late: usize,
    /// Of ten events, the number at which it hangs up.
    pub hangs_up_at_events: u64,
    /// NEG ignores the kinds of a filter.
    pub lists_all: bool,
    /// Accepted events are shown a second later.
    pub indexes_late: bool,
    /// Sends CLOSED after its answers.
    pub closes: bool,
    /// Answers one REQ in a second, and refuses others by CLOSED, or by NOTICE with `req_notice`.
    pub reqs_per_s: bool,
    /// Refuses a larger limit.
    pub most_limit: Option<u64>,
    /// Sends CLOSED instead of EOSE.
    pub no_eose: bool,
    /// Connections lead to two relays in turn: of ten events of one, this number is missing at the
    /// other, which has as many others.
    pub elsewhere: u64,
    /// Events come under a subscription id that is not ours.
    pub mislabels: bool,
    /// Maximum number of events returned for a REQ that names kinds.
    pub kinds_cap: Option<usize>,
    /// Pages are cut at a random number of events, of at least this many.
    pub cap_from: Option<usize>,
    /// AUTH is required only for EVENT.
    pub auth_events: bool,
    /// Sends a new challenge with each refusal, and accepts the answer to the newest only.
    pub new_challenges: bool,
    /// Requires AUTH and sends no challenge.
    pub never_asks: bool,
    /// The refusal of what requires AUTH, in place of `auth-required`.
    pub auth_text: Option<&'static str>,
    /// Refuses every EVENT by a rate limit, by NOTICE with `req_notice`.
    pub limits_all: bool,
    /// Sends much of this with every answer.
    pub flood: Option<Flood>,
}

/// Messages that a peer may send without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    Pings,
    Empty,
    Notices,
    Unasked,
}

#[derive(Clone, Debug)]
pub struct PeerPlan {
    pub neg: Neg,
    pub faults: Faults,
    pub told_cap: Option<usize>,
    pub tells_auth: bool,
    /// There is no NIP-11 document.
    pub is_mute: bool,
    pub latency_us: u64,
    pub shared: usize,
    pub ours: usize,
    pub theirs: usize,
    /// The range of the events' times, in seconds.
    pub seconds: u64,
}

impl PeerPlan {
    pub fn random(rng: &mut StdRng) -> Self {
        let neg = match rng.random_range(0..15) {
            0..=4 => Neg::Works,
            5 => Neg::Notice,
            6 => Neg::Closed,
            7 => Neg::Refused,
            8 => Neg::Silent,
            9 => Neg::HangUp,
            10 => Neg::LateNotice,
            11 => Neg::FailsLater,
            12 => Neg::SilentLater,
            13 => Neg::HangUpLater,
            _ => Neg::TooLarge(rng.random_range(1..30)),
        };
        let mut odd = |chance: f64| rng.random_bool(chance);
        let (by_arrival, bare_empty, need_kinds) = (odd(0.1), odd(0.1), odd(0.05));
        let (refuses_key, req_notice, chats) = (odd(0.2), odd(0.5), odd(0.1));
        let (hides_private, cuts, hints, counts) = (odd(0.15), odd(0.2), odd(0.2), odd(0.5));
        let tells_auth = odd(0.5);
        let mut faults = Faults {
            cap: odd(0.4).then_some(()).map(|()| rng.random_range(3..60)),
            by_arrival,
            bare_empty,
            need_kinds,
            auth: rng.random_bool(0.2).then(|| rng.random_bool(0.5)),
            refuses_key,
            unnamed: rng.random_bool(0.2),
            most_values: rng.random_bool(0.1).then(|| rng.random_range(1..50)),
            drops: if rng.random_bool(0.15) { rng.random_range(1..11) } else { 0 },
            refuses: if rng.random_bool(0.15) { rng.random_range(1..11) } else { 0 },
            most_reqs: rng.random_bool(0.1).then(|| rng.random_range(1..5)),
            req_notice,
            rate: rng.random_bool(0.1).then(|| rng.random_range(1..20)),
            chats,
            hides_private,
            unsent: if rng.random_bool(0.1) { rng.random_range(1..11) } else { 0 },
            cuts,
            hints,
            counts,
            miscounts: rng.random_bool(0.2),
            finishes: rng.random_bool(0.3),
            late: if rng.random_bool(0.05) { rng.random_range(1..20) } else { 0 },
            hangs_up_at_events: if rng.random_bool(0.1) { rng.random_range(1..11) } else { 0 },
            lists_all: rng.random_bool(0.1),
            indexes_late: rng.random_bool(0.1),
            closes: rng.random_bool(0.1),
            reqs_per_s: rng.random_bool(0.05),
            most_limit: rng.random_bool(0.05).then(|| rng.random_range(10..200)),
            no_eose: rng.random_bool(0.03),
            far_future: rng.random_bool(0.05),
            mislabels: rng.random_bool(0.02),
            kinds_cap: rng.random_bool(0.05).then(|| rng.random_range(3..40)),
            auth_events: rng.random_bool(0.3),
            new_challenges: rng.random_bool(0.3),
            never_asks: rng.random_bool(0.1),
            auth_text: rng.random_bool(0.2).then_some("restricted: members only"),
            limits_all: rng.random_bool(0.03),
            ..Faults::default()
        };
        let seconds = [1, 3, 50, 5_000][rng.random_range(0..4)];
        // Without an order, or of one second, such a page cannot be told from a complete one.
        faults.kinds_cap = faults.kinds_cap.filter(|most| seconds >= 50 && *most >= 15);
        let has_cap_from = seconds >= 50 && !by_arrival && rng.random_bool(0.1);
        faults.cap_from = has_cap_from.then(|| rng.random_range(20..40));
        let told_cap = faults.cap.filter(|_| rng.random_bool(0.5));
        Self {
            neg,
            told_cap,
            tells_auth: tells_auth && faults.auth.is_some(),
            is_mute: rng.random_bool(0.1),
            latency_us: [100, 20_000, 300_000][rng.random_range(0..3)],
            // A small set is settled by the first answer.
            shared: match neg {
                Neg::FailsLater | Neg::SilentLater | Neg::HangUpLater => rng.random_range(150..250),
                _ => rng.random_range(0..150),
            },
            ours: rng.random_range(0..60),
            theirs: rng.random_range(0..60),
            seconds,
            faults,
        }
    }

    /// Plans with one fault less, or fewer events.
    pub fn simpler(&self) -> Vec<Self> {
        let plain = Faults::default();
        let mut plans = Vec::new();
        macro_rules! without {
            ($($way:ident),*) => {$(
                if self.faults.$way != plain.$way {
                    let mut plan = self.clone();
                    plan.faults.$way = plain.$way.clone();
                    plans.push(plan);
                }
            )*};
        }
        without!(
            cap,
            by_arrival,
            until_excludes,
            bare_empty,
            need_kinds,
            auth,
            refuses_key,
            unnamed,
            most_values,
            drops,
            refuses,
            most_reqs,
            req_notice,
            rate,
            chats,
            hides_private,
            unsent,
            cuts,
            hints,
            finishes,
            late,
            hangs_up_at_events,
            lists_all,
            indexes_late,
            closes,
            reqs_per_s,
            most_limit,
            no_eose,
            far_future,
            elsewhere,
            mislabels,
            kinds_cap,
            cap_from,
            auth_events,
            new_challenges,
            never_asks,
            auth_text,
            limits_all,
            counts,
            miscounts
        );
        for (shared, ours, theirs) in [
            (self.shared / 2, self.ours, self.theirs),
            (self.shared, self.ours / 2, self.theirs),
            (self.shared, self.ours, self.theirs / 2),
        ] {
            if (shared, ours, theirs) != (self.shared, self.ours, self.theirs) {
                plans.push(Self { shared, ours, theirs, ..self.clone() });
            }
        }
        plans
    }

    pub fn populate(&self, rng: &mut StdRng) -> (ModelPeer, ModelStore) {
        let mut some = |count| -> Vec<ModelEvent> {
            (0..count).map(|_| ModelEvent::random(rng, self.seconds)).collect()
        };
        let (shared, ours, theirs) = (some(self.shared), some(self.ours), some(self.theirs));
        let store = ModelStore::new([shared.clone(), ours].concat(), self.seconds);
        let mut peer = ModelPeer::new(self.clone(), [shared, theirs].concat());
        if self.faults.elsewhere > 0 {
            peer.stand_apart(rng);
        }
        (peer, store)
    }
}

const FLOOD: usize = 100;

/// A reaction of a peer.
#[derive(Debug)]
pub enum Reply {
    Text(String),
    /// After a delay.
    Late(String, Duration),
    Ping,
    HangUp,
}

/// The contents of one relay.
#[derive(Default)]
struct Holdings {
    /// In order of arrival.
    events: Vec<ModelEvent>,
    dropped: HashSet<[u8; 32]>,
    /// Events received in this sync and kept, and those with an OK true that reached us.
    kept: HashSet<[u8; 32]>,
    acknowledged: HashSet<[u8; 32]>,
    cache: HashMap<String, (Duration, Vec<ModelEvent>)>,
    /// Events that are not visible yet, and the time when they will be.
    unindexed: Vec<(Duration, ModelEvent)>,
}

pub struct ModelPeer {
    pub plan: PeerPlan,
    /// The contents of the relay behind the current connection.
    at: Holdings,
    /// The contents of the other relay behind the address, if there are two.
    elsewhere: Option<Holdings>,
    /// NEG sessions that neither side has closed.
    sessions: HashMap<String, Responder<SortedItems>>,
    was_put_off: bool,
    reqs: u32,
    taken: u32,
    taken_at: Duration,
    is_known: bool,
    /// The number of challenges on this connection.
    challenges: u32,
    messages: u32,
    /// The time of its last answer to a REQ.
    answered_at: Option<Duration>,
    /// Of all connections and syncs.
    subscriptions: HashSet<String>,
    resent: Vec<[u8; 32]>,
}

fn text(value: Value) -> Reply {
    Reply::Text(value.to_string())
}

impl ModelPeer {
    fn new(plan: PeerPlan, events: Vec<ModelEvent>) -> Self {
        Self {
            plan,
            at: Holdings { events, ..Holdings::default() },
            elsewhere: None,
            sessions: HashMap::new(),
            was_put_off: false,
            reqs: 0,
            taken: 0,
            taken_at: Duration::ZERO,
            is_known: false,
            challenges: 0,
            messages: 0,
            answered_at: None,
            subscriptions: HashSet::new(),
            resent: Vec::new(),
        }
    }

    /// Adds a second relay behind the address.
    fn stand_apart(&mut self, rng: &mut StdRng) {
        let share = self.plan.faults.elsewhere;
        let is_there = |event: &&ModelEvent| u64::from(event.item.id[5] % 10) >= share;
        let mut events: Vec<ModelEvent> = self.at.events.iter().filter(is_there).cloned().collect();
        for _ in 0..share {
            events.push(ModelEvent::random(rng, self.plan.seconds));
        }
        self.elsewhere = Some(Holdings { events, ..Holdings::default() });
    }

    pub fn begin(&mut self) {
        for relay in std::iter::once(&mut self.at).chain(&mut self.elsewhere) {
            relay.kept.clear();
            relay.acknowledged.clear();
        }
        self.resent.clear();
    }

    /// The number of open NEG sessions of the last connection.
    pub fn open_sessions(&self) -> usize {
        self.sessions.len()
    }

    pub fn resent(&self) -> &[[u8; 32]] {
        &self.resent
    }

    pub fn add_some(&mut self, rng: &mut StdRng) {
        for _ in 0..rng.random_range(0..4) {
            self.at.events.push(ModelEvent::random(rng, self.plan.seconds));
        }
    }

    pub fn ids(&self, filter: &str) -> BTreeSet<[u8; 32]> {
        let filter: Value = serde_json::from_str(filter).unwrap();
        self.at.events.iter().filter(|event| matches(&filter, event)).map(|it| it.item.id).collect()
    }

    /// Ids of its events, at either relay if there are two.
    pub fn ids_anywhere(&self, filter: &str) -> BTreeSet<[u8; 32]> {
        let filter: Value = serde_json::from_str(filter).unwrap();
        let all = self.at.events.iter().chain(self.elsewhere.iter().flat_map(|it| &it.events));
        all.filter(|event| matches(&filter, event)).map(|it| it.item.id).collect()
    }

    /// Ids of the events that it shows in either way.
    pub fn shown(&self, filter: &str) -> BTreeSet<[u8; 32]> {
        self.ids(filter).into_iter().filter(|id| !self.hides(id)).collect()
    }

    /// Whether it has an event outside a window of retention.
    pub fn is_past(&self, id: &[u8; 32], kept: &RetentionWindow) -> bool {
        self.at.events.iter().any(|it| it.item.id == *id && it.is_past(kept))
    }

    pub fn second(&self, id: &[u8; 32]) -> Option<u64> {
        self.at.events.iter().find(|it| it.item.id == *id).map(|it| it.item.created_at)
    }

    pub fn hides(&self, id: &[u8; 32]) -> bool {
        self.plan.faults.hides_private
            && self.at.events.iter().any(|it| it.item.id == *id && [4, 1_059].contains(&it.kind))
    }

    fn is_unsent(&self, event: &ModelEvent) -> bool {
        u64::from(event.item.id[1] % 10) < self.plan.faults.unsent
    }

    pub fn connect(&mut self) -> Vec<Reply> {
        if let Some(elsewhere) = &mut self.elsewhere {
            std::mem::swap(&mut self.at, elsewhere);
        }
        (self.reqs, self.taken, self.messages, self.is_known) = (0, 0, 0, false);
        self.challenges = 0;
        self.sessions.clear();
        self.was_put_off = false;
        let greets = self.plan.faults.auth == Some(true);
        if greets { vec![self.challenge()] } else { vec![] }
    }

    fn challenge(&mut self) -> Reply {
        self.challenges += u32::from(self.plan.faults.new_challenges);
        text(json!(["AUTH", format!("riddle {}", self.challenges)]))
    }

    /// Handles a message of ours.
    pub fn told(&mut self, said: &str) {
        let Ok(said) = serde_json::from_str::<Value>(said) else { return };
        if said[0] == "OK" && said[2] == true {
            let mut id = [0; 32];
            faster_hex::hex_decode(said[1].as_str().unwrap().as_bytes(), &mut id).unwrap();
            self.at.acknowledged.insert(id);
        }
    }

    pub fn hear(&mut self, said: &str, now: Duration) -> Vec<Reply> {
        let said: Value = serde_json::from_str(said).unwrap();
        let (shown, hidden) = self.at.unindexed.drain(..).partition(|(at, _)| *at <= now);
        self.at.unindexed = hidden;
        let shown: Vec<(Duration, ModelEvent)> = shown;
        self.at.events.extend(shown.into_iter().map(|(_, event)| event));
        self.messages += 1;
        let mut replies = self.answer(&said, now);
        if let Some(flood) = self.plan.faults.flood {
            let one = || match flood {
                Flood::Pings => Reply::Ping,
                Flood::Empty => Reply::Text(String::new()),
                Flood::Notices => text(json!(["NOTICE", "still here"])),
                Flood::Unasked => {
                    let event = self.at.events[0].json();
                    Reply::Text(format!(r#"["EVENT","zzz",{event}]"#))
                }
            };
            replies.extend(std::iter::repeat_with(one).take(FLOOD));
        }
        if self.plan.faults.chats && self.messages.is_multiple_of(3) {
            replies.insert(0, text(json!(["NOTICE", "good morning"])));
        }
        // The number and the contents of a message determine whether it is the last.
        let odd = said
            .to_string()
            .bytes()
            .fold(self.messages, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        if self.plan.faults.cuts && odd.is_multiple_of(17) {
            replies.truncate(replies.len() / 2);
            replies.push(Reply::HangUp);
        }
        replies
    }

    fn answer(&mut self, said: &Value, now: Duration) -> Vec<Reply> {
        let verb = said[0].as_str().unwrap();
        let id = said[1].as_str().unwrap_or_default().to_owned();
        if verb == "AUTH" {
            let is_newest =
                said[1]["tags"] == json!([["challenge", format!("riddle {}", self.challenges)]]);
            self.is_known = !self.plan.faults.refuses_key && is_newest;
            let ok = json!(["OK", said[1]["id"], self.is_known, "restricted: who?"]);
            return vec![Reply::Late(ok.to_string(), Duration::from_millis(300))];
        }
        let asks = ["REQ", "COUNT", "EVENT", "NEG-OPEN", "NEG-MSG"].contains(&verb);
        let of_events = self.plan.faults.unnamed || self.plan.faults.auth_events;
        let asks = if of_events { verb == "EVENT" } else { asks };
        if let (Some(greets), false, true) = (self.plan.faults.auth, self.is_known, asks) {
            let why = self.plan.faults.auth_text.unwrap_or("auth-required: who are you?");
            let refusal = match verb {
                "EVENT" if self.plan.faults.unnamed => json!(["OK", "", false, why]),
                "EVENT" => json!(["OK", said[1]["id"], false, why]),
                "NEG-OPEN" | "NEG-MSG" => json!(["NEG-ERR", id, why]),
                _ => json!(["CLOSED", id, why]),
            };
            let mut replies = vec![text(refusal)];
            if !greets && !self.plan.faults.never_asks {
                replies.insert(0, self.challenge());
            }
            return replies;
        }
        match verb {
            "NEG-OPEN" => self.neg_open(&id, said),
            "NEG-MSG" => match self.plan.neg {
                Neg::FailsLater => {
                    self.sessions.remove(&id);
                    vec![text(json!(["NEG-ERR", id, "closed: you took too long to respond!"]))]
                }
                Neg::SilentLater => vec![],
                Neg::SkipsLater => vec![text(json!(["NEG-MSG", id, "61"]))],
                Neg::HangUpLater => vec![Reply::HangUp],
                _ => self.neg_msg(&id, &said[2]),
            },
            "REQ" => self.req(&id, &said[2], now),
            "EVENT" => self.event(&said[1], now),
            "COUNT" if self.plan.faults.counts => {
                let mut count = self.find(&said[2]).len();
                if self.plan.faults.miscounts {
                    let sum = said.to_string().bytes().fold(7, |sum: u32, byte| {
                        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
                    });
                    count = sum as usize % 300;
                }
                vec![text(json!(["COUNT", id, { "count": count }]))]
            }
            "COUNT" => vec![text(json!(["NOTICE", "unknown command"]))],
            "NEG-CLOSE" => {
                self.sessions.remove(&id);
                vec![]
            }
            "CLOSE" if self.plan.faults.verbose => {
                vec![text(json!(["NOTICE", "subscription closed"]))]
            }
            _ => vec![],
        }
    }

    fn neg_open(&mut self, id: &str, said: &Value) -> Vec<Reply> {
        let notice = json!(["NOTICE", "ERROR: bad msg: negentropy disabled"]);
        match self.plan.neg {
            Neg::Works
            | Neg::FailsLater
            | Neg::SilentLater
            | Neg::SkipsLater
            | Neg::HangUpLater
            | Neg::PutOff => {}
            Neg::Notice => return vec![text(notice)],
            Neg::LateNotice => {
                return vec![Reply::Late(notice.to_string(), Duration::from_secs(4))];
            }
            Neg::Closed => return vec![text(json!(["CLOSED", id, "error: unknown verb"]))],
            Neg::Refused => return vec![text(json!(["NEG-ERR", id, "blocked: not here"]))],
            Neg::Silent => return vec![],
            Neg::HangUp => return vec![Reply::HangUp],
            Neg::TooLarge(most) => {
                if self.find(&said[2]).len() > most {
                    let why = "blocked: too many query results";
                    return vec![text(json!(["NEG-ERR", id, why, most]))];
                }
            }
        }
        let mut filter = said[2].clone();
        if self.plan.faults.lists_all {
            filter.as_object_mut().unwrap().remove("kinds");
        }
        let items = self.find(&filter).into_iter().map(|event| event.item).collect();
        // Short enough that one answer does not settle everything.
        let is_short = matches!(
            self.plan.neg,
            Neg::FailsLater | Neg::SilentLater | Neg::SkipsLater | Neg::HangUpLater
        );
        let frame_limit_bytes = if is_short { 4_096 } else { 0 };
        let responder = Responder::new(SortedItems::new(items), frame_limit_bytes).unwrap();
        self.sessions.insert(id.to_owned(), responder);
        let answer = self.neg_msg(id, &said[3]);
        if self.plan.neg == Neg::PutOff && !std::mem::replace(&mut self.was_put_off, true) {
            let late = answer.into_iter().filter_map(|reply| match reply {
                Reply::Text(text) => Some(Reply::Late(text, Duration::from_secs(3))),
                _ => None,
            });
            return std::iter::once(text(json!(["NOTICE", "slow down: too many at a time"])))
                .chain(late)
                .collect();
        }
        answer
    }

    fn neg_msg(&mut self, id: &str, payload: &Value) -> Vec<Reply> {
        let Some(responder) = self.sessions.get_mut(id) else {
            return vec![text(json!(["NEG-ERR", id, "closed: unknown"]))];
        };
        let payload = faster_hex::hex_decode_vec(payload.as_str().unwrap().as_bytes()).unwrap();
        let answer = responder.answer(&payload).unwrap();
        vec![text(json!(["NEG-MSG", id, faster_hex::hex_string(&answer)]))]
    }

    fn find(&self, filter: &Value) -> Vec<ModelEvent> {
        let ids = filter.get("ids").and_then(Value::as_array);
        let ids: Option<HashSet<&str>> =
            ids.map(|ids| ids.iter().flat_map(Value::as_str).collect());
        let mut rest = filter.clone();
        rest.as_object_mut().unwrap().remove("ids");
        let shows = |event: &&ModelEvent| {
            let id = faster_hex::hex_string(&event.item.id);
            !self.hides(&event.item.id) && ids.as_ref().is_none_or(|ids| ids.contains(id.as_str()))
        };
        let found = self.at.events.iter().filter(shows).filter(|event| matches(&rest, event));
        let mut found: Vec<ModelEvent> = found.cloned().collect();
        if !self.plan.faults.by_arrival {
            found.sort_by_key(|event| (std::cmp::Reverse(event.item.created_at), event.item.id));
        }
        found
    }

    fn req(&mut self, id: &str, filter: &Value, now: Duration) -> Vec<Reply> {
        self.reqs += 1;
        let faults = self.plan.faults.clone();
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        assert!(!filter.as_object().unwrap().values().any(is_empty), "an empty list: {filter}");
        // Some relays have one namespace for all clients.
        assert!(self.subscriptions.insert(id.to_owned()), "the subscription {id} came before");
        let values = |key| filter.get(key).and_then(Value::as_array).map_or(0, Vec::len);
        if faults.most_values.is_some_and(|most| values("ids").max(values("authors")) > most) {
            return if faults.hangs_up { vec![Reply::HangUp] } else { vec![] };
        }
        if faults.most_reqs.is_some_and(|most| self.reqs > most) {
            let notice = json!(["NOTICE", "ERROR: too many concurrent REQs"]);
            return if faults.req_notice { vec![text(notice)] } else { vec![] };
        }
        if faults.reqs_per_s {
            let is_soon = |at: Duration| now < at + Duration::from_secs(1);
            if self.answered_at.is_some_and(is_soon) {
                let why = "rate-limited: slow down";
                let closed = json!(["CLOSED", id, why]);
                return vec![text(if faults.req_notice { json!(["NOTICE", why]) } else { closed })];
            }
            self.answered_at = Some(now);
        }
        if let (Some(most), Some(limit)) = (faults.most_limit, filter["limit"].as_u64())
            && limit > most
        {
            let why = format!("invalid: limit must be at most {most}");
            return vec![text(json!(["CLOSED", id, why]))];
        }
        let has = |key| filter.get(key).is_some();
        if faults.need_kinds && !has("kinds") && !has("ids") && !has("authors") {
            let why = "blocked: filters must specify at least one kind";
            return vec![text(json!(["CLOSED", id, why]))];
        }
        let is_bare = filter.as_object().unwrap().keys().all(|key| key == "limit");
        let mut found = if faults.bare_empty && is_bare { vec![] } else { self.find(filter) };
        if faults.caches {
            let key = filter.to_string();
            match self.at.cache.get(&key) {
                Some((since, cached)) if now < *since + Duration::from_secs(1) => {
                    found = cached.clone();
                }
                _ => drop(self.at.cache.insert(key, (now, found.clone()))),
            }
        }
        if has("ids") {
            found.retain(|event| !self.is_unsent(event));
        }
        if let (true, Some(until)) = (faults.until_excludes, filter["until"].as_u64()) {
            found.retain(|event| event.item.created_at < until);
        }
        let limit =
            filter.get("limit").map_or(usize::MAX, |limit| limit.as_u64().unwrap() as usize);
        let mut most = limit.min(faults.cap.unwrap_or(usize::MAX));
        if let (Some(cap), true) = (faults.kinds_cap, has("kinds")) {
            most = most.min(cap);
        }
        if let Some(least) = faults.cap_from {
            most = most.min(least + self.reqs as usize * 37 % 60);
        }
        let is_cut = found.len() > most;
        let page = found.iter().take(most);
        let mut replies: Vec<Reply> = page
            .map(|event| {
                let json = event.json();
                let json = if faults.garbled { json.replace("[]", r#""[]""#) } else { json };
                let id = if faults.mislabels { "x" } else { id };
                Reply::Text(format!(r#"["EVENT","{id}",{json}]"#))
            })
            .collect();
        if faults.far_future && !has("ids") && !found.is_empty() {
            let event = ModelEvent { item: Item::new(u64::MAX, [0xfe; 32]), ..found[0].clone() };
            replies.insert(0, Reply::Text(format!(r#"["EVENT","{id}",{}]"#, event.json())));
        }
        let mut eose = vec![json!("EOSE"), json!(id)];
        if faults.hints {
            let is_cut = is_cut && !faults.finishes;
            eose.push(json!([if is_cut { "more" } else { "finish" }]));
        }
        let place = replies.len().saturating_sub(faults.late);
        if faults.no_eose {
            replies.insert(place, text(json!(["CLOSED", id, ""])));
        } else {
            replies.insert(place, text(Value::Array(eose)));
        }
        if faults.closes || faults.verbose && has("ids") {
            replies.push(text(json!(["CLOSED", id, ""])));
        }
        replies
    }

    fn event(&mut self, event: &Value, now: Duration) -> Vec<Reply> {
        let event = ModelEvent::parse(&event.to_string());
        let id = event.item.id;
        let hex = faster_hex::hex_string(&id);
        let said = |accepted, why: &str| vec![text(json!(["OK", hex, accepted, why]))];
        let held = self.at.events.iter().chain(self.at.unindexed.iter().map(|(_, event)| event));
        let holds = held.into_iter().any(|held| held.item.id == id);
        // The sync can ask whether it was kept, unless the peer does not show it.
        let faults = &self.plan.faults;
        let shows_at_once = faults.late == 0 && !faults.indexes_late && !faults.mislabels;
        let is_shown = !self.hides(&id) && !self.is_unsent(&event) && shows_at_once;
        let is_indexed = self.at.events.iter().any(|held| held.item.id == id);
        let is_known = is_indexed && self.at.kept.contains(&id) && is_shown;
        if is_known || (self.at.acknowledged.contains(&id) && self.at.dropped.contains(&id)) {
            self.resent.push(id);
        }
        if holds {
            return said(true, "duplicate: have it");
        }
        let faults = &self.plan.faults;
        if u64::from(id[4] % 10) < faults.hangs_up_at_events {
            return vec![Reply::HangUp];
        }
        if let Some(rate) = faults.rate {
            let refill = (now.saturating_sub(self.taken_at)).as_secs() as u32;
            if refill > 0 {
                self.taken = self.taken.saturating_sub(refill);
                self.taken_at = now;
            }
            if self.taken >= rate {
                return said(false, "rate-limited: slow down");
            }
            self.taken += 1;
        }
        if faults.limits_all {
            let notice = text(json!(["NOTICE", "rate-limited: too fast"]));
            return if faults.req_notice {
                vec![notice]
            } else {
                said(false, "rate-limited: slow")
            };
        }
        if faults.fails {
            return said(false, "error: the database is locked");
        }
        if u64::from(id[2] % 10) < faults.refuses {
            return said(false, "blocked: not wanted");
        }
        if u64::from(id[3] % 10) < faults.drops {
            self.at.dropped.insert(id);
            return said(true, "");
        }
        self.at.kept.insert(id);
        if faults.indexes_late {
            self.at.unindexed.push((now + Duration::from_secs(1), event));
        } else {
            self.at.events.push(event);
        }
        said(true, "")
    }
}
