//! The reasons why events are not moved.

use crate::prefix::Prefix;
use crate::store::DAY_S;
use crate::store::{REMOVED_BY_OPERATOR, RETIRED};
use serde::{Serialize, Serializer};
use std::fmt;

/// Why an event that only one side has is not moved, or was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// We store a newer version.
    Superseded,
    /// The author deleted it.
    Deleted,
    /// The author or an addressee has vanished (NIP-62).
    Vanished,
    /// This relay's operator removed it.
    RemovedByOperator,
    /// This relay's rules of retention refuse it.
    Retired,
    /// It has expired (NIP-40).
    Expired,
    /// It is ephemeral: passed on, never stored.
    Ephemeral,
    /// Only its author may publish it, or it is a repost of such an event (NIP-70).
    Protected,
    /// It exceeds a limit of this relay.
    OverLimits,
    /// It is malformed, or its id or signature is wrong.
    Invalid,
    /// The operator has banned it, its author, its kind, or a word in it.
    Banned,
    /// It was not requested.
    NotAskedFor,
    /// The peer returned it for a filter that it does not match.
    OutsideFilter,
    /// The connection breaks whenever it is requested.
    Unreadable,
    /// The relay that stores our events refuses it.
    RefusedByRelay,
    /// The write policy refuses it.
    RefusedByPolicy,
    /// The peer lists it but does not send it.
    NotSent,
    /// The peer accepted it but does not show it.
    NotKept,
    /// It is longer than the peer accepts.
    TooLong,
    /// The peer did not answer after it was sent.
    NotAnswered,
    /// The peer closes the connection whenever it is sent.
    HungUp,
    /// The peer refuses it, with the prefix of its answer, if there is one.
    RefusedByPeer(Option<Prefix>),
    /// The peer shows events of this kind only to their owners: it cannot be compared.
    Hidden,
    /// The sync does not download.
    NotToDownload,
    /// The sync does not upload.
    NotToUpload,
    /// It could not be moved, or the sync only compares.
    NotMoved,
}

impl Reason {
    const NAMED: [Self; 25] = [
        Self::Superseded,
        Self::Deleted,
        Self::Vanished,
        Self::RemovedByOperator,
        Self::Retired,
        Self::Expired,
        Self::Ephemeral,
        Self::Protected,
        Self::OverLimits,
        Self::Invalid,
        Self::Banned,
        Self::NotAskedFor,
        Self::OutsideFilter,
        Self::Unreadable,
        Self::RefusedByRelay,
        Self::RefusedByPolicy,
        Self::NotSent,
        Self::NotKept,
        Self::TooLong,
        Self::NotAnswered,
        Self::HungUp,
        Self::Hidden,
        Self::NotToDownload,
        Self::NotToUpload,
        Self::NotMoved,
    ];

    /// The name in a report, also used to record the reason.
    pub fn name(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Deleted => "deleted",
            Self::Vanished => "vanished",
            Self::RemovedByOperator => REMOVED_BY_OPERATOR,
            Self::Retired => RETIRED,
            Self::Expired => "expired",
            Self::Ephemeral => "ephemeral",
            Self::Protected => "protected",
            Self::OverLimits => "over limits",
            Self::Invalid => "invalid",
            Self::Banned => "banned",
            Self::NotAskedFor => "not asked for",
            Self::OutsideFilter => "outside the filter",
            Self::Unreadable => "unreadable",
            Self::RefusedByRelay => "refused by the relay",
            Self::RefusedByPolicy => "refused by the write policy",
            Self::NotSent => "not sent by the peer",
            Self::NotKept => "accepted and not kept by the peer",
            Self::TooLong => "too long for the peer",
            Self::NotAnswered => "not answered by the peer",
            Self::HungUp => "ends the peer's connection",
            Self::Hidden => "not compared",
            Self::NotToDownload => "not to be downloaded",
            Self::NotToUpload => "not to be uploaded",
            Self::NotMoved => "not moved",
            Self::RefusedByPeer(prefix) => match prefix {
                Some(Prefix::AuthRequired) => "refused by the peer: auth-required",
                Some(Prefix::Blocked) => "refused by the peer: blocked",
                Some(Prefix::Closed) => "refused by the peer: closed",
                Some(Prefix::Duplicate) => "refused by the peer: duplicate",
                Some(Prefix::Error) => "refused by the peer: error",
                Some(Prefix::Invalid) => "refused by the peer: invalid",
                Some(Prefix::Mute) => "refused by the peer: mute",
                Some(Prefix::Pow) => "refused by the peer: pow",
                Some(Prefix::RateLimited) => "refused by the peer: rate-limited",
                Some(Prefix::Replaced) => "refused by the peer: replaced",
                Some(Prefix::Restricted) => "refused by the peer: restricted",
                Some(Prefix::Unsupported) => "refused by the peer: unsupported",
                _ => "refused by the peer: other",
            },
        }
    }

    /// Parses [`Reason::name`].
    pub(super) fn from_name(name: &str) -> Option<Self> {
        let prefixes = Prefix::ALL.into_iter().map(Some).chain([None]);
        let refused = prefixes.map(Self::RefusedByPeer);
        Self::NAMED.into_iter().chain(refused).find(|reason| reason.name() == name)
    }

    /// The number of seconds for which the event need not be tried again; `None` if the reason does
    /// not hold for later attempts.
    pub(super) fn term_s(self) -> Option<u64> {
        match self {
            Self::Superseded
            | Self::Deleted
            | Self::Vanished
            | Self::Retired
            | Self::Expired
            | Self::Ephemeral => Some(30 * DAY_S),
            // Temporary: configurations, clocks and policies change.
            Self::Protected
            | Self::OverLimits
            | Self::Invalid
            | Self::Banned
            | Self::Unreadable
            | Self::RefusedByRelay
            | Self::RefusedByPolicy
            | Self::NotKept
            | Self::TooLong
            | Self::HungUp
            | Self::Hidden => Some(DAY_S),
            Self::RefusedByPeer(prefix) => (!is_passing(prefix)).then_some(DAY_S),
            // The store itself records the operator's removals.
            Self::RemovedByOperator
            | Self::NotAskedFor
            | Self::OutsideFilter
            | Self::NotSent
            | Self::NotAnswered
            | Self::NotToDownload
            | Self::NotToUpload
            | Self::NotMoved => None,
        }
    }

    /// Whether the reason is this store's own and so applies to every peer.
    pub(super) fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Superseded
                | Self::Deleted
                | Self::Vanished
                | Self::RemovedByOperator
                | Self::Retired
                | Self::Expired
                | Self::Ephemeral
                | Self::Protected
                | Self::OverLimits
                | Self::Banned
                | Self::RefusedByRelay
        )
    }

    /// Whether nothing explains why the event was not moved.
    pub(super) fn is_unexplained(self) -> bool {
        match self {
            Self::NotSent | Self::NotMoved | Self::NotAnswered => true,
            Self::RefusedByPeer(prefix) => is_passing(prefix),
            _ => false,
        }
    }
}

/// Whether a refusal with this prefix may be temporary.
pub(crate) fn is_passing(prefix: Option<Prefix>) -> bool {
    prefix.is_some_and(Prefix::is_passing)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_read_back_by_its_name() {
        let prefixes = Prefix::ALL.into_iter().map(Some).chain([None]);
        let refused = prefixes.map(Reason::RefusedByPeer);
        for reason in Reason::NAMED.into_iter().chain(refused) {
            assert_eq!(Reason::from_name(reason.name()), Some(reason));
        }
    }
}
