//! What the peer says, and whom it concerns.

use super::super::message::{self, PeerMessage};
use super::super::peer::PeerError;
use super::live::LIVE;
use super::{End, Session};
use std::time::Instant;

impl Session<'_> {
    pub(super) async fn hear(&mut self, text: &str) -> Result<(), End> {
        self.heard = Instant::now();
        self.pinged = false;
        match message::parse(text) {
            PeerMessage::Event { subscription, json } => {
                let asked = self
                    .download
                    .asked(&subscription)
                    .or_else(|| self.paging.asked(&subscription))
                    .or_else(|| self.live_asked(&subscription));
                match asked {
                    Some(asked) => self.arrived(subscription, asked, json).await,
                    None => self.unasked()?,
                }
                Ok(())
            }
            PeerMessage::Eose(subscription) => {
                self.flush_batch();
                self.ended(&subscription)
            }
            PeerMessage::Closed { subscription, text } => self.closed(&subscription, &text).await,
            PeerMessage::Ok { id, accepted, text } => self.ok(&id, accepted, &text),
            PeerMessage::Notice(text) => self.notice(&text),
            PeerMessage::Auth(challenge) => Ok(self.auth.challenged(&self.peer, &challenge)?),
            PeerMessage::NegMsg { id, payload } => {
                if self.reconciling.is_about(&id) {
                    self.neg_msg(payload);
                }
                Ok(())
            }
            PeerMessage::NegErr { id, text, cap } => {
                if !self.reconciling.is_about(&id) {
                    return Ok(());
                }
                self.neg_err(&text, cap)
            }
            PeerMessage::Unknown => Ok(()),
        }
    }

    /// NOTICE. Some relays answer a verb that they do not know with nothing else.
    fn notice(&mut self, text: &str) -> Result<(), End> {
        let announced = self.peer.information.negentropy == Some(true);
        if self.reconciling.is_unanswered() && !announced {
            return self.without_negentropy(text);
        }
        self.note(format!("the peer says: {text}"));
        Ok(())
    }

    /// CLOSED: for a subscription, or from relays that answer NEG-OPEN so.
    async fn closed(&mut self, subscription: &str, text: &str) -> Result<(), End> {
        self.flush_batch();
        if self.reconciling.is_about(subscription) {
            return self.without_negentropy(text);
        }
        if self.page_refused(subscription, text)? {
            return Ok(());
        }
        if subscription == LIVE && self.live.is_some() {
            let reason = format!("the peer ended the live subscription: {text}");
            return Err(End::Lost(PeerError::Lost { reason }));
        }
        if self.download.asked(subscription).is_some() {
            if text.starts_with("auth-required") {
                self.wait_for_auth(text)?;
            } else {
                self.download_refused(text);
            }
            self.ended(subscription)?;
        }
        Ok(())
    }

    /// CLOSED of a REQ by ids. It is noted once, however many of them follow.
    fn download_refused(&mut self, text: &str) {
        self.download.slow_down();
        let reason = if text.is_empty() { "without a reason" } else { text };
        if self.memory.refusal.replace(reason.to_owned()).is_none() {
            self.note(format!("the peer refuses a download: {reason}"));
        }
    }
}
