//! A relay's database that is being followed: one poll of the feed at a time, and recovery after an
//! error.

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

/// Delay before another attempt to begin a read that must see all known changes.
pub(crate) const BEGINNING_INTERVAL: Duration = Duration::from_millis(2);

/// Another relay's database on a server.
pub(crate) struct PostgresDatabase {
    pub(crate) table: &'static RelayTable,
    /// The name in logs and errors: without a password.
    pub(crate) name: String,
    pub(crate) private: PrivateKinds,
    pub(crate) clock: Clock,
    pub(crate) pool: RelaySessions,
    connector: Arc<ServerConnector>,
    listener: Box<dyn Listener>,
    state: Mutex<FollowState>,
    // Signalled when the follower is returned.
    returned: Condvar,
    /// The number of polls of the feed that have begun.
    looks: AtomicU64,
}

enum FollowState {
    Following(Box<RelayFollower>),
    /// A thread holds the follower and will return it.
    Taken,
    /// Everything has to be read again, for this reason.
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

    /// Reads everything again. No poll can run meanwhile.
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

    /// Publishes what was committed before the call. After an error, reads fail until everything
    /// has been read again.
    pub(crate) fn catch_up(&self, is_sure: bool, deadline: &Deadline) -> Outcome<()> {
        let looks = self.looks.load(Ordering::Acquire);
        let mut follower = self.take(deadline)?;
        // A poll that began after the call has seen everything committed before it.
        if is_sure && self.looks.load(Ordering::Acquire) > looks {
            return Ok(());
        }
        follower.look(is_sure, self.clock.now())
    }

    /// Begins, on this connection, a snapshot that contains everything the listener has.
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

    /// Begins a read on this connection at exactly the state that the listener has, and calls
    /// `beside` before the listener gets another change. Returns the second of that state, or
    /// `None` if something was committed in the meantime.
    pub(crate) fn begin_at_known(
        &self,
        session: &RelaySession,
        deadline: &Deadline,
        beside: &mut dyn FnMut(),
    ) -> Outcome<Option<u64>> {
        let mut taken = self.take(deadline)?;
        // Events that expire later are still in the set.
        let now = self.clock.now();
        taken.look(true, now)?;
        let snapshot = begin_snapshot(session)?;
        let follower = taken.get()?;
        let is_exact = follower.feed.is_seen_by(&snapshot)? && follower.is_still()?;
        if is_exact {
            // Everything that this read sees is published.
            beside();
        }
        Ok(is_exact.then_some(now))
    }

    /// Waits for the follower; no other poll runs until it is returned.
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
                    let refusal =
                        format!("all its events are being read again; try later ({reason})");
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

/// The follower, with the state to set when this is dropped.
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

    /// Publishes what was committed, and what has expired at the second `now`. After an error the
    /// feed is lost.
    fn look(&mut self, is_sure: bool, now: u64) -> Outcome<()> {
        let database = self.database;
        // Callers cannot rely on a poll that is not sure.
        if is_sure {
            database.looks.fetch_add(1, Ordering::AcqRel);
        }
        let listener = database.listener.as_ref();
        // If this panics, a part of the commits is unknown.
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
                    "feed lost: reading all events again"
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
        tracing::info!(database = self.name, "feed restored: all events were read again");
        Ok(())
    }
}
