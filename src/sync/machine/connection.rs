//! The state that ends with a connection; the rest of a [`Machine`](super::Machine) outlives it.

use super::Now;
use super::auth::Auth;
use super::download::Download;
use super::live::Live;
use super::probe::Probe;
use super::reconciling::Reconciling;
use super::second_look::SecondLook;
use super::transfer::Batch;
use super::upload::Upload;
use crate::sync::nip11::Information;
use std::time::Duration;

/// The state of one connection.
pub(super) struct Connection {
    /// Whether progress was made that need not be repeated.
    pub(super) advanced: bool,
    pub(super) subscriptions: u64,
    pub(super) auth: Auth,
    pub(super) probe: Probe,
    pub(super) reconciling: Reconciling,
    pub(super) download: Download,
    pub(super) upload: Upload,
    pub(super) second_look: SecondLook,
    pub(super) live: Live,
    /// No new work begins before this time.
    pub(super) not_before: Option<Duration>,
    pub(super) heard: Duration,
    /// The time of the last answered or abandoned question.
    pub(super) answered_at: Duration,
    pub(super) pinged: bool,
    /// Events that were not requested, or came more than once.
    pub(super) needless: u32,
    /// Messages that answer nothing, and the begin of the minute in which they are counted.
    pub(super) idle_frames: (u32, Duration),
    pub(super) batch: Option<Batch>,
    pub(super) arriving_bytes: usize,
}

impl Connection {
    pub(super) fn new(information: &Information, now: Now) -> Self {
        Self {
            advanced: false,
            subscriptions: 0,
            auth: Auth::default(),
            probe: Probe::default(),
            reconciling: Reconciling::default(),
            download: Download::new(information),
            upload: Upload::default(),
            second_look: SecondLook::default(),
            live: Live::default(),
            not_before: None,
            heard: now.at,
            answered_at: now.at,
            pinged: false,
            needless: 0,
            idle_frames: (0, now.at),
            batch: None,
            arriving_bytes: 0,
        }
    }
}
