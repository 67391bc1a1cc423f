//! The writer's connection: a transaction is repeated over another one if the connection is lost.

use super::NodeWriterThread;
use crate::connection::ServerSession;
use crate::fault::{Fault, fault, is_passing, within};
use crate::transaction::{self, StoredRequests};
use negsync_store::{StoreError, Synchronous};
use std::time::{Duration, Instant};
use tokio_postgres::Error;

/// How long a batch is repeated over new connections.
const SEND_AGAIN: Duration = Duration::from_secs(10);
/// First and maximum pause before a retry.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// The settings of the writing session. Plans use indexes only, and are made once for each
/// statement. A node that died in a transaction, or that waits for one, blocks other writers no
/// longer than this.
const SESSION: &str =
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET plan_cache_mode = force_generic_plan;
    SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s'";

impl NodeWriterThread {
    /// Runs `work`, which makes one transaction, and repeats it over another connection if the
    /// connection is lost. It is unknown then whether the first one was committed; ids make the
    /// repetition harmless.
    pub(super) fn transact<T>(
        &mut self,
        work: impl AsyncFn(&ServerSession) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let (began, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let error = match self.try_once(&work) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let is_passing = error.as_ref().map_or(true, is_passing);
            // A request to vanish may have been committed before its answer was lost.
            self.may_vanish = true;
            if !is_passing || began.elapsed() + pause > SEND_AGAIN {
                let why = error.map_or_else(|error| error, fault);
                tracing::error!(error = %why, "store not written");
                return Err(why);
            }
            if let Ok(error) = &error {
                tracing::warn!(reason = %Fault::in_words(error), "transaction sent again");
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The error of the transaction, or of connecting.
    fn try_once<T>(
        &mut self,
        work: &impl AsyncFn(&ServerSession) -> Result<T, Error>,
    ) -> Result<T, Result<Error, StoreError>> {
        let connection = match self.connection.take().filter(|it| !it.is_closed()) {
            Some(connection) => connection,
            None => {
                self.stored_requests = StoredRequests::Unknown;
                self.connect().map_err(Err)?
            }
        };
        let patience = self.context.address.patience() * 2;
        let done = self.context.engine.wait(within(patience, async {
            let done = work(&connection).await;
            // Ends a transaction that an error left open. A connection on which that fails is
            // unusable, and so is one to a server that no longer accepts writes.
            let is_usable = match &done {
                Ok(_) => true,
                Err(error) => {
                    !is_passing(error) && transaction::roll_back(&connection).await.is_ok()
                }
            };
            Ok((done, is_usable))
        }));
        let (done, is_usable) = done.map_err(Err)?;
        self.connection = is_usable.then_some(connection);
        done.map_err(Ok)
    }

    fn connect(&self) -> Result<ServerSession, StoreError> {
        let context = &self.context;
        context.engine.wait(async {
            let connection = ServerSession::open(&context.address).await?;
            within(context.address.patience(), self.set_up(&connection)).await?;
            Ok(connection)
        })
    }

    async fn set_up(&self, connection: &ServerSession) -> Result<(), StoreError> {
        let context = &self.context;
        let synchronous = match context.synchronous {
            // The server's own setting may be stricter, and is then kept.
            Synchronous::Full => {
                "SELECT set_config('synchronous_commit', 'on', FALSE)
                    WHERE current_setting('synchronous_commit') IN ('off', 'local')"
            }
            Synchronous::Normal => "SET synchronous_commit = off",
        };
        let client = connection.client();
        client.batch_execute(SESSION).await.map_err(fault)?;
        client.batch_execute(synchronous).await.map_err(fault)
    }
}
