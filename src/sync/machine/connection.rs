//! What ends with a connection; the rest of a [`Machine`](super::Machine) outlives it.

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

/// What is under way on one connection.
pub(super) struct Connection {
    /// Something was achieved that need not be done again.
    pub(super) advanced: bool,
    pub(super) subscriptions: u64,
    pub(super) auth: Auth,
    pub(super) probe: Probe,
    pub(super) reconciling: Reconciling,
    pub(super) download: Download,
    pub(super) upload: Upload,
    pub(super) second_look: SecondLook,
    pub(super) live: Live,
    /// Nothing new is begun before.
    pub(super) not_before: Option<Duration>,
    pub(super) heard: Duration,
    /// When a question was last answered, or given up.
    pub(super) answered_at: Duration,
    pub(super) pinged: bool,
    /// Events that nobody asked for, or not so often.
    pub(super) needless: u32,
    /// Messages that answer nothing, within the minute that began at the second field.
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
