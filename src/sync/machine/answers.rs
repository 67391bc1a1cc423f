//! Dispatches the peer's messages to the part of the machine that they concern.

use super::{Asked, Hint, Loss, Machine};
use crate::sync::message::{self, PeerMessage};
use std::time::Duration;

/// Messages in a minute, none of which answers anything, after which the peer is given up.
const MOST_IDLE_FRAMES: u32 = 20_000;
const MINUTE: Duration = Duration::from_secs(60);

impl Machine {
    pub(super) fn hear(&mut self, text: &str) {
        self.on.heard = self.now.at;
        self.on.pinged = false;
        match message::parse(text) {
            PeerMessage::Event { subscription, json } => self.event(subscription, json),
            PeerMessage::Eose { subscription, hint } => {
                self.flush_batch();
                self.eose(&subscription, hint);
            }
            PeerMessage::Closed { subscription, text } => self.closed(&subscription, &text),
            PeerMessage::Count { subscription, count } => {
                self.counted(&subscription, count);
            }
            PeerMessage::Ok { id: None, accepted: false, text } => self.refused_without_id(&text),
            PeerMessage::Ok { id: None, .. } => self.count_idle_frame(),
            PeerMessage::Ok { id: Some(id), accepted, text } => {
                if !self.auth_answered(Some(&id), accepted, &text) {
                    self.event_answered(&id, accepted, &text);
                }
            }
            PeerMessage::Notice(text) => self.notice(&text),
            PeerMessage::Auth(challenge) => self.challenged(challenge),
            PeerMessage::NegMsg { id, payload } => {
                if self.on.reconciling.is_about(&id) {
                    self.neg_msg(payload);
                } else {
                    self.late_answer();
                    self.count_idle_frame();
                }
            }
            PeerMessage::NegErr { id, text, cap } => {
                if self.on.reconciling.is_about(&id) {
                    self.neg_err(&text, cap);
                }
            }
            PeerMessage::Unknown => self.count_idle_frame(),
        }
    }

    fn event(&mut self, subscription: String, json: &str) {
        if self.on.probe.is_about(&subscription) {
            if let Some(event) = message::page_event(json) {
                self.probe_event(&event, json);
            }
            return;
        }
        if self.on.second_look.is_about(&subscription) {
            if let Some(event) = message::page_event(json) {
                self.looked_at(&subscription, &event.id);
            }
            return;
        }
        if let Some(asked) = self.on.download.asked(&subscription) {
            self.download_moves(&subscription);
            return self.arrived(subscription, asked, json);
        }
        if let Some(asked) = self.reading.asked(&subscription) {
            self.page_event(&subscription, json);
            return self.arrived(subscription, asked, json);
        }
        if let Some(asked @ Asked::Matching(_)) = self.on.live.asked(&subscription) {
            return self.arrived(subscription, asked, json);
        }
        if self.shown_late(json) {
            return;
        }
        match self.reading.asked_before(&subscription) {
            Some(asked) => self.late_event(subscription, asked, json),
            None => self.unasked(),
        }
    }

    fn eose(&mut self, subscription: &str, hint: Hint) {
        if self.on.probe.is_about(subscription) {
            self.probe_ended();
        } else if self.on.second_look.is_about(subscription) {
            self.look_ended(subscription);
        } else if self.on.download.asked(subscription).is_some() {
            self.send(message::close(subscription));
            self.download_ended(subscription);
        } else if self.reading.asked(subscription).is_some() {
            self.page_ended(subscription, hint);
        } else {
            self.live_answered(subscription);
        }
    }

    /// CLOSED: of a subscription, or from relays that answer NEG-OPEN with it.
    fn closed(&mut self, subscription: &str, text: &str) {
        self.flush_batch();
        if self.on.probe.is_about(subscription) {
            self.probe_refused(text);
        } else if self.on.second_look.is_about(subscription) {
            self.look_refused(subscription, text);
        } else if self.on.download.asked(subscription).is_some() {
            self.download_refused(subscription, text);
        } else if !self.neg_closed(subscription, text) && !self.page_refused(subscription, text) {
            self.live_refused(subscription, text);
        }
    }

    /// Counts a message that answers nothing.
    pub(super) fn count_idle_frame(&mut self) {
        let (frames, since) = &mut self.on.idle_frames;
        if self.now.at >= *since + MINUTE {
            (*frames, *since) = (0, self.now.at);
        }
        *frames += 1;
        if *frames > MOST_IDLE_FRAMES {
            let reason = format!(
                "no progress: the peer sent {MOST_IDLE_FRAMES} messages in a minute that answer \
                 nothing"
            );
            self.leave(Loss::Gone(reason));
        }
    }
}
