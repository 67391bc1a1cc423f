//! What the operator does not want, and who may say so over HTTP.

use super::PublicKeys;
use super::section::section;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

section! {
    /// `[moderation]`
    #[derive(Default)]
    pub struct ModerationConfig {
        /// The ban list; empty for the store's name with `.bans` at its end.
        pub file: PathBuf => Restart,
        /// Whose requests to manage the relay (NIP-86) are followed.
        pub operators: PublicKeys => OnReload,
    }
}
