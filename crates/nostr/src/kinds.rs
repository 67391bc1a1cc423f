//! The kinds with a meaning for relays, and the lifetime of each kind.

use serde::{Deserialize, Serialize};

/// The lifetime of an event, by its kind (NIP-01, Kinds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Stored until it is deleted or expires.
    Regular,
    /// Only the newest event of an author and kind is kept.
    Replaceable,
    /// Only the newest event of an author, kind and `d` tag is kept.
    Addressable,
    /// Passed on to subscriptions, never stored.
    Ephemeral,
}

impl Lifetime {
    /// The lifetime of a kind.
    #[must_use]
    pub fn of(kind: u16) -> Self {
        match kind {
            0 | 3 | 10_000..20_000 => Self::Replaceable,
            20_000..30_000 => Self::Ephemeral,
            30_000..40_000 => Self::Addressable,
            _ => Self::Regular,
        }
    }
}

/// One kind, or a range of kinds, as NIP-11 writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be a kind such as 7, or a range such as [9734, 9735]")]
pub enum KindRange {
    /// One kind.
    One(u16),
    /// From the first to the last, both included.
    FromTo(u16, u16),
}

/// NIP-09: the kind of a deletion request.
pub const DELETION: u16 = 5;
/// NIP-42: the kind with which a client proves its key; never stored, never passed on.
pub const AUTHENTICATION: u16 = 22_242;
/// NIP-62: the kind of a request to vanish.
pub const VANISH: u16 = 62;
/// NIP-62: the value of a `relay` tag that means every relay.
pub const ALL_RELAYS: &str = "ALL_RELAYS";
/// NIP-59: the kind of a gift wrap. Its author is a single-use key; it belongs to the recipients in
/// its `p` tags. The ephemeral kind, 21059, is never stored.
pub const GIFT_WRAP: u16 = 1_059;
/// NIP-18: the kinds whose content may be another event.
pub(crate) const REPOSTS: [u16; 2] = [6, 16];
