//! Records how far a peer was read, for the next sync.

use super::super::ledger::Side;
use super::super::work::read_mark;
use super::super::{Machine, Work};

impl Machine {
    /// Records how far the peer was read, once all its events so far are settled.
    pub(in super::super) fn save_mark(&mut self) {
        if self.working > 0 || !self.on.upload.is_idle() || self.on.batch.is_some() {
            return;
        }
        let Some(plan) = self.reading.plan.as_ref().filter(|_| self.keeps_marks()) else { return };
        let Some(down_to) = plan.read_down_to() else { return };
        // Events still to be sent, and those refused temporarily, are found again by the next sync.
        if self.ledger.unsettled(Side::Ours) > 0 || self.ledger.has_unexplained() {
            return;
        }
        let before = self.mark.read.unwrap_or_default();
        let newest = plan.newest().unwrap_or(0).min(self.now.unix_s);
        let is_done = plan.is_done();
        if !self.reading.is_whole {
            // The mark moves once all new events have been read.
            if is_done && newest > before.to {
                self.write_mark(0, newest, before.whole_at);
            }
            return;
        }
        let is_at_its_end = down_to == 0 && !is_done;
        if newest == 0 || is_at_its_end || self.reading.saved_down_to == Some(down_to) {
            return;
        }
        self.reading.saved_down_to = Some(down_to);
        let from = if is_done { 0 } else { down_to };
        let whole_at = if is_done { self.now.unix_s } else { before.whole_at };
        self.write_mark(from, newest.max(before.to), whole_at);
    }

    /// Withdraws the marks that this reading has recorded.
    pub(in super::super) fn take_mark_back(&mut self) {
        if let (Some(_), Some(read)) = (self.reading.saved_down_to.take(), self.mark.read) {
            // An empty interval: the next sync reads everything.
            self.write_mark(read.to.saturating_add(1), read.to, read.whole_at);
        }
    }

    fn write_mark(&mut self, from: u64, to: u64, whole_at: u64) {
        let mark = read_mark(from, to, whole_at);
        self.mark.read = mark.read;
        self.begin_work(Work::RememberMark(mark));
    }
}
