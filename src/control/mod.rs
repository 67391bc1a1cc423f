//! Control of a running relay by commands: the relay listens on a Unix socket beside the store,
//! whose name ends in `.control`. Only the user that runs the relay and root may connect.
//!
//! A connection carries one request and one answer, each a line of JSON. If no relay is running,
//! the command opens the store and calls [`perform`] itself.

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

/// A request to the process that has the store open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ControlRequest {
    /// Remove events and keep them out.
    Delete(Choice),
    /// Lift the bans of removed events.
    Undelete(Choice),
    /// Lift the bans of all removed events.
    UndeleteAll,
    /// Remove all events that the rules of retention do not keep.
    Retire,
}

/// A selection of events by id and by filter; either may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choice {
    /// Ids, 64 hex digits each.
    pub ids: Vec<String>,
    /// A NIP-01 filter as JSON.
    pub filter: Option<String>,
}

/// The result of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlReport {
    /// The number of ids that are banned now, or whose ban was lifted.
    pub ids: u64,
    /// The number of stored events that were removed.
    pub removed: u64,
    /// The number of matching requests to delete or to vanish that were kept.
    pub requests_left: u64,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// An id is malformed.
    #[error("{0:?} is no event id of 64 hex digits")]
    Id(String),
    /// The filter is invalid.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bans could not be lifted.
    #[error(transparent)]
    Undelete(#[from] UndeleteError),
    /// The socket does not exist, no process listens on it, or access is denied.
    #[error("cannot reach the relay by its control socket {path}: {source}", path = path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The relay refused the request, with this reason.
    #[error("the relay refuses: {0}")]
    Refused(String),
}

/// Performs a request on an open store. Blocks.
///
/// # Errors
/// [`ControlError`] when the request is malformed or the store fails.
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
    /// The selection in the form of the store.
    ///
    /// # Errors
    /// [`ControlError`] when an id or the filter is malformed.
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
