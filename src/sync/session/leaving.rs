//! The end of a connection: what came with it is kept, and what may have broken it is remembered.

use super::super::ATTEMPTS;
use super::super::arrival::Refusal;
use super::super::download::ALONE_AFTER;
use super::super::peer::PeerError;
use super::{End, SILENCE, Session, Work, stopped};
use crate::metrics::Tally;

/// An event is given up that was asked for alone at the loss of so many connections on which nothing
/// came. Less than [`ATTEMPTS`]: a sync that leaves a peer has given up one event at least, so that
/// the next one gets further.
const MOST_LONE_LOSSES: u8 = 4;
const _: () = assert!((MOST_LONE_LOSSES as u32) < ATTEMPTS);
/// As suspect as by one of these is an event by so many losses at which it was asked for alone and
/// others had come: a link may break at any event, but not again and again at one. Where there is
/// always something new, connections on which nothing comes are none.
const LOSSES_BESIDE_OTHERS: u8 = 4;

impl Session<'_> {
    /// Ends the connection and keeps what the next one can use.
    pub(super) async fn leave(mut self, mut ended: Result<(), End>) -> End {
        if let Err(End::Lost(error)) = ended {
            ended = Err(self.lose(error).await);
        }
        self.tell();
        let Tally { bytes_up, bytes_down, .. } = self.tally();
        (self.memory.report.bytes_up, self.memory.report.bytes_down) = (bytes_up, bytes_down);
        let refused = std::mem::take(&mut self.refused);
        if !refused.is_empty() && !self.options.dry_run {
            let store = self.local.store.clone();
            let _ = tokio::task::spawn_blocking(move || store.remember_refused(refused)).await;
        }
        let remembering = self.remembering.take();
        match ended {
            Ok(()) => {
                self.peer.close().await;
                // Whoever is told that the sync has ended may close the store.
                if let Some(remembering) = remembering {
                    let _ = remembering.await;
                }
                End::Finished
            }
            Err(end) => end,
        }
    }

    /// The connection is gone: what came with it still counts.
    async fn lose(&mut self, error: PeerError) -> End {
        if let Err(end) = self.settle_rest().await {
            return end;
        }
        if self.pass.is_some() {
            // It begins anew on the next connection.
            self.memory.pass -= 1;
        } else {
            // All was caught up with: the next connection looks, and proves, from the start.
            self.memory.pass = 0;
        }
        self.keep_suspects(&error);
        let events = self.download.asked_for();
        if self.memory.advanced || events == 0 {
            return End::Lost(error);
        }
        End::Lost(PeerError::NothingCame { error: Box::new(error), events })
    }

    /// Waits for the events that have come and are being checked or stored.
    async fn settle_rest(&mut self) -> Result<(), End> {
        self.flush_batch();
        let mut stop = self.options.stop.clone();
        let given_up = tokio::time::sleep(SILENCE);
        tokio::pin!(given_up);
        while self.working > 0 {
            tokio::select! {
                Some(work) = self.work.recv() => {
                    self.working = self.working.saturating_sub(1);
                    match work {
                        Work::Settled { subscription, events, bytes } => {
                            let settled = self.settled(&subscription, &events, bytes);
                            // That the peer is left has been decided.
                            if let Err(end @ End::Failed(_)) = settled {
                                return Err(end);
                            }
                        }
                        Work::Failed(reason) => return Err(End::Failed(reason)),
                        _ => {}
                    }
                }
                () = &mut given_up => break,
                () = stopped(&mut stop) => break,
            }
        }
        Ok(())
    }

    /// Keeps what was asked for when the connection broke: it may be what broke it.
    fn keep_suspects(&mut self, error: &PeerError) {
        let at_fault = self.download.at_fault();
        let alone = at_fault.len() == 1;
        for id in at_fault {
            let losses = self.memory.suspects.entry(id).or_default();
            *losses = more_suspect(*losses, alone, self.memory.advanced);
            let proven = alone && matches!(error, PeerError::TooLong);
            if proven || *losses >= ALONE_AFTER + MOST_LONE_LOSSES * LOSSES_BESIDE_OTHERS {
                let refusal = Refusal::Unreadable;
                let name = refusal.name();
                *self.memory.report.refused.entry(name.to_owned()).or_default() += 1;
                self.give_up(id, name, refusal.term_s(), true);
            }
        }
    }
}

/// How suspect an event is that was to come when a connection broke. Where others came it may have
/// been any of those that were next: fewer are asked for together from now on. Where nothing came
/// each is asked for alone, and one that was alone has one chance less; a part of one where others
/// came.
fn more_suspect(losses: u8, alone: bool, others_came: bool) -> u8 {
    match (others_came, alone) {
        (true, _) if losses < ALONE_AFTER => losses + 1,
        (true, false) => losses,
        (true, true) => losses.saturating_add(1),
        (false, false) => losses.max(ALONE_AFTER),
        (false, true) => losses.max(ALONE_AFTER).saturating_add(LOSSES_BESIDE_OTHERS),
    }
}
