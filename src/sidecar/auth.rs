//! Observes NIP-42 authentication that passes through: the key that a client has proven to the
//! relay.
//!
//! A relay that answers AUTH with OK, such as nostream, reports the result itself. nostr-rs-relay
//! and nostr-relay do not answer an accepted AUTH; for them the AUTH event is checked here by their
//! rules. nostr-rs-relay accepts the first one of a connection and sends an OK only to refuse one;
//! nostr-relay (Python) accepts the last one and refuses with a NOTICE. An AUTH event that does not
//! name the relay never counts: it was signed for another relay, and an OK with its id may be that
//! of an EVENT.

use crate::hex;
use crate::relay_url::RelayUrl;
use crate::server::nip42;
use crate::store::{Event, RelayKind};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Maximum size of messages about AUTH that are parsed while they pass.
pub(super) const SEEN_BYTES: usize = 64 << 10;

/// The beginnings of NOTICEs by which nostr-relay (Python) refuses an AUTH.
const REFUSALS: [&str; 7] = [
    "invalid: Bad signature",
    "invalid: Wrong kind",
    "invalid: Too old",
    "invalid: Too new",
    "invalid: Wrong domain",
    "invalid: Wrong challenge",
    "invalid: Missing required tags",
];

/// The authentication state of one connection.
#[derive(Debug, Default)]
pub(super) struct SeenAuth {
    challenge: Option<String>,
    // Id and key of the last AUTH event sent.
    sent: Option<([u8; 32], [u8; 32])>,
    key: Option<[u8; 32]>,
}

/// The state, shared by both directions of the connection.
pub(super) type SharedAuth = Arc<Mutex<SeenAuth>>;

pub(super) fn lock(auth: &SharedAuth) -> MutexGuard<'_, SeenAuth> {
    auth.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SeenAuth {
    /// The key that the client has proven.
    pub(super) fn key(&self) -> Option<[u8; 32]> {
        self.key
    }

    /// Whether the relay has sent a challenge.
    pub(super) fn is_asked(&self) -> bool {
        self.challenge.is_some()
    }

    /// Handles a message of the relay that begins with `["AUTH"`, `["OK"` or `["NOTICE"`.
    pub(super) fn hear_relay(&mut self, text: &str) {
        let Ok(Value::Array(elements)) = serde_json::from_str(text) else { return };
        match elements.as_slice() {
            [Value::String(verb), Value::String(challenge)] if verb == "AUTH" => {
                self.challenge = Some(challenge.clone());
            }
            [Value::String(verb), Value::String(id), Value::Bool(accepted), ..] if verb == "OK" => {
                let (Some((sent, key)), Some(id)) = (self.sent, hex::decode_array(id)) else {
                    return;
                };
                if sent == id {
                    self.key = accepted.then_some(key);
                    // A refused event no longer counts; an accepted one may still be refused later.
                    self.sent = self.sent.filter(|_| *accepted);
                }
            }
            [Value::String(verb), Value::String(text)]
                if verb == "NOTICE" && REFUSALS.iter().any(|words| text.starts_with(words)) =>
            {
                self.key = None;
            }
            _ => {}
        }
    }

    /// Handles an AUTH of the client. `relay_url` is the relay's URL for its clients.
    pub(super) fn hear_client(&mut self, text: &str, kind: RelayKind, relay_url: &str, now: u64) {
        let Ok([_, event]) = serde_json::from_str::<[&RawValue; 2]>(text) else { return };
        let Ok(event) = Event::parse(event.get()) else { return };
        let tags = tags(event.json());
        let us = host(relay_url);
        let is_us = |url: &str| us.is_some() && host(url) == us;
        let Some(challenge) = self.challenge.as_deref() else { return };
        if nip42::check(&event, challenge, is_us, relay_url, now).is_err() {
            return;
        }
        let Ok(event) = event.verify() else { return };
        self.sent = Some((event.item().id, *event.pubkey()));
        let names_relay = |tag: &[String]| tag.get(1).is_some_and(|url| is_us(url));
        let names_challenge = |tag: &[String]| tag.get(1).is_some_and(|it| it == challenge);
        let counts = |name: &str, is_right: &dyn Fn(&[String]) -> bool| match kind {
            RelayKind::NostrRsRelay => {
                named(&tags, name).filter(|tag| tag.len() == 2).last().is_some_and(is_right)
            }
            RelayKind::NostrRelayPy => {
                named(&tags, name).count() > 0 && named(&tags, name).all(is_right)
            }
            // It answers an accepted event with OK.
            RelayKind::Nostream => false,
        };
        let is_believed = counts("challenge", &names_challenge)
            && counts("relay", &names_relay)
            && (kind == RelayKind::NostrRelayPy || self.key.is_none());
        if is_believed {
            self.key = Some(*event.pubkey());
        }
    }
}

fn named<'tags>(tags: &'tags [Vec<String>], name: &str) -> impl Iterator<Item = &'tags [String]> {
    tags.iter().map(Vec::as_slice).filter(move |tag| tag.first().is_some_and(|first| first == name))
}

fn host(url: &str) -> Option<String> {
    RelayUrl::parse(url).ok().map(|url| url.host().to_owned())
}

fn tags(json: &str) -> Vec<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Tags {
        tags: Vec<Vec<String>>,
    }
    serde_json::from_str::<Tags>(json).map_or(Vec::new(), |event| event.tags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nostr::{EventBuilder, JsonUtil, Keys, Kind, SecretKey, Tag};

    const RELAY: &str = "wss://relay.example/";
    const NOW: u64 = 1_700_000_000;

    fn keys(number: u8) -> Keys {
        Keys::new(SecretKey::from_slice(&[number; 32]).unwrap())
    }

    fn auth(keys: &Keys, challenge: &str, relay: &str) -> (String, String) {
        let relay = nostr::RelayUrl::parse(relay).unwrap();
        let event = EventBuilder::auth(challenge, relay).custom_created_at(NOW.into());
        let event = event.sign_with_keys(keys).unwrap();
        (format!(r#"["AUTH",{}]"#, event.as_json()), event.id.to_hex())
    }

    #[test]
    fn a_relay_that_says_nothing_believes_what_it_would_believe() {
        let (one, other) = (keys(1), keys(2));
        for kind in [RelayKind::NostrRsRelay, RelayKind::NostrRelayPy] {
            let mut seen = SeenAuth::default();
            let mut hear = |text: &str, relay_url: &str| {
                seen.hear_client(text, kind, relay_url, NOW);
                seen.key()
            };
            let (text, _) = auth(&one, "c", RELAY);
            assert_eq!(hear(&text, RELAY), None, "nobody asked");
            seen.hear_relay(r#"["AUTH","c"]"#);
            let mut hear = |text: &str, relay_url: &str| {
                seen.hear_client(text, kind, relay_url, NOW);
                seen.key()
            };
            for wrong in [
                auth(&one, "d", RELAY).0,
                auth(&one, "c", "wss://elsewhere.example").0,
                text.replace("\"sig\":\"", "\"sig\":\"00"),
                r#"["AUTH"]"#.to_owned(),
                "[".to_owned(),
            ] {
                assert_eq!(hear(&wrong, RELAY), None, "{wrong}");
            }
            assert_eq!(hear(&text, ""), None, "nobody knows what the relay is called");
            assert_eq!(hear(&text, RELAY), Some(one.public_key().to_bytes()));
            let believed = if kind == RelayKind::NostrRsRelay { &one } else { &other };
            let key = hear(&auth(&other, "c", RELAY).0, RELAY);
            assert_eq!(key, Some(believed.public_key().to_bytes()), "{kind:?}");
        }
    }

    /// Relays differ on an AUTH with two relay tags or two challenge tags.
    #[test]
    fn of_several_tags_those_count_that_the_relay_reads() {
        let here = ["relay", RELAY];
        let elsewhere = ["relay", "wss://elsewhere.example"];
        let (right, wrong) = (["challenge", "c"], ["challenge", "d"]);
        for (tags, rs, py) in [
            (vec![here, right], true, true),
            (vec![right, here, right, here], true, true),
            (vec![elsewhere, here, right], true, false),
            (vec![here, elsewhere, right], false, false),
            (vec![here, wrong, right], true, false),
            (vec![here, right, wrong], false, false),
            (vec![here], false, false),
            (vec![right], false, false),
        ] {
            let tags = tags.iter().map(|tag| Tag::parse(*tag).unwrap());
            let event = EventBuilder::new(Kind::Authentication, "")
                .tags(tags)
                .custom_created_at(NOW.into());
            let event = event.sign_with_keys(&keys(1)).unwrap().as_json();
            for (kind, expected) in [(RelayKind::NostrRsRelay, rs), (RelayKind::NostrRelayPy, py)] {
                let mut seen = SeenAuth::default();
                seen.hear_relay(r#"["AUTH","c"]"#);
                seen.hear_client(&format!(r#"["AUTH",{event}]"#), kind, RELAY, NOW);
                assert_eq!(seen.key().is_some(), expected, "{kind:?}: {event}");
                seen.hear_relay(r#"["NOTICE","invalid: Wrong domain: wss://relay.example/"]"#);
                assert_eq!(seen.key(), None);
            }
        }
    }

    #[test]
    fn a_relay_that_answers_decides() {
        let one = keys(1);
        let mut seen = SeenAuth::default();
        seen.hear_relay(r#"["AUTH","c"]"#);
        let (text, id) = auth(&one, "c", RELAY);
        let key = Some(one.public_key().to_bytes());
        seen.hear_client(&text, RelayKind::NostrRsRelay, RELAY, NOW);
        seen.hear_relay(&format!(r#"["OK","{}",false,""]"#, "00".repeat(32)));
        assert_eq!(seen.key(), key);
        for (accepted, expected) in [(true, key), (false, None), (true, None)] {
            seen.hear_relay(&format!(r#"["OK","{id}",{accepted},""]"#));
            assert_eq!(seen.key(), expected);
        }
    }

    /// The event was signed for another relay, and is sent as AUTH and as EVENT.
    #[test]
    fn an_ok_to_what_was_signed_for_another_relay_counts_for_nothing() {
        for (names, relay_url) in [("wss://elsewhere.example", RELAY), (RELAY, "")] {
            let mut seen = SeenAuth::default();
            seen.hear_relay(r#"["AUTH","c"]"#);
            let (text, id) = auth(&keys(1), "c", names);
            seen.hear_client(&text, RelayKind::NostrRsRelay, relay_url, NOW);
            seen.hear_relay(&format!(r#"["OK","{id}",true,""]"#));
            assert_eq!(seen.key(), None, "{names}");
        }
    }
}
