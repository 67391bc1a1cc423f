//! The entries of the file, indexed for lookups.

use super::{ListEntry, ModerationError};
use crate::prefix::Prefix;
use crate::store::{Event, VANISH};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::Path;

/// The first lines of a file that a command creates.
const HEAD: &str = "\
# What this relay does not want; read as soon as it has changed. One entry a line:
#   key HEX-OR-NPUB [reason]     event HEX-OR-NOTE [reason]     word TEXT     ip ADDRESS-OR-NETWORK [reason]
#   allow-key KEY [reason]       allow-event ID [reason]        allow-method KEY METHOD
#   allow-kind NUMBER            refuse-kind NUMBER
#   relay-name TEXT              relay-description TEXT         relay-icon URL
";

/// The bans and the exceptions.
#[derive(Debug, Default)]
pub struct BanList {
    entries: Vec<ListEntry>,
    keys: HashSet<[u8; 32]>,
    events: HashSet<[u8; 32]>,
    // In lower case.
    words: Vec<String>,
    allowed_keys: HashSet<[u8; 32]>,
    allowed_events: HashSet<[u8; 32]>,
    // `true` if the kind is allowed, `false` if it is refused.
    kinds: HashMap<u16, bool>,
    allows_kinds: bool,
}

impl BanList {
    /// Parses the text of the file at `path`.
    ///
    /// # Errors
    /// [`ModerationError`] with the line that is not an entry.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ModerationError> {
        let mut list = Self::default();
        for (number, line) in text.lines().enumerate() {
            list.entries.extend(parse_line(line, number, path)?);
        }
        for entry in &list.entries {
            match entry {
                ListEntry::Key(key, _) => drop(list.keys.insert(*key)),
                ListEntry::Event(id, _) => drop(list.events.insert(*id)),
                ListEntry::Word(word) => list.words.push(word.to_lowercase()),
                ListEntry::AllowKey(key, _) => drop(list.allowed_keys.insert(*key)),
                ListEntry::AllowEvent(id, _) => drop(list.allowed_events.insert(*id)),
                ListEntry::AllowKind(kind) => drop(list.kinds.insert(*kind, true)),
                ListEntry::RefuseKind(kind) => drop(list.kinds.insert(*kind, false)),
                ListEntry::Ip(..)
                | ListEntry::AllowMethod(..)
                | ListEntry::RelayName(_)
                | ListEntry::RelayDescription(_)
                | ListEntry::RelayIcon(_) => {}
            }
        }
        list.allows_kinds = list.kinds.values().any(|is_allowed| *is_allowed);
        Ok(list)
    }

    /// The text without the entries that `keeps` rejects, and with `added` at its end. All other
    /// lines stay unchanged.
    pub(super) fn edited(
        text: &str,
        path: &Path,
        keeps: impl Fn(&ListEntry) -> bool,
        added: &[ListEntry],
    ) -> Result<String, ModerationError> {
        let mut edited = if text.is_empty() { HEAD.to_owned() } else { String::new() };
        for (number, line) in text.lines().enumerate() {
            if parse_line(line, number, path)?.is_none_or(|entry| keeps(&entry)) {
                edited += line;
                edited.push('\n');
            }
        }
        for entry in added {
            edited += &format!("{entry}\n");
        }
        Ok(edited)
    }

    /// The entries, in file order.
    pub fn entries(&self) -> &[ListEntry] {
        &self.entries
    }

    /// The reason for refusing an event, with a machine-readable prefix; `None` if the list does
    /// not refuse it. Requests to vanish (NIP-62) are never refused.
    pub fn refuses(&self, event: &Event) -> Option<String> {
        if self.entries.is_empty() || event.kind() == VANISH {
            return None;
        }
        if self.events.contains(&event.item().id) {
            return Some(Prefix::Blocked.before("this event is banned"));
        }
        if self.allowed_events.contains(&event.item().id) {
            return None;
        }
        if self.keys.contains(event.pubkey()) {
            return Some(Prefix::Blocked.before("this author is banned"));
        }
        let is_taken = match self.kinds.get(&event.kind()) {
            Some(is_allowed) => *is_allowed,
            None => !self.allows_kinds,
        };
        if !is_taken {
            return Some(Prefix::Blocked.before("events of this kind are not taken"));
        }
        if !self.words.is_empty() {
            let content = event.content().to_lowercase();
            if self.words.iter().any(|word| content.contains(word)) {
                return Some(Prefix::Blocked.before("the content has a banned word"));
            }
        }
        None
    }

    /// A number that changes when the set of refused events may change.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for entry in &self.entries {
            let judges_events = matches!(
                entry,
                ListEntry::Key(..)
                    | ListEntry::Event(..)
                    | ListEntry::Word(_)
                    | ListEntry::AllowEvent(..)
                    | ListEntry::AllowKind(_)
                    | ListEntry::RefuseKind(_)
            );
            if judges_events {
                entry.to_string().hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Whether clients from the address are refused.
    pub fn blocks(&self, address: IpAddr) -> bool {
        self.entries
            .iter()
            .any(|entry| matches!(entry, ListEntry::Ip(network, _) if network.contains(address)))
    }

    /// Whether the author may publish if `auth.publish_keys` restricts publishing.
    pub fn allows(&self, key: &[u8; 32]) -> bool {
        self.allowed_keys.contains(key)
    }

    /// The methods of NIP-86 that the list allows the key's owner to call.
    pub fn methods_of<'list>(&'list self, key: &[u8; 32]) -> impl Iterator<Item = &'list str> {
        let key = *key;
        self.entries.iter().filter_map(move |entry| match entry {
            ListEntry::AllowMethod(of, method) if *of == key => Some(method.as_str()),
            _ => None,
        })
    }

    /// The last text that `of` returns for an entry.
    pub fn last<'list>(
        &'list self,
        of: impl Fn(&'list ListEntry) -> Option<&'list str>,
    ) -> Option<&'list str> {
        self.entries.iter().rev().find_map(of)
    }
}

fn parse_line(
    line: &str,
    number: usize,
    path: &Path,
) -> Result<Option<ListEntry>, ModerationError> {
    ListEntry::parse(line).map_err(|source| ModerationError::Line {
        path: path.to_owned(),
        line: number + 1,
        source,
    })
}
