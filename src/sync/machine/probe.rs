//! Finds the kinds that the peer shows only to their owners: they cannot be compared. Peers that
//! authenticate their clients (NIP-42) are asked by one REQ for one event of such a kind.

use super::ledger::{IdState, Side};
use super::patience::missed;
use super::{Id, Machine, PageEvent};
use crate::hex;
use crate::prefix::Prefix;
use crate::sync::filter::Window;
use crate::sync::message;
use crate::sync::reason::Reason;
use std::time::Duration;

/// Kinds that relays show only to author and addressee: direct messages (NIP-04, NIP-17), seals and
/// gift wraps (NIP-59).
pub(super) const PRIVATE_KINDS: [u16; 5] = [4, 13, 14, 15, 1_059];

/// The question and its result.
#[derive(Debug, Default)]
pub(super) struct Probe {
    subscription: Option<String>,
    deadline: Option<Duration>,
    was_asked: bool,
}

impl Probe {
    pub(super) fn is_idle(&self) -> bool {
        self.subscription.is_none()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    pub(super) fn extend(&mut self, until: Duration) {
        self.deadline = self.deadline.map(|at| at.max(until));
    }

    pub(super) fn shorten(&mut self, until: Duration) {
        self.deadline = self.deadline.map(|at| at.min(until));
    }

    pub(super) fn is_about(&self, subscription: &str) -> bool {
        self.subscription.as_deref() == Some(subscription)
    }
}

impl Machine {
    /// The private kinds that the filter matches.
    pub(super) fn private_kinds(&self) -> Vec<u16> {
        let filter = self.settings.filter.parsed();
        PRIVATE_KINDS.into_iter().filter(|kind| filter.takes_kind(*kind)).collect()
    }

    pub(super) fn advance_probe(&mut self) {
        let knows_clients = self.information.auth || self.on.auth.was_challenged;
        let kinds = self.private_kinds();
        if self.on.probe.was_asked || !knows_clients || kinds.is_empty() || self.round.is_none() {
            return;
        }
        self.on.probe.was_asked = true;
        let subscription = self.subscription();
        let window = Window { since: Some(1), until: None };
        let filter = self.settings.filter.with_kinds(&kinds).within(window).newest(1);
        self.send(message::req(&subscription, &filter));
        self.on.probe.subscription = Some(subscription);
        self.on.probe.deadline = Some(self.patience());
    }

    /// Handles an event: if it is visible to everyone, its kinds are compared.
    pub(super) fn probe_event(&mut self, event: &PageEvent, json: &str) {
        let own = self.settings.key.map(|key| hex::encode(&key));
        let is_own = own.is_some_and(|key| json.contains(&key));
        if !is_own && PRIVATE_KINDS.contains(&event.kind) {
            self.report.not_compared.clear();
            self.end_probe();
        }
    }

    /// EOSE without an event of others: the peer has none, or hides them.
    pub(super) fn probe_ended(&mut self) {
        if !self.on.auth.is_known() {
            self.report.not_compared = self.private_kinds();
        }
        self.end_probe();
    }

    /// CLOSED.
    pub(super) fn probe_refused(&mut self, text: &str) {
        if matches!(message::prefix(text), Some(Prefix::AuthRequired | Prefix::Restricted)) {
            self.report.not_compared = self.private_kinds();
        }
        self.on.probe.subscription = None;
        self.on.probe.deadline = None;
    }

    fn end_probe(&mut self) {
        if let Some(subscription) = self.on.probe.subscription.take() {
            self.send(message::close(&subscription));
        }
        self.on.probe.deadline = None;
    }

    pub(super) fn take_probe_time(&mut self) {
        let now = self.now;
        if missed(now, &mut self.on.probe.deadline) {
            self.report.not_compared = self.private_kinds();
            self.end_probe();
        }
    }

    /// Handles an event that the peer accepted but does not show: it is hidden, if it is of such a
    /// kind.
    pub(super) fn not_shown(&mut self, id: Id) {
        let kind = self.ledger.get(&id).map_or(0, |entry| entry.kind);
        if PRIVATE_KINDS.contains(&kind) {
            if !self.report.not_compared.contains(&kind) {
                self.report.not_compared.push(kind);
                self.report.not_compared.sort_unstable();
            }
            self.stay(id, Reason::Hidden);
        } else {
            self.stay(id, Reason::NotKept);
        }
    }

    /// For a sync that moves nothing: excludes our events of kinds that the peer hides.
    pub(super) fn take_kinds(&mut self, kinds: &[(Id, u16)]) {
        for (id, kind) in kinds {
            if self.report.not_compared.contains(kind) {
                self.ledger.set(id, IdState::Excused(Reason::Hidden));
            }
        }
    }

    /// Our events that only we have and that may be of hidden kinds, while nothing says which kinds
    /// are hidden.
    pub(super) fn perhaps_hidden(&self) -> Vec<Id> {
        if self.report.not_compared.is_empty() || !self.settings.dry_run {
            return Vec::new();
        }
        let is_open = |side, state| side == Side::Ours && state == IdState::Open;
        let open = self.ledger.iter().filter(|(_, entry)| is_open(entry.side, entry.state));
        open.map(|(id, _)| *id).collect()
    }
}
