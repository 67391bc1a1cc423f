//! What is wrong with a configuration, and in which line of the file.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line of it is wrong.
    #[error("{path}, line {line}: {key}{message}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The key on that line and a colon, where there is one.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// A program has set a number that is out of bounds.
    #[error("{key} = {number}: it must be from {least} to {most}")]
    OutOfBounds {
        /// The key, such as `limits.filters`.
        key: String,
        /// What was set.
        number: u64,
        /// The least number.
        least: u64,
        /// The greatest number.
        most: u64,
    },
    /// A program has set values that contradict each other.
    #[error("{message}")]
    Contradiction {
        /// Which, and what to do.
        message: String,
    },
    /// An environment variable is wrong.
    #[error("environment variable {variable}: {message}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong.
        message: String,
    },
}

impl ConfigError {
    /// That an event is allowed more than a message: where the one stands in the text, else where
    /// the other does.
    pub(super) fn of_event_bytes(text: &str, path: &Path, message: String) -> Self {
        #[derive(Deserialize)]
        struct Tables {
            limits: BTreeMap<String, Spanned<toml::Value>>,
        }
        let tables = toml::from_str::<Tables>(text).ok();
        let limit = |key: &'static str| Some((key, tables.as_ref()?.limits.get(key)?));
        let found = limit("event_bytes").or_else(|| limit("message_bytes"));
        let (key, start) = found.map_or(("limits", 0), |(key, value)| (key, value.span().start));
        let line = line_at(text, start);
        Self::Invalid { path: path.to_owned(), line, key: format!("{key}: "), message }
    }

    /// That a `key` of a `[[peer]]` is wrong, the one that is `place`-th in the text, from 0.
    pub(super) fn in_peer(
        text: &str,
        path: &Path,
        place: usize,
        key: &str,
        message: String,
    ) -> Self {
        #[derive(Deserialize)]
        struct PeerTables {
            peer: Vec<BTreeMap<String, Spanned<toml::Value>>>,
        }
        let peers = toml::from_str::<PeerTables>(text).ok();
        let value = peers.as_ref().and_then(|it| it.peer.get(place)?.get(key));
        let line = line_at(text, value.map_or(0, |value| value.span().start));
        Self::Invalid { path: path.to_owned(), line, key: format!("{key}: "), message }
    }
}

/// The line, from 1, of the byte at `start`.
pub(super) fn line_at(text: &str, start: usize) -> usize {
    text.get(..start).unwrap_or("").matches('\n').count() + 1
}
