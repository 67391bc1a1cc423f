//! What the server or the way to it answers instead of rows.

use negsync_store::StoreError;
use std::fmt;
use tokio_postgres::error::SqlState;

/// An error of the server or of the connection, in one line with the server's reason.
#[derive(Debug)]
pub(crate) struct Fault(pub(crate) tokio_postgres::Error);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refused) = self.0.as_db_error() {
            write!(f, "{} (SQLSTATE {})", refused.message(), refused.code().code())?;
            return refused.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"));
        }
        write!(f, "{}", self.0)?;
        match std::error::Error::source(&self.0) {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// Whether the same on another connection may succeed: the server went, or ended the transaction for
/// another one's sake.
pub(crate) fn is_passing(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else { return true };
    let passing = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    passing.contains(code) || code.code().starts_with("08")
}

/// As an error of the store.
pub(crate) fn fault(error: tokio_postgres::Error) -> StoreError {
    if error.code() == Some(&SqlState::QUERY_CANCELED) {
        return StoreError::Interrupted;
    }
    StoreError::Server(Box::new(Fault(error)))
}
