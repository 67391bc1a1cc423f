//! `[moderation]`: bans, and who may manage the relay over HTTP.

use super::PublicKeys;
use super::section::section;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

section! {
    /// `[moderation]`
    #[derive(Default)]
    pub struct ModerationConfig {
        /// The ban list; if empty, the store's path with `.bans` appended.
        pub file: PathBuf => Restart,
        /// The keys that may manage the relay (NIP-86).
        pub operators: PublicKeys => OnReload,
    }
}
