//! Moving what was found, beside the finding.

use super::super::arrival::{self, Asked, Fate, Settled};
use super::super::download::Unsent;
use super::super::message;
use super::super::peer::PeerError;
use super::super::upload::Answer;
use super::{End, REFUSED_IDS, Session, Work};
use crate::item::Item;
use crate::store::{Event, Refused, StoreError};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How many events are checked together, and how many bytes of them.
const BATCH_EVENTS: usize = 64;
const BATCH_BYTES: usize = 256 << 10;
/// With so many bytes of events being checked or stored the socket is not read.
const MOST_ARRIVING_BYTES: usize = 64 << 20;
/// How long a peer has to ask who we are, after it has refused for that, and how often.
const AUTH_WAIT: Duration = Duration::from_millis(250);
const MOST_AUTH_WAITS: u32 = 20;
/// No peer lists more ids that we lack.
const MOST_NEED: u64 = 100_000_000;
/// A peer that sends so many events that nobody asked for, or not so often, is left.
const MOST_UNASKED: u32 = 100_000;
/// For how long an event need not be sent again that a peer does not take or keep.
const NOT_TAKEN_S: u64 = 86_400;

/// Events of one subscription that wait to be checked together.
pub(super) struct Batch {
    subscription: String,
    asked: Asked,
    texts: Vec<Box<str>>,
    bytes: usize,
}

impl Session<'_> {
    /// Whether another message may be read.
    pub(super) fn may_read(&self) -> bool {
        self.arriving_bytes < MOST_ARRIVING_BYTES
    }

    /// Takes ids that were found to differ. `remembered` has those that earlier syncs gave up.
    pub(super) fn found(
        &mut self,
        have: Vec<[u8; 32]>,
        need: Vec<[u8; 32]>,
        remembered: &HashMap<[u8; 32], String>,
    ) -> Result<(), End> {
        let Some(mut pass) = self.pass.take() else { return Ok(()) };
        let first = pass.number == 1;
        let direction = self.options.direction;
        pass.have += have.len() as u64;
        pass.need += need.len() as u64;
        let mut fresh_have = Vec::new();
        for id in have {
            let not_kept = !first && self.memory.accepted.contains(&id);
            if not_kept && !remembered.contains_key(&id) {
                self.give_up(id, "accepted and not kept by the peer", Some(NOT_TAKEN_S), true);
            }
            if !direction.is_up() {
                pass.explain("not to be uploaded");
            } else if let Some(why) = remembered.get(&id).or_else(|| self.memory.why.get(&id)) {
                pass.explain(why);
            } else {
                fresh_have.push(id);
            }
        }
        let mut fresh_need = Vec::new();
        for id in need {
            if !direction.is_down() {
                pass.explain("not to be downloaded");
            } else if let Some(why) = remembered.get(&id).or_else(|| self.memory.why.get(&id)) {
                pass.explain(why);
            } else {
                fresh_need.push(id);
            }
        }
        let counted = &mut self.memory.counted;
        self.memory.report.have +=
            fresh_have.iter().filter(|id| counted.insert(**id)).count() as u64;
        self.memory.report.need +=
            fresh_need.iter().filter(|id| counted.insert(**id)).count() as u64;
        pass.open.extend(fresh_have.iter().chain(&fresh_need));
        let too_many = pass.need > MOST_NEED;
        self.pass = Some(pass);
        if too_many {
            let reason = format!("the peer lists more than {MOST_NEED} events that we lack");
            return Err(End::Lost(PeerError::Refused { reason }));
        }
        if !self.options.dry_run {
            self.upload.add(fresh_have);
            self.download.add(fresh_need);
        }
        Ok(())
    }

    /// An event has come that nobody asked for.
    pub(super) fn unasked(&mut self) -> Result<(), End> {
        *self.memory.report.refused.entry("not asked for".to_owned()).or_default() += 1;
        self.needless(1)
    }

    /// So many events more have come that nobody asked for, or not so often.
    fn needless(&mut self, events: u32) -> Result<(), End> {
        self.unasked = self.unasked.saturating_add(events);
        if self.unasked > MOST_UNASKED {
            let reason = "the peer sends what nobody asked for".to_owned();
            return Err(End::Lost(PeerError::Refused { reason }));
        }
        Ok(())
    }

    pub(super) fn advance_transfer(&mut self) -> Result<(), End> {
        self.download.advance(&self.peer)?;
        if let Some(ids) = self.upload.next_to_read() {
            let sets = self.local.sets.clone();
            let moves_protected = self.local.moves_protected();
            self.begin_work(move || {
                let mut events = Vec::with_capacity(ids.len());
                let mut protected = Vec::new();
                let mut read = |item: &Item, json: &str| {
                    if moves_protected || !is_protected(json) {
                        events.push((item.id, json.to_owned()));
                    } else {
                        protected.push(item.id);
                    }
                };
                sets.source().events(&ids, &mut read)?;
                Ok(Work::Loaded { events, protected })
            });
        }
        let too_long = self.upload.advance(&self.peer, self.peer.information.message_bytes)?;
        for id in too_long {
            self.count_refused_by_peer("too long");
            self.give_up(id, "too long for the peer", Some(NOT_TAKEN_S), true);
        }
        Ok(())
    }

    /// Events have been read; those that only their author may publish (NIP-70) stay here.
    pub(super) fn loaded(&mut self, events: Vec<([u8; 32], String)>, protected: Vec<[u8; 32]>) {
        self.upload.read(events);
        let refusal = arrival::Refusal::Protected;
        for id in protected {
            *self.memory.report.refused.entry(refusal.name().to_owned()).or_default() += 1;
            self.give_up(id, refusal.name(), refusal.term_s(), false);
        }
    }

    /// An event has come for `subscription`; it is checked with those that come with it.
    pub(super) async fn arrived(&mut self, subscription: String, asked: Asked, text: &str) {
        let fits = |batch: &Batch| {
            batch.subscription == subscription
                && batch.texts.len() < BATCH_EVENTS
                && batch.bytes < BATCH_BYTES
        };
        if !self.batch.as_ref().is_some_and(fits) {
            self.flush_batch();
        }
        let batch = self.batch.get_or_insert_with(|| Batch {
            subscription,
            asked,
            texts: Vec::with_capacity(BATCH_EVENTS),
            bytes: 0,
        });
        batch.bytes += text.len();
        batch.texts.push(text.into());
    }

    /// Hands the events that wait to the threads that check them.
    pub(super) fn flush_batch(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        let Batch { subscription, asked, texts, bytes } = batch;
        self.download.arrived(&subscription, texts.len());
        self.paging.arrived(&subscription, texts.len());
        self.arriving_bytes += bytes;
        self.working += 1;
        let (local, from_peer, done) =
            (self.local.clone(), self.from_peer.clone(), self.done.clone());
        let url = self.url.clone();
        tokio::spawn(async move {
            let events = arrival::settle(&local, url.as_str(), asked, texts, from_peer).await;
            // Fails only when the session is over.
            let _ = done.send(Work::Settled { subscription, events, bytes });
        });
    }

    pub(super) fn settled(
        &mut self,
        subscription: &str,
        events: &[Settled],
        bytes: usize,
    ) -> Result<(), End> {
        self.arriving_bytes = self.arriving_bytes.saturating_sub(bytes);
        for event in events {
            let is_stored = matches!(event.fate, Fate::Stored);
            if let (Some(from_peer), Some(id), false) = (&self.from_peer, event.id, is_stored) {
                from_peer.remove(&id);
            }
            match &event.fate {
                Fate::Stored => {
                    self.memory.report.stored += 1;
                    self.memory.advanced = true;
                    self.moved();
                    self.read_through(event.id, None);
                }
                Fate::Duplicate => self.memory.report.duplicates += 1,
                Fate::Seen(seen) => self.seen(event, *seen),
                Fate::Refused(arrival::Refusal::Unasked) => self.unasked()?,
                Fate::Refused(refusal) => {
                    let name = refusal.name();
                    *self.memory.report.refused.entry(name.to_owned()).or_default() += 1;
                    if let Some(id) = event.id {
                        let is_first = !self.memory.why.contains_key(&id);
                        // Whoever forges events brings the sync no nearer to its end.
                        self.memory.advanced |= is_first && *refusal != arrival::Refusal::Invalid;
                        self.moved();
                        self.read_through(event.id, Some(name));
                        self.give_up(id, name, refusal.term_s(), !refusal.is_ours());
                    }
                }
                Fate::Failed(reason) => return Err(End::Failed(reason.clone())),
            }
        }
        let (unsent, again) = self.download.settled(subscription, events);
        self.needless(again)?;
        self.take_unsent(unsent);
        self.paged(subscription, events)
    }

    /// EOSE: no more stored events of `subscription` will come.
    pub(super) fn ended(&mut self, subscription: &str) -> Result<(), End> {
        if self.download.asked(subscription).is_some() {
            self.peer.send(message::close(subscription))?;
        }
        let unsent = self.download.ended(subscription);
        self.take_unsent(unsent);
        self.page_ended(subscription)
    }

    /// Ids that do not come, however few are asked for at a time.
    fn take_unsent(&mut self, unsent: Unsent) {
        let count = unsent.ids.len() as u64;
        if count > 0 {
            *self.memory.report.refused.entry("not sent by the peer".to_owned()).or_default() +=
                count;
        }
    }

    /// NIP-01, OK.
    pub(super) fn ok(&mut self, id: &[u8; 32], accepted: bool, text: &str) -> Result<(), End> {
        if self.auth.answered(id, accepted) {
            self.not_before = None;
            if !accepted {
                self.note(format!("the peer does not accept who we are: {text}"));
            }
            return Ok(());
        }
        match self.upload.answered(id, accepted, text) {
            Answer::Unasked => return Ok(()),
            Answer::Taken => self.memory.report.uploaded += 1,
            Answer::Duplicate => self.memory.report.duplicates += 1,
            Answer::PutOff => return Ok(()),
            Answer::AuthRequired => return self.wait_for_auth(text),
            Answer::Refused(prefix) => {
                self.count_refused_by_peer(&prefix);
                // What may be taken another time has not been dealt with.
                if prefix != "error" && prefix != "rate-limited" {
                    self.read_through(Some(*id), Some("refused by the peer"));
                    let why = match prefix.as_str() {
                        "superseded" => prefix,
                        _ => format!("refused by the peer: {prefix}"),
                    };
                    self.give_up(*id, &why, Some(NOT_TAKEN_S), true);
                    self.memory.advanced = true;
                }
                return Ok(());
            }
        }
        self.memory.advanced |= self.memory.accepted.insert(*id);
        self.moved();
        self.read_through(Some(*id), None);
        Ok(())
    }

    /// Where events are read instead of reconciled no second pass proves anything: what became of
    /// each is the proof.
    fn read_through(&mut self, id: Option<[u8; 32]>, why: Option<&str>) {
        let (super::Method::Req, Some(pass), Some(id)) =
            (self.memory.report.method, &mut self.pass, id)
        else {
            return;
        };
        let was_open = pass.open.remove(&id);
        if let Some(why) = why
            && (was_open || self.memory.counted.insert(id))
        {
            pass.explain(why);
        }
    }

    /// The peer wants to know who we are: it is told once it asks, which may already be under way.
    pub(super) fn wait_for_auth(&mut self, text: &str) -> Result<(), End> {
        if self.auth.may_help() && !self.auth.is_known() && self.auth_waits < MOST_AUTH_WAITS {
            let now = Instant::now();
            // Many refusals at a time are one.
            if self.not_before.is_none_or(|at| at <= now) {
                self.auth_waits += 1;
                self.not_before = Some(now + AUTH_WAIT);
            }
            return Ok(());
        }
        let advice = if self.local.keys.is_some() {
            "it does not accept our key"
        } else {
            "set a key for NIP-42, see [sync] in relay.toml"
        };
        let reason = format!("the peer refuses: {text}; {advice}");
        Err(End::Lost(PeerError::Refused { reason }))
    }

    fn moved(&mut self) {
        if let Some(pass) = &mut self.pass {
            pass.moved += 1;
        }
    }

    fn count_refused_by_peer(&mut self, reason: &str) {
        *self.memory.report.refused_by_peer.entry(reason.to_owned()).or_default() += 1;
    }

    /// Notes why an id is not moved, for this sync and, with a term, for later ones.
    pub(super) fn give_up(&mut self, id: [u8; 32], why: &str, term_s: Option<u64>, of_peer: bool) {
        self.memory.why.insert(id, why.to_owned());
        let Some(term_s) = term_s else { return };
        let peer = if of_peer { self.url.as_str().to_owned() } else { String::new() };
        self.refused.push(Refused { peer, id, reason: why.to_owned(), term_s });
        if self.refused.len() >= REFUSED_IDS {
            self.remember_refused();
        }
    }

    /// Has what was refused written down.
    pub(super) fn remember_refused(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        if self.options.dry_run {
            return;
        }
        let store = self.local.store.clone();
        self.begin_work(move || {
            store.remember_refused(refused)?;
            Ok::<_, StoreError>(Work::Remembered)
        });
    }
}

/// NIP-70: whether only its author may publish the event. Most events are told by a look.
fn is_protected(json: &str) -> bool {
    json.contains(r#"["-""#) && Event::parse(json).is_ok_and(|event| event.is_protected())
}
