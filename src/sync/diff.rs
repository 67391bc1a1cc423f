//! Differences between this store and a peer, by day, kind or author: a reconciliation that moves
//! nothing.

use super::breakdown::{By, Key};
use super::reason::Reason;
use super::{
    Local, Method, Options, PeerFilter, Progress, Proof, SyncError, Trace, Unseen, Verdict, driver,
};
use serde::Serialize;
use std::collections::BTreeMap;
use tokio_util::sync::CancellationToken;

/// Options of a comparison.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DiffOptions {
    /// The events to compare.
    pub filter: PeerFilter,
    /// The grouping of differences.
    pub by: By,
    /// Compare id lists and trust no fingerprint.
    pub exact: bool,
    /// Maximum number of connections in a row that may fail.
    pub attempts: u32,
    /// Cancels the comparison.
    pub stop: CancellationToken,
    /// Receives all messages.
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

/// The result of a comparison.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Diff {
    /// The peer.
    pub url: String,
    /// The filter of the compared events.
    pub filter: serde_json::Map<String, serde_json::Value>,
    /// The grouping of the rows.
    pub by: By,
    /// How the peer's events were found.
    pub method: Method,
    /// The rows with differences, in order.
    pub rows: Vec<DiffRow>,
    /// The number of events that only we have.
    pub have: u64,
    /// The number of events that only the peer has, including `unseen`.
    pub need: u64,
    /// The number of events that only the peer has and that are in no row: they were too many to
    /// request, or did not come.
    pub unseen: u64,
    /// The number of differing events that an earlier sync gave up on, by reason; a sync would not
    /// move them.
    pub given_up: BTreeMap<Reason, u64>,
    /// The verdict about both sides.
    pub verdict: Verdict,
    /// The basis of the verdict.
    pub proof: Option<Proof>,
    /// Ranges that the peer may have but did not show.
    pub not_seen: Vec<Unseen>,
    /// Kinds that the peer shows only to their owners; they were not compared.
    pub not_compared: Vec<u16>,
    /// See [`Report::kept_since`](super::Report::kept_since).
    pub kept_since: Option<u64>,
    /// The number of the peer's events that cannot be parsed.
    pub unreadable: u64,
    /// See [`Report::connections`](super::Report::connections).
    pub connections: u32,
    /// Whether both sides have the same matching events; `false` if there is an `error`.
    pub equal: bool,
    /// The number of answered questions of the reconciliation.
    pub round_trips: u64,
    /// Bytes of messages sent.
    pub bytes_up: u64,
    /// Bytes of messages received.
    pub bytes_down: u64,
    /// Duration in milliseconds.
    pub elapsed_ms: u64,
    /// Why the comparison failed.
    pub error: Option<String>,
    /// A hint.
    pub hint: Option<&'static str>,
}

/// The differences among the events with the same `key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiffRow {
    /// The day, the kind or the author.
    pub key: Key,
    /// The number of events that only we have.
    pub have: u64,
    /// The number of events that only the peer has.
    pub need: u64,
}

/// Compares this store with the peer at `url`. Nothing is stored or sent. By day, only ids are
/// compared; by kind and author, events that only the peer has are requested, up to 100,000. A peer
/// without NIP-77 is read completely, page by page.
///
/// # Errors
/// [`SyncError`] when the URL is invalid or the store fails. Faults of the peer are in
/// [`Diff::error`].
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
