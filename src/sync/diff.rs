//! What differs between this store and a peer: a reconciliation that moves nothing, told by day,
//! kind or author.

use super::breakdown::{By, Key};
use super::reason::Reason;
use super::{
    Local, Method, Options, PeerFilter, Progress, Proof, SyncError, Trace, Unseen, Verdict, driver,
};
use serde::Serialize;
use std::collections::BTreeMap;
use tokio_util::sync::CancellationToken;

/// What to compare.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiffOptions {
    /// Which events.
    pub filter: PeerFilter,
    /// What differences are told apart by.
    pub by: By,
    /// Compare id lists and believe no fingerprint.
    pub exact: bool,
    /// The connections in a row that may fail.
    pub attempts: u32,
    /// Ends the comparison when it is cancelled.
    pub stop: CancellationToken,
    /// Hears what is said.
    pub trace: Option<Trace>,
}

impl Default for DiffOptions {
    fn default() -> Self {
        let (filter, by, stop) = (PeerFilter::default(), By::default(), CancellationToken::new());
        Self { filter, by, exact: false, attempts: 3, stop, trace: None }
    }
}

impl DiffOptions {
    /// Sets [`DiffOptions::filter`].
    #[must_use]
    pub fn filter(mut self, filter: PeerFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Sets [`DiffOptions::by`].
    #[must_use]
    pub fn by(mut self, by: By) -> Self {
        self.by = by;
        self
    }

    /// Sets [`DiffOptions::exact`].
    #[must_use]
    pub fn exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// Sets [`DiffOptions::attempts`].
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets [`DiffOptions::stop`].
    #[must_use]
    pub fn stop(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Sets [`DiffOptions::trace`].
    #[must_use]
    pub fn trace(mut self, trace: impl Into<Option<Trace>>) -> Self {
        self.trace = trace.into();
        self
    }
}

/// What differs.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Diff {
    /// The peer.
    pub url: String,
    /// Which events were compared.
    pub filter: serde_json::Map<String, serde_json::Value>,
    /// What the rows are.
    pub by: By,
    /// How the peer's events were found out.
    pub method: Method,
    /// The rows in which something differs, in order.
    pub rows: Vec<DiffRow>,
    /// Events that only we have.
    pub have: u64,
    /// Events that only the peer has, `unseen` included.
    pub need: u64,
    /// Events that only the peer has and that stand in no row: they were too many to be asked
    /// for, or did not come.
    pub unseen: u64,
    /// How many of both an earlier sync gave up, by reason; a sync would not move them.
    pub given_up: BTreeMap<Reason, u64>,
    /// How both sides compare.
    pub verdict: Verdict,
    /// What the verdict rests on.
    pub proof: Option<Proof>,
    /// What the peer did not show, though it may have it.
    pub not_seen: Vec<Unseen>,
    /// Kinds that the peer shows to their owners only: they were not compared.
    pub not_compared: Vec<u16>,
    /// See [`Report::kept_since`](super::Report::kept_since).
    pub kept_since: Option<u64>,
    /// Events of the peer's that cannot be read.
    pub unreadable: u64,
    /// See [`Report::connections`](super::Report::connections).
    pub connections: u32,
    /// Whether both sides hold the same events that match; `false` where there is an `error`.
    pub equal: bool,
    /// Questions of the reconciliation that were answered.
    pub round_trips: u64,
    /// Bytes of messages sent.
    pub bytes_up: u64,
    /// Bytes of messages received.
    pub bytes_down: u64,
    /// Milliseconds from the beginning to the end.
    pub elapsed_ms: u64,
    /// Why it could not be found out.
    pub error: Option<String>,
    /// What may help.
    pub hint: Option<&'static str>,
}

/// How much differs among the events that have `key` in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiffRow {
    /// The day, the kind or the author.
    pub key: Key,
    /// Events that only we have.
    pub have: u64,
    /// Events that only the peer has.
    pub need: u64,
}

/// Finds out what differs from the peer at `url`. Nothing is stored or sent: by day only ids are
/// compared; by kind and author the events that only the peer has are read, up to 100,000. A peer
/// that does not reconcile (NIP-77) is read whole, page by page.
///
/// # Errors
/// When the URL is bad or the store fails. A peer's faults are in [`Diff::error`].
pub async fn diff(
    local: &Local,
    url: &str,
    options: &DiffOptions,
    progress: impl FnMut(Progress) + Send,
) -> Result<Diff, SyncError> {
    let syncing = Options {
        filter: options.filter.clone(),
        dry_run: true,
        exact: options.exact,
        attempts: Some(options.attempts),
        stop: options.stop.clone(),
        trace: options.trace.clone(),
        ..Options::default()
    };
    let (report, breakdown) = driver::run(local, url, &syncing, Some(options.by), progress).await?;
    let (rows, unseen) = breakdown.map_or_else(Default::default, |it| (it.rows.0, it.unseen));
    let rows: Vec<DiffRow> = rows
        .into_iter()
        .map(|(key, sides)| DiffRow { key, have: sides.have, need: sides.need })
        .collect();
    let given_up = report.differs.into_iter().filter(|(reason, _)| *reason != Reason::NotMoved);
    let given_up = given_up.collect();
    Ok(Diff {
        url: report.url,
        filter: report.filter,
        by: options.by,
        method: report.method,
        have: rows.iter().map(|row| row.have).sum(),
        need: rows.iter().map(|row| row.need).sum::<u64>() + unseen,
        rows,
        unseen,
        given_up,
        verdict: report.verdict,
        proof: report.proof,
        not_seen: report.not_seen,
        not_compared: report.not_compared,
        kept_since: report.kept_since,
        unreadable: report.unreadable,
        connections: report.connections,
        equal: report.equal,
        round_trips: report.round_trips,
        bytes_up: report.bytes_up,
        bytes_down: report.bytes_down,
        elapsed_ms: report.elapsed_ms,
        error: report.error,
        hint: report.hint,
    })
}
