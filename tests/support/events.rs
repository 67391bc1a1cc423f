//! Signed events: a few authors who write, react, replace, delete and let events expire, all
//! derived from one seed; and the real corpus, if `NEGSYNC_REAL_EVENTS` names it.

use nostr::{JsonUtil, Keys, Kind, SecretKey, Tag, Tags, Timestamp, UnsignedEvent};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Once;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time of the first generated event; all lie within `SPAN_S` after it.
pub const EPOCH: u64 = 1_700_000_000;
pub const SPAN_S: u64 = 2_000;

/// An author with a key.
#[derive(Clone)]
pub struct Author(Keys);

impl Author {
    pub fn new(number: u8) -> Self {
        Self(Keys::new(SecretKey::from_slice(&[number.max(1); 32]).unwrap()))
    }

    pub fn keys(&self) -> &Keys {
        &self.0
    }

    pub fn key(&self) -> String {
        self.0.public_key().to_hex()
    }

    /// A signed event as the JSON object that goes over the wire. `tags` is an array of arrays.
    pub fn event(&self, kind: u16, created_at: u64, tags: Value, content: &str) -> Value {
        let tags: Vec<Vec<String>> = serde_json::from_value(tags).unwrap();
        let tags: Vec<Tag> = tags.into_iter().map(|tag| Tag::parse(tag).unwrap()).collect();
        let unsigned = UnsignedEvent::new(
            self.0.public_key(),
            Timestamp::from_secs(created_at),
            Kind::from_u16(kind),
            Tags::from_list(tags),
            content,
        );
        let signed = unsigned.sign_with_keys(&self.0).unwrap();
        serde_json::from_str(&signed.as_json()).unwrap()
    }

    pub fn note(&self, created_at: u64, content: &str) -> Value {
        self.event(1, created_at, json!([]), content)
    }

    /// NIP-42: answers a relay's challenge.
    pub fn authentication(&self, created_at: u64, url: &str, challenge: &str) -> Value {
        let tags = json!([["relay", url], ["challenge", challenge]]);
        self.event(22_242, created_at, tags, "")
    }

    /// NIP-09: asks to delete by `e` and `a` tags.
    pub fn deletion(&self, created_at: u64, tags: Value) -> Value {
        self.event(5, created_at, tags, "")
    }

    /// The address of one of the author's addressable or replaceable events.
    pub fn address(&self, kind: u16, d: &str) -> String {
        format!("{kind}:{}:{d}", self.key())
    }
}

pub fn id_of(event: &Value) -> &str {
    event["id"].as_str().unwrap()
}

pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// `count` events of five authors, in random order: deletions may come before their targets.
pub fn generate(seed: u64, count: usize) -> Vec<Value> {
    let mut rng = StdRng::seed_from_u64(seed);
    let authors: Vec<Author> = (1..=5).map(Author::new).collect();
    let mut events: Vec<Value> = Vec::new();
    while events.len() < count {
        let author = &authors[rng.random_range(0..authors.len())];
        let at = EPOCH + rng.random_range(0..SPAN_S);
        let event = event(&mut rng, author, &authors, at, &events);
        if events.iter().all(|other| id_of(other) != id_of(&event)) {
            events.push(event);
        }
    }
    events.shuffle(&mut rng);
    events
}

fn event(
    rng: &mut StdRng,
    author: &Author,
    authors: &[Author],
    at: u64,
    earlier: &[Value],
) -> Value {
    let content = format!("{} \u{1f98a} \"quoted\" \\ \n", rng.random::<u32>());
    let peer = authors[rng.random_range(0..authors.len())].key();
    let topic = ["nostr", "Nostr", "", "sync", "a topic of more than thirty-two bytes"];
    let topic = topic[rng.random_range(0..topic.len())];
    let d = ["", "one", "two"][rng.random_range(0..3)];
    match rng.random_range(0..100) {
        0..45 => author.event(1, at, json!([["t", topic], ["p", peer]]), &content),
        45..60 => match earlier.get(rng.random_range(0..earlier.len().max(1))) {
            Some(target) => {
                let tags = json!([["e", id_of(target)], ["p", target["pubkey"]], ["k", "1"]]);
                author.event(7, at, tags, "+")
            }
            None => author.note(at, &content),
        },
        60..65 => author.event(0, at, json!([]), &content),
        65..70 => author.event(10_002, at, json!([["r", "wss://relay.example"]]), &content),
        70..80 => author.event(30_023, at, json!([["d", d], ["t", topic]]), &content),
        80..83 => author.event(20_001, at, json!([["t", topic]]), &content),
        83..86 => author.event(1, at, json!([["expiration", (EPOCH + 1).to_string()]]), &content),
        86..89 => author.event(1, at, json!([["expiration", "32503680000"]]), &content),
        89..92 => {
            let tags = json!([["a", author.address(30_023, d)], ["k", "30023"]]);
            author.event(5, at, tags, &content)
        }
        _ => {
            // As many versions as other events. A few of the targets belong to another author, and
            // stay.
            let has_versions = |event: &&Value| event["kind"] == 0 || event["kind"] == 30_023;
            let wanted = rng.random::<bool>();
            let targets: Vec<&Value> =
                earlier.iter().filter(|event| has_versions(event) == wanted).collect();
            match targets.get(rng.random_range(0..targets.len().max(1))) {
                // By the address too, up to the version; otherwise the older version that is left
                // would depend on the order of the events.
                Some(target) if has_versions(target) => {
                    let kind = target["kind"].as_u64().unwrap() as u16;
                    let d = target["tags"][0][1].as_str().unwrap_or_default();
                    let tags = json!([["e", id_of(target)], ["a", author.address(kind, d)]]);
                    let until = at.max(target["created_at"].as_u64().unwrap());
                    author.event(5, until, tags, &content)
                }
                Some(target) => author.event(5, at, json!([["e", id_of(target)]]), &content),
                None => author.note(at, &content),
            }
        }
    }
}

/// Events for a test.
pub struct Corpus {
    pub name: String,
    pub events: Vec<Value>,
}

/// A generated corpus and, where `NEGSYNC_REAL_EVENTS` names a file of JSON Lines, that one.
pub fn corpora(seed: u64, count: usize) -> Vec<Corpus> {
    let generated =
        Corpus { name: format!("generated from seed {seed}"), events: generate(seed, count) };
    let mut corpora = vec![generated];
    match std::env::var("NEGSYNC_REAL_EVENTS") {
        Ok(path) => {
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("NEGSYNC_REAL_EVENTS names {path}: {error}"));
            let events: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert!(!events.is_empty(), "{path} holds no events");
            corpora.push(Corpus { name: path, events });
        }
        Err(_) => {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                // Past the test harness, which would capture the output.
                let _ = writeln!(
                    std::io::stderr(),
                    "\n*** LEFT OUT: the tests over real events. Set NEGSYNC_REAL_EVENTS to a \
                     file of JSON Lines to run them.\n"
                );
            });
        }
    }
    corpora
}
