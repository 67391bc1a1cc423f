//! How a command has a running relay work on its store: the relay listens on a Unix socket beside
//! the store, whose name ends in `.control`. Only the user that runs the relay may connect, and root.
//!
//! A connection carries one request and one answer, each a line of JSON. Where no relay runs the
//! command opens the store and calls [`perform`] itself.

mod client;
mod server;
mod socket;

pub use client::ask;
pub(crate) use server::ControlServer;

use crate::hex;
use crate::store::{
    EventStore, FilterError, Selected, Selection, StoreError, Undelete, UndeleteError,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is asked of whoever has the store open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ControlRequest {
    /// Remove events and keep them out.
    Delete(Choice),
    /// Let removed events in again.
    Undelete(Choice),
    /// Let all removed events in again.
    UndeleteAll,
    /// Remove what the rules of retention do not keep, until nothing is left of it.
    Retire,
}

/// Events by id and by filter; either may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choice {
    /// Ids, 64 hex digits each.
    pub ids: Vec<String>,
    /// A NIP-01 filter as JSON.
    pub filter: Option<String>,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReport {
    /// The ids that are kept out from now on, or let in again.
    pub ids: u64,
    /// How many events were stored and are removed.
    pub removed: u64,
    /// How many requests to delete or to vanish match the filter and were left.
    pub requests_left: u64,
}

/// Why a request was not followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// An id is none.
    #[error("{0:?} is no event id of 64 hex digits")]
    Id(String),
    /// The filter cannot be used.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing could be taken back.
    #[error(transparent)]
    Undelete(#[from] UndeleteError),
    /// Nobody listens on the socket, or not for us.
    #[error("cannot reach the relay by its control socket {path}: {source}", path = path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The relay does not do it, and says why.
    #[error("the relay refuses: {0}")]
    Refused(String),
}

/// Follows a request on an open store. Blocks.
///
/// # Errors
/// When the request cannot be read or the store fails.
pub fn perform(
    store: &dyn EventStore,
    request: &ControlRequest,
) -> Result<ControlReport, ControlError> {
    match request {
        ControlRequest::Delete(choice) => Ok(store.delete(&choice.selection()?)?.into()),
        ControlRequest::Undelete(choice) => {
            let ids = store.undelete(&Undelete::Selection(choice.selection()?))?;
            Ok(ControlReport { ids, ..ControlReport::default() })
        }
        ControlRequest::Retire => {
            store.retire()?;
            Ok(ControlReport::default())
        }
        ControlRequest::UndeleteAll => {
            let ids = store.undelete(&Undelete::All)?;
            Ok(ControlReport { ids, ..ControlReport::default() })
        }
    }
}

impl Choice {
    /// The choice as the store takes it.
    ///
    /// # Errors
    /// When an id or the filter cannot be read.
    pub fn selection(&self) -> Result<Selection, ControlError> {
        let id =
            |text: &String| hex::decode_array(text).ok_or_else(|| ControlError::Id(text.clone()));
        let ids = self.ids.iter().map(id).collect::<Result<_, _>>()?;
        Ok(Selection::parse(ids, self.filter.as_deref())?)
    }
}

impl From<Selected> for ControlReport {
    fn from(selected: Selected) -> Self {
        Self {
            ids: selected.ids.len() as u64,
            removed: selected.stored,
            requests_left: selected.requests_left,
        }
    }
}

/// The line that answers a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ControlAnswer {
    Done(ControlReport),
    Refused(String),
}
