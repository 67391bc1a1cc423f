//! The writer's steps for rules of retention, between two batches: each node handles the authors
//! whose events it has stored; events that are too old are removed by the node that checks first.

use super::{Answer, NodeWriterThread};
use crate::transaction::retention::{self, AuthorKind};
use negsync_nostr::Event;
use negsync_store::{Retention, StoreError};
use std::collections::BTreeSet;

/// Authors and kinds that a step checks.
const STEP_LOOKS: usize = 256;
/// Interval of checks of the rules and the age of events while nothing is due, in seconds.
const LOOK_AGAIN_S: u64 = 10;

/// The writer's state of retention.
#[derive(Default)]
pub(super) struct RetentionWork {
    /// The rules as of the last check.
    rules: Retention,
    /// Authors and kinds that may have more events than are kept.
    suspects: BTreeSet<AuthorKind>,
    /// Those of them that do have more.
    crowded: Vec<AuthorKind>,
    /// The author and kind up to which all have been checked since the rules were put in force or
    /// commits were lost; `None` once all have.
    walked_to: Option<(Vec<u8>, i32)>,
    /// The second of the next check of rules and age.
    look_at: u64,
    /// Callers that wait until nothing is left to remove.
    waiting: Vec<Answer>,
}

impl RetentionWork {
    /// Records stored events.
    pub(super) fn stored<'event>(&mut self, events: impl Iterator<Item = &'event Event>) {
        let counted = events.filter(|event| self.rules.per_author(event.kind()).is_some());
        self.suspects.extend(counted.map(|event| (*event.pubkey(), event.kind())));
        if self.suspects.len() > Retention::MOST_SUSPECTS {
            // Strangers can bring new keys faster than they are checked: all authors are checked instead.
            self.suspects.clear();
            self.begin_anew();
        }
    }

    /// Starts all checks from the beginning.
    pub(super) fn begin_anew(&mut self) {
        self.walked_to = self.rules.counts().then(|| (Vec::new(), -1));
        self.look_at = 0;
    }

    /// Makes the next step check rules and age; `answer` is used once nothing is left to remove.
    pub(super) fn look_now(&mut self, answer: Answer) {
        self.look_at = 0;
        self.waiting.push(answer);
    }

    fn put_in_force(&mut self, rules: Retention) {
        if rules != self.rules {
            *self = Self { rules, waiting: std::mem::take(&mut self.waiting), ..Self::default() };
            self.begin_anew();
        }
    }

    fn is_due(&self, now: u64) -> bool {
        let counts = !self.suspects.is_empty() || !self.crowded.is_empty();
        self.look_at <= now || counts || self.walked_to.is_some()
    }

    fn settle(&mut self, done: Result<(), &StoreError>) {
        for waiting in self.waiting.drain(..) {
            // Fails only if the caller no longer waits.
            let _ = waiting.send(done.map_err(|error| StoreError::NotWritten(error.to_string())));
        }
    }
}

impl NodeWriterThread {
    /// Removes a part of the events that are not kept. Returns whether there is more to check now.
    pub(super) fn retire_step(&mut self) -> bool {
        let now = self.context.clock.now();
        if !self.retaining.is_due(now) {
            self.retaining.settle(Ok(()));
            return false;
        }
        if !self.may_step() && self.retaining.waiting.is_empty() {
            return false;
        }
        match self.retire_some(now) {
            Ok(()) => self.retaining.is_due(now) || !self.retaining.waiting.is_empty(),
            Err(error) => {
                self.retaining.settle(Err(&error));
                self.retaining.look_at = now + LOOK_AGAIN_S;
                false
            }
        }
    }

    fn retire_some(&mut self, now: u64) -> Result<(), StoreError> {
        let node = self.context.node;
        if let Some(of) = self.retaining.crowded.last().copied() {
            let rules = self.retaining.rules.clone();
            let done = self.step(async |connection| {
                retention::remove_surplus(connection, node, of, &rules).await
            })?;
            if !done.there_is_more {
                self.retaining.crowded.pop();
            }
            return Ok(());
        }
        if self.retaining.look_at <= now {
            return self.retire_old(now);
        }
        self.walk()?;
        self.find_crowded()
    }

    /// Reads the rules, which another node may have changed, and removes some of the events that
    /// are too old.
    fn retire_old(&mut self, now: u64) -> Result<(), StoreError> {
        let rules = self.transact(async |connection| retention::rules(connection).await)?;
        self.retaining.put_in_force(rules);
        let (node, rules) = (self.context.node, self.retaining.rules.clone());
        let has_more = rules.ages() && {
            let done = self.step(async |connection| {
                retention::remove_old(connection, node, &rules, now).await
            })?;
            done.there_is_more
        };
        self.retaining.look_at = if has_more { 0 } else { now + LOOK_AGAIN_S };
        Ok(())
    }

    /// Checks the next authors, which may have had too many events before the rules were in force.
    fn walk(&mut self) -> Result<(), StoreError> {
        if self.retaining.suspects.len() + STEP_LOOKS > Retention::MOST_SUSPECTS {
            return Ok(());
        }
        let Some((author, kind)) = self.retaining.walked_to.clone() else { return Ok(()) };
        let most = STEP_LOOKS as i64;
        let found = self.transact(async |connection| {
            retention::next_authors(connection, (&author, kind), most).await
        })?;
        let last = found.last().filter(|_| found.len() == STEP_LOOKS);
        self.retaining.walked_to = last.map(|(author, kind)| (author.to_vec(), i32::from(*kind)));
        let rules = &self.retaining.rules;
        let counted = found.iter().filter(|(_, kind)| rules.per_author(*kind).is_some());
        self.retaining.suspects.extend(counted);
        Ok(())
    }

    /// Finds those of the suspects that have more events than are kept.
    fn find_crowded(&mut self) -> Result<(), StoreError> {
        let some: Vec<AuthorKind> =
            self.retaining.suspects.iter().take(STEP_LOOKS).copied().collect();
        if some.is_empty() {
            return Ok(());
        }
        let rules = self.retaining.rules.clone();
        let crowded =
            self.transact(async |connection| retention::crowded(connection, &some, &rules).await)?;
        self.retaining.crowded = crowded;
        self.retaining.suspects.retain(|suspect| !some.contains(suspect));
        Ok(())
    }
}
