//! The options of a sync, as the machine takes them.

use super::super::breakdown::By;
use super::super::filter::PeerFilter;
use crate::config::Direction;

/// The events to sync, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The events to sync.
    pub filter: PeerFilter,
    /// The direction of moves.
    pub direction: Direction,
    /// Find differences and move nothing.
    pub dry_run: bool,
    /// Compare id lists instead of fingerprints.
    pub exact: bool,
    /// Continue with live mode when everything is synced.
    pub live: bool,
    /// Maximum number of connections in a row that fail or make no progress; `None` for no limit.
    pub attempts: Option<u32>,
    /// The grouping of differences, if they are to be listed.
    pub by: Option<By>,
    /// Our public key for NIP-42.
    pub key: Option<[u8; 32]>,
    /// Interval of complete readings of a peer without NIP-77, in seconds.
    pub full_interval_s: u64,
    /// Distinguishes our subscriptions from those of other clients.
    pub nonce: u64,
}
