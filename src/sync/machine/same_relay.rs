//! Whether a verdict holds of one relay: connections to an address may lead to different ones (a load
//! balancer), each with a set of its own. What a look proves it proves of the relay behind its connection.

use super::Machine;
use super::verdict::Round;
use crate::sync::report::Verdict;

/// The most events that are read once more because the connection was lost while they were read.
const MOST_READ_AGAIN: usize = 10_000;
/// The hint where relays behind one address are told apart.
const ONE_BY_ONE: &str = "sync with each relay behind the address by a URL of its own";

/// The connections that looks at everything went over.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The first connection of the last complete look.
    began_on: Option<u32>,
    /// The first connection of a look after which another connection showed something new.
    changed_since: Option<u32>,
    /// The peer was read once more, so that one connection shows all.
    read_again: bool,
}

impl Machine {
    /// Something was found, which may be new or not have been there on the connections before.
    pub(super) fn note_new(&mut self, is_new: bool) {
        if let Some(round) = &mut self.round {
            round.has_new |= is_new;
        }
    }

    /// A look at everything is complete. A reading goes over all connections since its first page. One
    /// that finds something new on another connection than the look before rests on that, too.
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

    /// Whether the peer lacked on one connection what it had sent on another, and took it as new.
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

    /// Whether a reading that went over several connections is made once more: not where it is large,
    /// nor where the peer answers only so many questions of a connection.
    pub(super) fn reads_again(&mut self) -> bool {
        let is_worth_it = self.reading.began_on.is_some_and(|first| first < self.connections)
            && self.reading.events <= MOST_READ_AGAIN
            && !self.reading.fell_silent;
        is_worth_it && !std::mem::replace(&mut self.looked.read_again, true)
    }
}
