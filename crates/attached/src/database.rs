//! A relay's database that is followed: who looks at the feed, one at a time, and what holds while it is
//! lost.

use super::follower::RelayFollower;
use super::relay_table::RelayTable;
use super::scan::begin_snapshot;
use super::session::{DatabaseError, Outcome, RelaySession, RelaySessions, ServerConnector};
use negsync_store::{
    AttachedOptions, Clock, Deadline, FollowedDatabase, Listener, PrivateKinds, StoreError,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long to wait before a reading is begun again that has to see all that is known.
pub(crate) const BEGINNING_INTERVAL: Duration = Duration::from_millis(2);

/// Another relay's database on a server.
pub(crate) struct PostgresDatabase {
    pub(crate) table: &'static RelayTable,
    /// As it is shown: without a password.
    pub(crate) name: String,
    pub(crate) private: PrivateKinds,
    pub(crate) clock: Clock,
    pub(crate) pool: RelaySessions,
    connector: Arc<ServerConnector>,
    listener: Box<dyn Listener>,
    state: Mutex<FollowState>,
    // The follower has been given back.
    returned: Condvar,
    /// How many looks at the feed have begun.
    looks: AtomicU64,
}

enum FollowState {
    Following(Box<RelayFollower>),
    /// Somebody has taken the follower, and gives it back.
    Taken,
    /// Everything has to be read anew, for this reason.
    Lost(String),
}

impl PostgresDatabase {
    /// A database that has not been read yet.
    pub(crate) fn new(
        table: &'static RelayTable,
        name: String,
        connector: ServerConnector,
        options: AttachedOptions,
        listener: Box<dyn Listener>,
    ) -> Self {
        let connector = Arc::new(connector);
        Self {
            table,
            name,
            private: options.private_kinds,
            clock: options.clock,
            pool: RelaySessions::new(Arc::clone(&connector), options.readers),
            connector,
            listener,
            state: Mutex::new(FollowState::Lost("it is being read".into())),
            returned: Condvar::new(),
            looks: AtomicU64::new(0),
        }
    }

    /// Reads everything anew. Nobody can look meanwhile.
    pub(crate) fn begin(&self) -> Outcome<()> {
        let begun =
            RelayFollower::begin(&self.connector, self.table, &self.private, self.clock.now());
        let mut state = self.lock();
        match begun {
            Ok((follower, items)) => {
                self.listener.begun(items);
                *state = FollowState::Following(Box::new(follower));
                Ok(())
            }
            Err(error) => {
                *state = FollowState::Lost(error.to_string());
                Err(error)
            }
        }
    }

    /// Makes known what was committed before the call. After an error nothing is answered until
    /// everything has been read anew.
    pub(crate) fn catch_up(&self, is_sure: bool, deadline: &Deadline) -> Outcome<()> {
        let looks = self.looks.load(Ordering::Acquire);
        let mut follower = self.take(deadline)?;
        // A look that began after the call has seen all of it.
        if is_sure && self.looks.load(Ordering::Acquire) > looks {
            return Ok(());
        }
        follower.look(is_sure, self.clock.now())
    }

    /// Begins to read, on this connection, a moment that sees all that the listener knows.
    pub(crate) fn begin_seeing_known(
        &self,
        session: &RelaySession,
        deadline: &Deadline,
    ) -> Outcome<()> {
        loop {
            let snapshot = begin_snapshot(session)?;
            if self.take(deadline)?.get()?.feed.is_seen_by(&snapshot)? {
                return Ok(());
            }
            session.execute("ROLLBACK")?;
            deadline.check()?;
            std::thread::sleep(BEGINNING_INTERVAL);
        }
    }

    /// Begins to read, on this connection, what the listener knows now and nothing more; calls
    /// `beside` before anything else becomes known. Returns the second of which that is, or `None` when
    /// something was committed meanwhile.
    pub(crate) fn begin_at_known(
        &self,
        session: &RelaySession,
        deadline: &Deadline,
        beside: &mut dyn FnMut(),
    ) -> Outcome<Option<u64>> {
        let mut taken = self.take(deadline)?;
        // Nothing that expires later has been removed yet.
        let now = self.clock.now();
        taken.look(true, now)?;
        let snapshot = begin_snapshot(session)?;
        let follower = taken.get()?;
        let is_exact = follower.feed.is_seen_by(&snapshot)? && follower.is_still()?;
        if is_exact {
            // All that can be read here is known.
            beside();
        }
        Ok(is_exact.then_some(now))
    }

    /// Waits for the follower; nobody else looks until it is given back.
    fn take(&self, deadline: &Deadline) -> Outcome<TakenFollower<'_>> {
        let mut state = self.lock();
        loop {
            match std::mem::replace(&mut *state, FollowState::Taken) {
                FollowState::Taken => {
                    state = deadline
                        .wait(&self.state, &self.returned, state)
                        .map_err(|_| DatabaseError::Interrupted)?;
                }
                FollowState::Lost(reason) => {
                    let refusal = format!("it is being read anew; try again ({reason})");
                    *state = FollowState::Lost(reason);
                    return Err(DatabaseError::Refused(refusal));
                }
                next @ FollowState::Following(_) => {
                    return Ok(TakenFollower { database: self, next });
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, FollowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The follower, and what becomes of it where this is dropped.
struct TakenFollower<'database> {
    database: &'database PostgresDatabase,
    next: FollowState,
}

impl TakenFollower<'_> {
    fn get(&mut self) -> Outcome<&mut RelayFollower> {
        match &mut self.next {
            FollowState::Following(follower) => Ok(follower),
            FollowState::Taken | FollowState::Lost(_) => Err(DatabaseError::Closed),
        }
    }

    /// Makes known what was committed, and what has expired at the second `now`; after an error the feed is
    /// lost.
    fn look(&mut self, is_sure: bool, now: u64) -> Outcome<()> {
        let database = self.database;
        // A look that is not sure is none to rely on.
        if is_sure {
            database.looks.fetch_add(1, Ordering::AcqRel);
        }
        let listener = database.listener.as_ref();
        // Where this panics, part of what was committed is not known.
        let unless_done = FollowState::Lost("a look at it panicked".into());
        let mut before = std::mem::replace(&mut self.next, unless_done);
        let FollowState::Following(follower) = &mut before else {
            return Err(DatabaseError::Closed);
        };
        let outcome = follower.catch_up(listener, now, is_sure);
        self.next = match &outcome {
            Ok(()) => before,
            Err(error) => {
                let name = &database.name;
                tracing::warn!(
                    database = name,
                    %error,
                    "the feed was lost; reading everything anew"
                );
                FollowState::Lost(error.to_string())
            }
        };
        outcome
    }
}

impl Drop for TakenFollower<'_> {
    fn drop(&mut self) {
        *self.database.lock() = std::mem::replace(&mut self.next, FollowState::Taken);
        self.database.returned.notify_all();
    }
}

impl FollowedDatabase for PostgresDatabase {
    const LOOK_INTERVAL: Duration = Duration::from_millis(250);
    const RETRY_INTERVAL: Duration = Duration::from_secs(1);

    fn name(&self) -> String {
        self.name.clone()
    }

    fn look(&self) -> Result<(), StoreError> {
        if self.catch_up(false, &Deadline::default()).is_ok() {
            return Ok(());
        }
        self.begin().map_err(|error| error.of(&self.name))?;
        tracing::info!(database = self.name, "everything has been read anew");
        Ok(())
    }
}
