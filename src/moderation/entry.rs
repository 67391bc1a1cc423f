//! One line of the file: a keyword, its value, and a reason for the operator.

use crate::config::Network;
use crate::hex;
use std::fmt::{self, Display, Formatter};

/// Maximum length of an entry's text, in characters.
const MOST_CHARS: usize = 4_096;

/// An entry of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListEntry {
    /// `key`: events of this author are refused.
    Key([u8; 32], String),
    /// `event`: the event with this id is refused.
    Event([u8; 32], String),
    /// `word`: events whose content contains this text are refused, ignoring case.
    Word(String),
    /// `ip`: clients from this address or network are refused.
    Ip(Network, String),
    /// `allow-key`: the author may publish if `auth.publish_keys` restricts publishing.
    AllowKey([u8; 32], String),
    /// `allow-event`: the event is accepted even if its author, kind or words are banned.
    AllowEvent([u8; 32], String),
    /// `allow-method`: the owner of the key may call this method of NIP-86.
    AllowMethod([u8; 32], String),
    /// `allow-kind`: with one or more of these, no other kind is accepted.
    AllowKind(u16),
    /// `refuse-kind`: events of this kind are refused.
    RefuseKind(u16),
    /// `relay-name`: replaces `relay.name`.
    RelayName(String),
    /// `relay-description`: replaces `relay.description`.
    RelayDescription(String),
    /// `relay-icon`: the URL of a picture for the NIP-11 document.
    RelayIcon(String),
}

/// Why a line is not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// It begins with an unknown keyword.
    #[error(
        "{0:?} is not one of key, event, word, ip, allow-key, allow-event, allow-method, allow-kind, \
         refuse-kind, relay-name, relay-description, relay-icon"
    )]
    Unknown(String),
    /// The value has the wrong form for the keyword.
    #[error("{what}: {value:?} is no {expected}")]
    Value {
        /// The keyword.
        what: &'static str,
        /// The value.
        value: String,
        /// The expected form.
        expected: &'static str,
    },
}

impl ListEntry {
    /// Parses a line; `None` if it is empty or a comment.
    ///
    /// # Errors
    /// [`EntryError`] when it is neither that nor an entry.
    pub fn parse(line: &str) -> Result<Option<Self>, EntryError> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(None);
        }
        let (word, rest) = split(line);
        let text = || short(rest);
        let (value, reason) = split(rest);
        let reason = reason.to_owned();
        Ok(Some(match word {
            "key" => Self::Key(key("key", value)?, reason),
            "allow-key" => Self::AllowKey(key("allow-key", value)?, reason),
            "event" => Self::Event(event("event", value)?, reason),
            "allow-event" => Self::AllowEvent(event("allow-event", value)?, reason),
            "allow-method" if !reason.is_empty() => {
                Self::AllowMethod(key("allow-method", value)?, reason)
            }
            "allow-method" => return Err(wrong("allow-method", rest, "public key and method")),
            "word" if !rest.is_empty() => Self::Word(text()),
            "word" => return Err(wrong("word", rest, "text")),
            "ip" => {
                let network = value.parse();
                Self::Ip(network.map_err(|_| wrong("ip", value, "address or network"))?, reason)
            }
            "allow-kind" => Self::AllowKind(kind("allow-kind", value)?),
            "refuse-kind" => Self::RefuseKind(kind("refuse-kind", value)?),
            "relay-name" => Self::RelayName(text()),
            "relay-description" => Self::RelayDescription(text()),
            "relay-icon" => Self::RelayIcon(text()),
            _ => return Err(EntryError::Unknown(word.chars().take(40).collect())),
        }))
    }

    /// Whether the entry replaces another one: both have the same subject, or this one is its
    /// opposite.
    pub fn replaces(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(one, _) | Self::AllowKey(one, _), Self::Key(other, _))
            | (Self::Key(one, _) | Self::AllowKey(one, _), Self::AllowKey(other, _))
            | (Self::Event(one, _) | Self::AllowEvent(one, _), Self::Event(other, _))
            | (Self::Event(one, _) | Self::AllowEvent(one, _), Self::AllowEvent(other, _)) => {
                one == other
            }
            (Self::AllowMethod(..), Self::AllowMethod(..)) => self == other,
            (Self::Ip(one, _), Self::Ip(other, _)) => one == other,
            (Self::Word(one), Self::Word(other)) => one.to_lowercase() == other.to_lowercase(),
            (Self::AllowKind(one) | Self::RefuseKind(one), Self::AllowKind(other))
            | (Self::AllowKind(one) | Self::RefuseKind(one), Self::RefuseKind(other)) => {
                one == other
            }
            (Self::RelayName(_), Self::RelayName(_))
            | (Self::RelayDescription(_), Self::RelayDescription(_))
            | (Self::RelayIcon(_), Self::RelayIcon(_)) => true,
            _ => false,
        }
    }
}

impl Display for ListEntry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = |f: &mut Formatter<'_>, word: &str, value: &str, reason: &str| {
            let (value, reason) = (short(value), short(reason));
            write!(f, "{}", format!("{word} {value} {reason}").trim_end())
        };
        match self {
            Self::Key(key, reason) => line(f, "key", &hex::encode(key), reason),
            Self::Event(id, reason) => line(f, "event", &hex::encode(id), reason),
            Self::Word(word) => line(f, "word", word, ""),
            Self::Ip(network, reason) => line(f, "ip", &network.to_string(), reason),
            Self::AllowKey(key, reason) => line(f, "allow-key", &hex::encode(key), reason),
            Self::AllowEvent(id, reason) => line(f, "allow-event", &hex::encode(id), reason),
            Self::AllowMethod(key, method) => line(f, "allow-method", &hex::encode(key), method),
            Self::AllowKind(kind) => line(f, "allow-kind", &kind.to_string(), ""),
            Self::RefuseKind(kind) => line(f, "refuse-kind", &kind.to_string(), ""),
            Self::RelayName(text) => line(f, "relay-name", text, ""),
            Self::RelayDescription(text) => line(f, "relay-description", text, ""),
            Self::RelayIcon(text) => line(f, "relay-icon", text, ""),
        }
    }
}

/// The first word and the rest.
fn split(text: &str) -> (&str, &str) {
    text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim()))
}

/// A text that fits into a line.
fn short(text: &str) -> String {
    let text: String = text.chars().take(MOST_CHARS).collect();
    text.split(|c: char| c.is_control()).collect::<Vec<_>>().join(" ").trim().to_owned()
}

fn wrong(what: &'static str, value: &str, expected: &'static str) -> EntryError {
    EntryError::Value { what, value: value.chars().take(80).collect(), expected }
}

fn key(what: &'static str, value: &str) -> Result<[u8; 32], EntryError> {
    nostr::PublicKey::parse(value)
        .map(|key| key.to_bytes())
        .map_err(|_| wrong(what, value, "public key (64 hex digits or npub)"))
}

fn event(what: &'static str, value: &str) -> Result<[u8; 32], EntryError> {
    nostr::EventId::parse(value)
        .map(|id| id.to_bytes())
        .map_err(|_| wrong(what, value, "event id (64 hex digits or note1...)"))
}

fn kind(what: &'static str, value: &str) -> Result<u16, EntryError> {
    value.parse().map_err(|_| wrong(what, value, "kind from 0 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_read_back_from_its_line() {
        let (key, network) = ([0x79; 32], "192.0.2.0/24".parse().unwrap());
        let generator = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let Ok(Some(ListEntry::Key(author, _))) = ListEntry::parse(&format!("key {generator}"))
        else {
            panic!("no key");
        };
        for entry in [
            ListEntry::Key(author, "sends too much".into()),
            ListEntry::Key(author, String::new()),
            ListEntry::Event(key, "x".into()),
            ListEntry::Word("# two  words".into()),
            ListEntry::Ip(network, "a reason".into()),
            ListEntry::AllowKey(author, String::new()),
            ListEntry::AllowEvent(key, "asked for".into()),
            ListEntry::AllowMethod(author, "banpubkey".into()),
            ListEntry::AllowKind(1),
            ListEntry::RefuseKind(65_535),
            ListEntry::RelayName("a name".into()),
            ListEntry::RelayDescription("what it is for".into()),
            ListEntry::RelayIcon("https://relay.example.com/icon.png".into()),
        ] {
            let line = entry.to_string();
            assert_eq!(ListEntry::parse(&line).as_ref(), Ok(&Some(entry.clone())), "{line}");
            assert!(entry.replaces(&entry));
        }
        // A reason must not be able to start a new line.
        let line = ListEntry::Event(key, "a\nrefuse-kind 1".into()).to_string();
        assert_eq!(line.lines().count(), 1);
        for line in ["", "  ", "# key x"] {
            assert_eq!(ListEntry::parse(line), Ok(None));
        }
        for line in [
            "key",
            "key ab",
            "event 1",
            "word",
            "ip x",
            "refuse-kind 65536",
            "allow-method ab x",
            "nothing x",
        ] {
            assert!(ListEntry::parse(line).is_err(), "{line}");
        }
    }
}
