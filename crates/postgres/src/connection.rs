//! Connections to the server: single ones, and a bounded pool for reading.

use crate::address::Address;
use crate::fault::{fault, is_passing, no_answer};
use crate::tls::TlsConnector;
use futures_util::future::{Either, select};
use negsync_store::{Deadline, StoreError};
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime, RuntimeFlavor};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

/// Interval at which a running query checks its deadline.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Timeout for cancelling a query on the server.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long closing waits for running reads.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The threads that drive connections. Dropping it ends them without waiting, from any thread.
pub(crate) struct Engine(Option<Runtime>);

impl Engine {
    pub(crate) fn start() -> Result<Self, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("postgres")
            .enable_all()
            .build()
            .map_err(StoreError::Thread)?;
        Ok(Self(Some(runtime)))
    }

    /// Waits for a future. Blocks; on a thread of an async runtime, other threads take over its
    /// tasks.
    pub(crate) fn wait<T>(
        &self,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let Some(runtime) = &self.0 else { return Err(StoreError::Closed) };
        match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => {
                tokio::task::block_in_place(|| runtime.block_on(future))
            }
            _ => runtime.block_on(future),
        }
    }

    /// Like [`Engine::wait`], but cancels the query at the deadline, and waits at most `timeout`.
    pub(crate) fn wait_until<T>(
        &self,
        deadline: &Deadline,
        timeout: Duration,
        connection: &ServerSession,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if deadline.is_none() {
            return self.wait(connection.within(timeout, future));
        }
        self.wait(async {
            let began = Instant::now();
            let mut future = pin!(future);
            loop {
                let look = pin!(tokio::time::sleep(LOOK_INTERVAL));
                match select(future, look).await {
                    Either::Left((done, _)) => return done,
                    Either::Right(((), unfinished)) => future = unfinished,
                }
                if deadline.is_over() {
                    connection.cancel();
                    return Err(StoreError::Interrupted);
                }
                if began.elapsed() >= timeout {
                    connection.cancel();
                    return Err(no_answer(timeout));
                }
            }
        })
    }

    /// Starts a task.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.0 {
            runtime.spawn(task);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A parameter of a statement.
pub(crate) type Parameter<'value> = &'value (dyn ToSql + Sync);

/// One connection and its prepared statements.
pub(crate) struct ServerSession {
    client: Client,
    tls: TlsConnector,
    statements: Mutex<HashMap<&'static str, Statement>>,
}

impl ServerSession {
    pub(crate) async fn open(address: &Address) -> Result<Self, StoreError> {
        let (client, connection) = address.connect().await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the database server lost");
            }
        });
        Ok(Self { client, tls: address.tls().clone(), statements: Mutex::default() })
    }

    /// Waits for the server, up to the timeout. After it the query is cancelled on the server, and
    /// the connection must not be used again.
    pub(crate) async fn within<T>(
        &self,
        timeout: Duration,
        future: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::time::timeout(timeout, future).await.unwrap_or_else(|_| {
            self.cancel();
            Err(no_answer(timeout))
        })
    }

    /// Cancels the running query on the server. Does not wait.
    fn cancel(&self) {
        let (token, tls) = (self.client.cancel_token(), self.tls.clone());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CANCEL_TIMEOUT, token.cancel_query(tls)).await;
        });
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the connection is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The statement, prepared once for each connection.
    pub(crate) async fn prepared(
        &self,
        sql: &'static str,
    ) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements().insert(sql, statement.clone());
        Ok(statement)
    }

    pub(crate) async fn query(
        &self,
        sql: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let statement = self.prepared(sql).await?;
        self.client.query(&statement, parameters).await
    }

    pub(crate) async fn execute(
        &self,
        sql: &'static str,
        parameters: &[Parameter<'_>],
    ) -> Result<u64, tokio_postgres::Error> {
        let statement = self.prepared(sql).await?;
        self.client.execute(&statement, parameters).await
    }

    fn statements(&self) -> MutexGuard<'_, HashMap<&'static str, Statement>> {
        self.statements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections for reading, opened on demand and kept.
pub(crate) struct SessionPool {
    address: Address,
    // Maximum number of open connections.
    most: usize,
    state: Mutex<SessionPoolState>,
    returned: Condvar,
}

#[derive(Default)]
struct SessionPoolState {
    idle: Vec<ServerSession>,
    // Idle and in use.
    open: usize,
    is_closed: bool,
}

impl SessionPool {
    /// Timeout for requests that the server answers at once.
    pub(crate) fn patience(&self) -> Duration {
        self.address.patience()
    }

    pub(crate) fn new(address: Address, most: usize) -> Self {
        Self { address, most: most.max(1), state: Mutex::default(), returned: Condvar::new() }
    }

    /// Takes a connection; waits while all are in use.
    pub(crate) fn take(
        &self,
        engine: &Engine,
        deadline: &Deadline,
    ) -> Result<PooledSession<'_>, StoreError> {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return Err(StoreError::Closed);
            }
            while let Some(connection) = state.idle.pop() {
                if !connection.is_closed() {
                    return Ok(PooledSession { connection: Some(connection), pool: self });
                }
                state.open -= 1;
            }
            if state.open < self.most {
                state.open += 1;
                drop(state);
                let opened = engine.wait(ServerSession::open(&self.address));
                match opened {
                    Ok(connection) => {
                        return Ok(PooledSession { connection: Some(connection), pool: self });
                    }
                    Err(error) => {
                        self.lock().open -= 1;
                        self.returned.notify_all();
                        return Err(error);
                    }
                }
            }
            state = deadline.wait(&self.state, &self.returned, state)?;
        }
    }

    /// Ends all reading, and waits a while for running reads.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.open -= state.idle.len();
        state.idle.clear();
        self.returned.notify_all();
        let in_use = |state: &mut SessionPoolState| state.open > 0;
        drop(self.returned.wait_timeout_while(state, CLOSE_TIMEOUT, in_use));
    }

    fn lock(&self) -> MutexGuard<'_, SessionPoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection of the pool in use. If it is dropped without [`PooledSession::give_back`], it is
/// closed, because its state is unknown.
pub(crate) struct PooledSession<'pool> {
    connection: Option<ServerSession>,
    pool: &'pool SessionPool,
}

impl PooledSession<'_> {
    pub(crate) fn connection(&self) -> Result<&ServerSession, StoreError> {
        self.connection.as_ref().ok_or(StoreError::Closed)
    }

    /// Timeout for requests that the server answers at once.
    pub(crate) fn patience(&self) -> Duration {
        self.pool.patience()
    }

    /// Returns the connection to the pool.
    pub(crate) fn give_back(mut self) {
        let Some(connection) = self.connection.take() else { return };
        let mut state = self.pool.lock();
        if state.is_closed || connection.is_closed() {
            state.open -= 1;
        } else {
            state.idle.push(connection);
        }
        drop(state);
        // Wakes all waiters: a single one might be a query whose deadline has passed.
        self.pool.returned.notify_all();
    }
}

impl Drop for PooledSession<'_> {
    fn drop(&mut self) {
        if self.connection.take().is_some() {
            self.pool.lock().open -= 1;
            self.pool.returned.notify_all();
        }
    }
}

/// Runs `work` on a connection of the pool; retries once on another one if the connection was lost.
pub(crate) fn with_connection<T>(
    pool: &SessionPool,
    engine: &Engine,
    work: impl AsyncFn(&ServerSession) -> Result<T, tokio_postgres::Error>,
) -> Result<T, StoreError> {
    let mut is_second = false;
    loop {
        let checkout = pool.take(engine, &Deadline::default())?;
        let connection = checkout.connection()?;
        let done = engine.wait(
            connection.within(pool.address.patience() * 2, async { Ok(work(connection).await) }),
        )?;
        match done {
            Ok(done) => {
                checkout.give_back();
                return Ok(done);
            }
            Err(error) if is_passing(&error) && !is_second => is_second = true,
            Err(error) => return Err(fault(error)),
        }
    }
}
