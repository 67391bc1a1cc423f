//! Errors of a configuration, with the line in the file.

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
    /// A line is invalid.
    #[error("{path}, line {line}: {key}{message}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The key on that line and a colon, if there is one.
        key: String,
        /// The fault.
        message: String,
    },
    /// A program has set a number out of bounds.
    #[error("{key} = {number}: it must be from {least} to {most}")]
    OutOfBounds {
        /// The key, such as `limits.filters`.
        key: String,
        /// The number.
        number: u64,
        /// The lower bound.
        least: u64,
        /// The upper bound.
        most: u64,
    },
    /// A program has set inconsistent values.
    #[error("{message}")]
    Contradiction {
        /// The values, and a hint.
        message: String,
    },
    /// An environment variable is invalid.
    #[error("environment variable {variable}: {message}")]
    Variable {
        /// Its name.
        variable: String,
        /// The fault.
        message: String,
    },
}

impl ConfigError {
    /// An event limit above the message limit: the error is at the line of the one, or else of the
    /// other.
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

    /// A `key` of a `[[peer]]` is invalid; `place` is the index of the peer in the text.
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

/// The line number, from 1, of the byte at `start`.
pub(super) fn line_at(text: &str, start: usize) -> usize {
    text.get(..start).unwrap_or("").matches('\n').count() + 1
}
