//! Errors of the server and of the connection to it.

use negsync_store::StoreError;
use std::fmt;
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// An error of the server or of the connection, in one line with the server's reason.
#[derive(Debug)]
pub(crate) struct Fault(tokio_postgres::Error);

impl Fault {
    /// The text of the error, with the server's own reason.
    pub(crate) fn in_words(error: &tokio_postgres::Error) -> String {
        if let Some(refused) = error.as_db_error() {
            let hint = refused.hint().or_else(|| hint_of(refused.code()));
            let hint = hint.map_or(String::new(), |hint| format!("; {hint}"));
            return format!("{} (SQLSTATE {}){hint}", refused.message(), refused.code().code());
        }
        match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::in_words(&self.0))
    }
}

// Without a source: its text is part of this one.
impl std::error::Error for Fault {}

/// What to do about an error for which the server has no hint.
fn hint_of(code: &SqlState) -> Option<&'static str> {
    if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        return Some(
            "grant it to the role of the URL; the first start of a store needs CREATE on the database",
        );
    }
    if *code == SqlState::TOO_MANY_CONNECTIONS {
        return Some(
            "raise max_connections or the role's limit; a relay needs store.readers plus five connections",
        );
    }
    (*code == SqlState::INVALID_CATALOG_NAME).then_some("make it with CREATE DATABASE")
}

/// The server or the network does not answer.
#[derive(Debug)]
struct NoAnswer(Duration);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer from the database server within {} s", self.0.as_secs_f32())
    }
}

impl std::error::Error for NoAnswer {}

/// Waits for the server, with a timeout.
pub(crate) async fn within<T>(
    timeout: Duration,
    future: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(timeout, future).await.unwrap_or_else(|_| Err(no_answer(timeout)))
}

pub(crate) fn no_answer(timeout: Duration) -> StoreError {
    StoreError::Database { store: "on PostgreSQL".to_owned(), source: Box::new(NoAnswer(timeout)) }
}

/// Whether a retry on another connection may succeed: the server was stopped, or ended the
/// transaction in favour of another one.
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

/// As an error of the store. The caller that opened the database knows its name.
pub(crate) fn fault(error: tokio_postgres::Error) -> StoreError {
    if error.code() == Some(&SqlState::QUERY_CANCELED) {
        return StoreError::Interrupted;
    }
    StoreError::Database { store: "on PostgreSQL".to_owned(), source: Box::new(Fault(error)) }
}
