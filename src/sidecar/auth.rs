//! NIP-42 seen in passing: which key a client has shown to the relay that it holds.
//!
//! A relay that answers AUTH with OK says so itself, as nostream does. nostr-rs-relay and nostr-relay say
//! nothing to a client that they believe; of those the AUTH event is judged here as they judge it. nostr-rs-relay
//! believes the first one of a connection and says OK to refuse one, nostr-relay (Python) believes
//! the last and refuses with a NOTICE. None counts that does not name the relay: it was signed for
//! another one, and the OK that comes for it may be that of an EVENT.

use crate::hex;
use crate::relay_url::RelayUrl;
use crate::server::nip42;
use crate::store::{Event, RelayKind};
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Messages about AUTH of up to this size are read in passing.
pub(super) const SEEN_BYTES: usize = 64 << 10;

/// How the NOTICE begins with which nostr-relay (Python) refuses an AUTH.
const REFUSALS: [&str; 7] = [
    "invalid: Bad signature",
    "invalid: Wrong kind",
    "invalid: Too old",
    "invalid: Too new",
    "invalid: Wrong domain",
    "invalid: Wrong challenge",
    "invalid: Missing required tags",
];

/// What one connection has shown.
#[derive(Debug, Default)]
pub(super) struct SeenAuth {
    challenge: Option<String>,
    // Of the AUTH event that was last sent.
    sent: Option<([u8; 32], [u8; 32])>,
    key: Option<[u8; 32]>,
}

/// What both directions of the connection hear.
pub(super) type SharedAuth = Arc<Mutex<SeenAuth>>;

pub(super) fn lock(auth: &SharedAuth) -> MutexGuard<'_, SeenAuth> {
    auth.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SeenAuth {
    /// The key that the client holds.
    pub(super) fn key(&self) -> Option<[u8; 32]> {
        self.key
    }

    /// Whether the relay has asked the client for a key.
    pub(super) fn is_asked(&self) -> bool {
        self.challenge.is_some()
    }

    /// The relay has said something that begins with `["AUTH"`, `["OK"` or `["NOTICE"`.
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
                    // Once refused it counts no more, and once believed it may yet be refused.
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

    /// The client has sent AUTH. `relay_url` is how the relay is known to its clients.
    pub(super) fn hear_client(&mut self, text: &str, kind: RelayKind, relay_url: &str, now: u64) {
        let Ok([_, event]) = serde_json::from_str::<[&RawValue; 2]>(text) else { return };
        let Ok(event) = Event::parse(event.get()) else { return };
        let tags = tags(event.json());
        let us = host(relay_url);
        let is_us = |url: &str| us.is_some() && host(url) == us;
        let Some(challenge) = self.challenge.as_deref() else { return };
        if nip42::check(&event, challenge, is_us, now).is_err() {
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
            // It says OK to what it believes.
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

    /// Where an AUTH names two relays or two challenges, each relay has its own way.
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

    /// It was got from somebody who signed it for another relay, and sent as AUTH and as EVENT.
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
