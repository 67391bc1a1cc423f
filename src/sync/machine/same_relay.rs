//! Whether a verdict holds for one relay: connections to an address may lead to different relays (a
//! load balancer), each with its own set. A round proves its result only for the relay behind its
//! connection.

use super::Machine;
use super::verdict::Round;
use crate::sync::report::Verdict;

/// Maximum number of events that are read again because the connection was lost during the reading.
const MOST_READ_AGAIN: usize = 10_000;
/// The hint if several relays are behind one address.
const ONE_BY_ONE: &str = "sync with each relay behind the address by a URL of its own";

/// The connections that rounds used.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The first connection of the last complete round.
    began_on: Option<u32>,
    /// The first connection of a round after which another connection showed something new.
    changed_since: Option<u32>,
    /// Whether the peer was read again over a single connection.
    read_again: bool,
}

impl Machine {
    /// Records a difference that is new, or that earlier connections may not have had.
    pub(super) fn note_new(&mut self, is_new: bool) {
        if let Some(round) = &mut self.round {
            round.has_new |= is_new;
        }
    }

    /// Records a complete round. A reading uses all connections since its first page. If it finds
    /// something new on another connection than the previous round, the result depends on that
    /// connection too.
    pub(super) fn note_look(&mut self, round: &Round) {
        let now = self.connections;
        let began_on = self.reading.began_on.filter(|_| round.is_read).unwrap_or(now);
        let looked = &mut self.looked;
        if let Some(before) = looked.began_on.replace(began_on)
            && before < now
            && round.has_new
        {
            looked.changed_since.get_or_insert(before);
        }
        let first = looked.changed_since.map_or(began_on, |since| since.min(began_on));
        self.report.connections = now - first + 1;
    }

    /// Whether the peer lacked, on one connection, an event that it sent on another, and took it as
    /// new.
    pub(super) fn is_contradicted(&mut self) -> bool {
        let count = self.ledger.contradicted();
        if count > 0 {
            self.report.error = Some(format!(
                "different relays behind one address, or one that has lost events: of those that \
                 the peer sent on one connection {count} were new to it on another"
            ));
            self.report.hint = Some(ONE_BY_ONE);
            self.report.judge(Verdict::Incomplete, None);
            self.take_mark_back();
        }
        count > 0
    }

    /// Whether to repeat a reading that used several connections: not a large one, and not if the
    /// peer answers only a limited number of questions on a connection.
    pub(super) fn reads_again(&mut self) -> bool {
        let is_worth_it = self.reading.began_on.is_some_and(|first| first < self.connections)
            && self.reading.events <= MOST_READ_AGAIN
            && !self.reading.fell_silent;
        is_worth_it && !std::mem::replace(&mut self.looked.read_again, true)
    }
}
