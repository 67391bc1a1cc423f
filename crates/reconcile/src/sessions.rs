//! Sessions over any transport: packets in, packets out, by peer and for both roles. Like the rest
//! of this crate it has no clock, socket or task: the caller passes the time and carries the
//! packets.
//!
//! Two peers may open a session with each other at the same time: the sessions that we open and the
//! sessions that peers open are kept apart. A peer may restart at any time, even after losing its
//! state: each session has a number, and a packet with another number is stale.

use super::difference::Difference;
use super::initiator::Initiator;
use super::message::MessageError;
use super::options::{InitiatorError, InitiatorOptions, InitiatorStep};
use super::range_set::RangeSet;
use super::reference::FrameLimitError;
use super::responder::Responder;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

/// Limits of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionLimits {
    /// Maximum number of sessions in each role.
    pub sessions: usize,
    /// Maximum idle time of a session, in seconds of the caller's clock.
    pub idle_s: u64,
    /// Maximum length of an answer, in bytes; 0 is unlimited.
    pub frame_limit_bytes: usize,
}

impl SessionLimits {
    /// The same limits with another maximum number of sessions in each role.
    #[must_use]
    pub const fn with_sessions(self, sessions: usize) -> Self {
        Self { sessions, ..self }
    }

    /// The same limits with another maximum idle time, in seconds.
    #[must_use]
    pub const fn with_idle_s(self, idle_s: u64) -> Self {
        Self { idle_s, ..self }
    }

    /// The same limits with another maximum length of answers, in bytes; 0 is unlimited.
    #[must_use]
    pub const fn with_frame_limit_bytes(self, frame_limit_bytes: usize) -> Self {
        Self { frame_limit_bytes, ..self }
    }
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { sessions: 64, idle_s: 60, frame_limit_bytes: 500_000 }
    }
}

/// The kind of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// The initiator's first message.
    Open,
    /// A later message of the initiator.
    Question,
    /// A message of the responder.
    Answer,
    /// The initiator has finished.
    Close,
    /// The responder has no such session, or no free slot for one.
    Refused,
}

/// A message between two peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The kind of the packet.
    pub kind: PacketKind,
    /// The session number, chosen by its initiator.
    pub session: u64,
    /// A negentropy message, or empty.
    pub payload: Vec<u8>,
}

impl Packet {
    fn empty(kind: PacketKind, session: u64) -> Self {
        Self { kind, session, payload: Vec::new() }
    }

    /// The packet as bytes: one byte for the kind, eight for the session number (big-endian), then
    /// the payload.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(9 + self.payload.len());
        bytes.push(match self.kind {
            PacketKind::Open => 0,
            PacketKind::Question => 1,
            PacketKind::Answer => 2,
            PacketKind::Close => 3,
            PacketKind::Refused => 4,
        });
        bytes.extend_from_slice(&self.session.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Reads a packet; `None` if `bytes` are not a packet.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let (session, payload) = rest.split_first_chunk::<8>()?;
        let kind = match kind {
            0 => PacketKind::Open,
            1 => PacketKind::Question,
            2 => PacketKind::Answer,
            3 => PacketKind::Close,
            4 => PacketKind::Refused,
            _ => return None,
        };
        Some(Self { kind, session: u64::from_be_bytes(*session), payload: payload.to_vec() })
    }
}

/// Totals over all sessions since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStatistics {
    /// Sessions that were opened, by us or by a peer.
    pub started: u64,
    /// Our sessions that found all differences.
    pub completed: u64,
    /// Sessions that ended early: failed, refused, cancelled, replaced or idle for too long.
    pub abandoned: u64,
    /// Found ids that only we have.
    pub have: u64,
    /// Found ids that only the peer has.
    pub need: u64,
    /// Bytes of negentropy messages sent.
    pub bytes_sent: u64,
    /// Bytes of negentropy messages received.
    pub bytes_received: u64,
    /// Our questions that were answered.
    pub round_trips: u64,
}

/// The result of receiving a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PacketOutcome {
    /// The packet to send to the peer.
    pub reply: Option<Packet>,
    /// The differences that the packet showed.
    pub found: Difference,
    /// How our own session with the peer ended, if it did.
    pub ended: Option<SessionEnd>,
    /// The fault in the peer's question, if the question was refused as malformed.
    pub fault: Option<MessageError>,
}

/// How a session of ours ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEnd {
    /// All differences were found.
    Complete,
    /// The peer refused the session.
    Refused,
    /// The peer's answers were malformed or made no progress.
    Failed(InitiatorError),
}

/// The peers whose sessions were idle for too long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExpiredSessions<P> {
    /// Peers of sessions that we opened.
    pub asking: Vec<P>,
    /// Peers of sessions that the peer opened.
    pub answering: Vec<P>,
}

/// Why a session could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The maximum number of sessions is reached.
    TooMany {
        /// The maximum number of sessions.
        limit: usize,
    },
    /// The options contain an invalid frame limit.
    FrameLimit(FrameLimitError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { limit } => write!(f, "{limit} sessions are open; end one first"),
            Self::FrameLimit(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::FrameLimit(error) => Some(error),
            _ => None,
        }
    }
}

impl From<FrameLimitError> for OpenError {
    fn from(error: FrameLimitError) -> Self {
        Self::FrameLimit(error)
    }
}

/// The sessions with all peers.
#[derive(Clone, Debug)]
pub struct Sessions<P, S> {
    limits: SessionLimits,
    number: u64,
    asking: BTreeMap<P, InitiatedSession<S>>,
    answering: BTreeMap<P, AnsweredSession<S>>,
    statistics: SessionStatistics,
}

#[derive(Clone, Debug)]
struct InitiatedSession<S> {
    number: u64,
    initiator: Initiator<S>,
    heard_s: u64,
}

#[derive(Clone, Debug)]
struct AnsweredSession<S> {
    number: u64,
    responder: Responder<S>,
    heard_s: u64,
}

impl<P: Clone + Ord, S: RangeSet> Sessions<P, S> {
    /// No sessions. `first_number` must differ from the numbers that an earlier run used with the
    /// same peers shortly before: use, for example, the time in microseconds or a random number.
    #[must_use]
    pub fn new(limits: SessionLimits, first_number: u64) -> Self {
        Self {
            limits,
            number: first_number,
            asking: BTreeMap::new(),
            answering: BTreeMap::new(),
            statistics: SessionStatistics::default(),
        }
    }

    /// Opens a session that finds how a peer's set differs from `set`. An earlier session of ours
    /// with the peer ends.
    ///
    /// # Errors
    /// [`OpenError`] when there are too many sessions or the options are invalid.
    pub fn open(
        &mut self,
        peer: P,
        set: S,
        options: InitiatorOptions,
        now_s: u64,
    ) -> Result<Packet, OpenError> {
        if self.asking.len() >= self.limits.sessions && !self.asking.contains_key(&peer) {
            return Err(OpenError::TooMany { limit: self.limits.sessions });
        }
        let mut initiator = Initiator::new(set, options)?;
        let payload = initiator.open();
        let number = self.number;
        self.number = self.number.wrapping_add(1);
        self.statistics.started += 1;
        if self
            .asking
            .insert(peer, InitiatedSession { number, initiator, heard_s: now_s })
            .is_some()
        {
            self.statistics.abandoned += 1;
        }
        Ok(self.sending(Packet { kind: PacketKind::Open, session: number, payload }))
    }

    /// Handles a packet of a peer. `set` is called only when the peer opens a session. It returns
    /// the set that answers the whole session, or `None` to refuse the session.
    pub fn receive(
        &mut self,
        peer: &P,
        packet: &Packet,
        now_s: u64,
        set: impl FnOnce() -> Option<S>,
    ) -> PacketOutcome {
        self.statistics.bytes_received += packet.payload.len() as u64;
        match packet.kind {
            PacketKind::Open => self.opened(peer, packet, now_s, set()),
            PacketKind::Question => self.asked(peer, packet, now_s),
            PacketKind::Answer => self.answered(peer, packet, now_s),
            PacketKind::Close => {
                self.answering.retain(|of, it| of != peer || it.number != packet.session);
                PacketOutcome::default()
            }
            PacketKind::Refused => self.refused(peer, packet.session),
        }
    }

    /// Ends our session with a peer. Returns the packet to send to it, if there was a session.
    pub fn cancel(&mut self, peer: &P) -> Option<Packet> {
        let asking = self.asking.remove(peer)?;
        self.statistics.abandoned += 1;
        Some(Packet::empty(PacketKind::Close, asking.number))
    }

    /// Removes a peer that is gone, with the sessions of both roles.
    pub fn forget(&mut self, peer: &P) {
        self.statistics.abandoned += u64::from(self.asking.remove(peer).is_some());
        self.answering.remove(peer);
    }

    /// Ends the sessions that were idle for too long, and returns their peers.
    pub fn expire(&mut self, now_s: u64) -> ExpiredSessions<P> {
        let idle_s = self.limits.idle_s;
        let is_idle = |heard_s: u64| now_s.saturating_sub(heard_s) >= idle_s;
        let asking = self.asking.extract_if(.., |_, it| is_idle(it.heard_s));
        let asking: Vec<P> = asking.map(|(peer, _)| peer).collect();
        self.statistics.abandoned += asking.len() as u64;
        let answering = self.answering.extract_if(.., |_, it| is_idle(it.heard_s));
        ExpiredSessions { asking, answering: answering.map(|(peer, _)| peer).collect() }
    }

    /// Sets other limits. Open sessions stay, even above the new maximum, and keep their message
    /// length.
    pub fn set_limits(&mut self, limits: SessionLimits) {
        self.limits = limits;
    }

    /// The number of open sessions that peers opened.
    #[must_use]
    pub fn answering_len(&self) -> usize {
        self.answering.len()
    }

    /// Whether a session would be accepted if this peer opened one.
    pub fn has_room_for(&self, peer: &P) -> bool {
        self.answering.len() < self.limits.sessions || self.answering.contains_key(peer)
    }

    /// The initiator of our session with this peer.
    pub fn asking(&self, peer: &P) -> Option<&Initiator<S>> {
        self.asking.get(peer).map(|asking| &asking.initiator)
    }

    /// Whether we have a session open with this peer.
    pub fn is_asking(&self, peer: &P) -> bool {
        self.asking.contains_key(peer)
    }

    /// Totals over all sessions since the start.
    #[must_use]
    pub fn statistics(&self) -> SessionStatistics {
        self.statistics
    }

    fn sending(&mut self, packet: Packet) -> Packet {
        self.statistics.bytes_sent += packet.payload.len() as u64;
        packet
    }

    fn opened(&mut self, peer: &P, packet: &Packet, now_s: u64, set: Option<S>) -> PacketOutcome {
        let frame_limit_bytes = self.limits.frame_limit_bytes;
        let responder = set.and_then(|set| Responder::new(set, frame_limit_bytes).ok());
        let Some(responder) = responder.filter(|_| self.has_room_for(peer)) else {
            return PacketOutcome::reply(Packet::empty(PacketKind::Refused, packet.session));
        };
        self.statistics.started += 1;
        let answering = AnsweredSession { number: packet.session, responder, heard_s: now_s };
        self.answering.insert(peer.clone(), answering);
        self.asked(peer, packet, now_s)
    }

    fn asked(&mut self, peer: &P, packet: &Packet, now_s: u64) -> PacketOutcome {
        let session = packet.session;
        let answer = match self.answering.get_mut(peer).filter(|it| it.number == session) {
            Some(answering) => {
                answering.heard_s = now_s;
                answering.responder.answer(&packet.payload)
            }
            None => return PacketOutcome::reply(Packet::empty(PacketKind::Refused, session)),
        };
        match answer {
            Ok(payload) => PacketOutcome::reply(self.sending(Packet {
                kind: PacketKind::Answer,
                session,
                payload,
            })),
            Err(fault) => {
                self.answering.remove(peer);
                let reply = Some(Packet::empty(PacketKind::Refused, session));
                PacketOutcome { reply, fault: Some(fault), ..PacketOutcome::default() }
            }
        }
    }

    fn answered(&mut self, peer: &P, packet: &Packet, now_s: u64) -> PacketOutcome {
        let session = packet.session;
        // A stale answer is ignored.
        let Some(asking) = self.asking.get_mut(peer).filter(|it| it.number == session) else {
            return PacketOutcome::default();
        };
        asking.heard_s = now_s;
        let mut received = PacketOutcome::default();
        let step = asking.initiator.receive(&packet.payload, &mut received.found);
        self.statistics.round_trips += 1;
        self.statistics.have += received.found.have.len() as u64;
        self.statistics.need += received.found.need.len() as u64;
        let ended = match step {
            Ok(InitiatorStep::Send(payload)) => {
                let question = Packet { kind: PacketKind::Question, session, payload };
                received.reply = Some(self.sending(question));
                return received;
            }
            Ok(InitiatorStep::Done) => {
                self.statistics.completed += 1;
                SessionEnd::Complete
            }
            Err(error) => {
                self.statistics.abandoned += 1;
                SessionEnd::Failed(error)
            }
        };
        self.asking.remove(peer);
        received.ended = Some(ended);
        received.reply = Some(Packet::empty(PacketKind::Close, session));
        received
    }

    fn refused(&mut self, peer: &P, session: u64) -> PacketOutcome {
        if self.asking.get(peer).is_none_or(|it| it.number != session) {
            return PacketOutcome::default();
        }
        self.asking.remove(peer);
        self.statistics.abandoned += 1;
        PacketOutcome { ended: Some(SessionEnd::Refused), ..PacketOutcome::default() }
    }
}

impl PacketOutcome {
    fn reply(packet: Packet) -> Self {
        Self { reply: Some(packet), ..Self::default() }
    }
}
