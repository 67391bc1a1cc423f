//! Connections to the server, for blocking threads.

use negsync_postgres::Address;
use negsync_store::{Deadline, StoreError};
use std::future::Future;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

/// The name of the connections on the server.
const APPLICATION: &str = "negsync attach";
/// Timeout for one statement. Long scans are read in portions.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Additional time for the server to report that the statement has timed out.
const GRACE: Duration = Duration::from_secs(5);
/// Interval at which a statement checks its deadline.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    /// An error of the server or the connection.
    #[error("{}", described(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The cause, and a hint.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Malformed(#[from] super::pgoutput::Malformed),
    #[error("connection timeout: no answer from the server for {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The deadline of the query has passed.
    #[error("query timeout")]
    Interrupted,
    #[error("the connections are closed")]
    Closed,
    /// The server ended the connection, with this message.
    #[error("the server ended the connection: {0}")]
    Ended(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DatabaseError {
    /// An address that cannot be used, or a server that cannot be reached.
    fn of_connection(error: StoreError) -> Self {
        match error {
            StoreError::Address(reason) => Self::Refused(reason),
            StoreError::Database { source, .. } => Self::Refused(source.to_string()),
            other => Self::Store(other),
        }
    }

    /// As an error of a store that is read from this database.
    pub(crate) fn of(self, database: &str) -> StoreError {
        match self {
            Self::Interrupted => StoreError::Interrupted,
            Self::Store(error) => error,
            error => {
                StoreError::Attached { database: database.to_owned(), reason: error.to_string() }
            }
        }
    }
}

pub(crate) type Outcome<T> = Result<T, DatabaseError>;

/// The server's message, which the error's own text leaves out.
fn described(error: &tokio_postgres::Error) -> String {
    if error.code() == Some(&SqlState::ADMIN_SHUTDOWN) {
        return "the server or somebody on it ended the connection; where the server goes on and this \
                comes again, max_slot_wal_keep_size is too small for the time that reading takes"
            .into();
    }
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(error), _) => match error.hint() {
            Some(hint) => format!("{} ({hint})", error.message()),
            None => error.message().to_owned(),
        },
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// The address for new connections, and the thread that runs their I/O.
pub(crate) struct ServerConnector {
    address: Address,
    // `None` once dropped: waiting for it inside an async task would panic.
    runtime: Option<Runtime>,
}

impl ServerConnector {
    /// `url` is `postgres://USER@HOST/DATABASE`, as for a store.
    pub(crate) fn new(url: &str) -> Outcome<Self> {
        let refused = |reason: String| DatabaseError::Refused(reason);
        let address = Address::of_other(url, APPLICATION).map_err(DatabaseError::of_connection)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("postgres")
            .enable_all()
            .build()
            .map_err(|error| refused(format!("cannot start a thread: {error}")))?;
        Ok(Self { address, runtime: Some(runtime) })
    }

    /// Runs a task to its end while this thread waits.
    fn wait<T: Send + 'static>(
        &self,
        task: impl Future<Output = Outcome<T>> + Send + 'static,
        deadline: &Deadline,
    ) -> Outcome<T> {
        let runtime = self.runtime.as_ref().ok_or(DatabaseError::Closed)?;
        let (sender, receiver) = sync_channel(1);
        let task = runtime.spawn(async move {
            // The receiver is gone after the deadline.
            let _ = sender.send(task.await);
        });
        let patience = STATEMENT_TIMEOUT + GRACE;
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let slice = if deadline.is_none() { left } else { left.min(LOOK_INTERVAL) };
            match receiver.recv_timeout(slice) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => return Err(DatabaseError::Closed),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let over = match deadline.check() {
                Err(_) => DatabaseError::Interrupted,
                Ok(()) if Instant::now() >= end => DatabaseError::TimedOut(patience),
                Ok(()) => continue,
            };
            task.abort();
            return Err(over);
        }
    }
}

impl Drop for ServerConnector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One connection. Dropping it ends the connection and its temporary slot.
pub(crate) struct RelaySession {
    client: Arc<Client>,
    connector: Arc<ServerConnector>,
    // Why the connection ended; recorded because it may end while no statement is running.
    ended: Arc<OnceLock<String>>,
}

impl RelaySession {
    pub(crate) fn open(connector: &Arc<ServerConnector>, deadline: &Deadline) -> Outcome<Self> {
        let address = connector.address.clone();
        let ended = Arc::new(OnceLock::new());
        let reason = Arc::clone(&ended);
        let connect = async move {
            let opened = address.open_client().await;
            let (client, mut served) = opened.map_err(DatabaseError::of_connection)?;
            tokio::spawn(async move {
                // Recorded before the waiting statements fail.
                if let Err(error) = served.as_mut().await {
                    let _ = reason.set(described(&error));
                }
            });
            // Text values get a fixed form, independent of the server's settings; our commits are
            // flushed.
            let settings = format!(
                "SET bytea_output = hex; SET datestyle = ISO; SET timezone = UTC;
                 SET synchronous_commit = on; SET client_min_messages = warning;
                 SET standard_conforming_strings = on;
                 SET statement_timeout = '{} s'",
                STATEMENT_TIMEOUT.as_secs()
            );
            client.batch_execute(&settings).await?;
            Ok(client)
        };
        let client = Arc::new(connector.wait(connect, deadline)?);
        Ok(Self { client, connector: Arc::clone(connector), ended })
    }

    /// Values must be literals in the statement.
    pub(crate) fn query(&self, sql: String, deadline: &Deadline) -> Outcome<Vec<Row>> {
        let client = Arc::clone(&self.client);
        let query = async move { Ok(client.query_typed(&sql, &[]).await?) };
        let outcome = self.connector.wait(query, deadline);
        if let Err(DatabaseError::Interrupted) = outcome {
            self.cancel();
        }
        outcome.map_err(|error| self.explained(error))
    }

    /// The single row of a statement.
    pub(crate) fn row(&self, sql: impl Into<String>) -> Outcome<Row> {
        let rows = self.query(sql.into(), &Deadline::default())?;
        rows.into_iter().next().ok_or_else(|| DatabaseError::Refused("no row was returned".into()))
    }

    pub(crate) fn execute(&self, sql: impl Into<String>) -> Outcome<()> {
        let (client, sql) = (Arc::clone(&self.client), sql.into());
        let execute = async move { Ok(client.batch_execute(&sql).await?) };
        let outcome = self.connector.wait(execute, &Deadline::default());
        outcome.map_err(|error| self.explained(error))
    }

    /// Replaces the error by the server's reason, if the server ended the connection.
    fn explained(&self, error: DatabaseError) -> DatabaseError {
        match (&error, self.ended.get()) {
            (DatabaseError::Postgres(closed), Some(reason)) if closed.is_closed() => {
                DatabaseError::Ended(reason.clone())
            }
            _ => error,
        }
    }

    /// Asks the server to cancel the running statement.
    fn cancel(&self) {
        let (token, address) = (self.client.cancel_token(), self.connector.address.clone());
        if let Some(runtime) = &self.connector.runtime {
            runtime.spawn(async move { address.cancel(token).await });
        }
    }
}

/// A bounded number of connections for reading.
pub(crate) struct RelaySessions {
    connector: Arc<ServerConnector>,
    most: usize,
    state: Mutex<RelaySessionsState>,
    returned: Condvar,
}

#[derive(Default)]
struct RelaySessionsState {
    idle: Vec<RelaySession>,
    in_use: usize,
}

impl RelaySessions {
    pub(crate) fn new(connector: Arc<ServerConnector>, most: usize) -> Self {
        Self { connector, most: most.max(1), state: Mutex::default(), returned: Condvar::new() }
    }

    /// Runs `work` on one of the connections; waits for one. After an error the connection is
    /// closed.
    pub(crate) fn with<T>(
        &self,
        deadline: &Deadline,
        work: impl FnOnce(&RelaySession) -> Outcome<T>,
    ) -> Outcome<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.in_use >= self.most {
            state = deadline
                .wait(&self.state, &self.returned, state)
                .map_err(|_| DatabaseError::Interrupted)?;
        }
        state.in_use += 1;
        let idle = state.idle.pop();
        drop(state);
        let _permit = SessionPermit(self);
        let session = match idle.filter(|session| !session.client.is_closed()) {
            Some(session) => session,
            None => RelaySession::open(&self.connector, deadline)?,
        };
        let outcome = work(&session)?;
        self.state.lock().unwrap_or_else(PoisonError::into_inner).idle.push(session);
        Ok(outcome)
    }
}

/// Permission to use one of the connections.
struct SessionPermit<'pool>(&'pool RelaySessions);

impl Drop for SessionPermit<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).in_use -= 1;
        // Wakes all waiters: a single one might be a query whose deadline has passed.
        self.0.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::ServerConnector;

    #[test]
    fn an_ambiguous_login_is_refused_and_not_shown() {
        let url = "postgres://relay:p@secret/w:ord@db.example/events";
        let error = ServerConnector::new(url).err().unwrap().to_string();
        assert!(error.starts_with("ambiguous login") && !error.contains("secret"), "{error}");
    }
}
