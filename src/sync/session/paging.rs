//! A peer that does not reconcile is read: all that matches, newest first, page by page (NIP-01,
//! REQ). What is ours and not on the pages is what the peer lacks.

use super::super::arrival::{Asked, Fate, Seen, Settled};
use super::super::breakdown::{self, Rows};
use super::super::filter::Window;
use super::super::message;
use super::super::peer::PeerError;
use super::{End, Session, Work};
use crate::index::SnapshotError;
use crate::reconcile::RangeSet;
use crate::store::StoreError;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// The windows to read and the page under way.
#[derive(Default)]
pub(super) struct Paging {
    windows: VecDeque<Window>,
    page: Option<Page>,
    pages: u64,
    // Ids of the second in which the page before ended: they come again.
    overlap: HashSet<[u8; 32]>,
    // How often the peer put a page off.
    failures: u32,
}

struct Page {
    subscription: String,
    window: Window,
    asked: Asked,
    // Every id on the page with its time.
    events: Vec<([u8; 32], u64)>,
    // Those that only the peer has, where differences are told.
    rows: Rows,
    unsettled: usize,
    ended: bool,
}

/// More events than this are no page, whatever the peer announces.
const MOST_PAGE_EVENTS: usize = 1_000_000;
/// How often a page is asked for that the peer puts off.
const MOST_FAILURES: u32 = 5;

impl Paging {
    pub(super) fn add(&mut self, window: Window) {
        self.windows.push_back(window);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.windows.is_empty() && self.page.is_none()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.page.as_ref().is_some_and(|page| !page.ended)
    }

    /// What events of `subscription` are compared with; `None` when it is not the page's.
    pub(super) fn asked(&self, subscription: &str) -> Option<Asked> {
        self.page.as_ref().filter(|it| it.subscription == subscription).map(|it| it.asked.clone())
    }

    /// Events have come and are being checked.
    pub(super) fn arrived(&mut self, subscription: &str, events: usize) {
        if let Some(page) = self.page.as_mut().filter(|it| it.subscription == subscription) {
            page.unsettled += events;
        }
    }
}

impl Session<'_> {
    pub(super) fn advance_paging(&mut self) -> Result<(), End> {
        if self.paging.page.is_some() {
            return Ok(());
        }
        let Some(window) = self.paging.windows.pop_front() else { return Ok(()) };
        let most = self.peer.information.events_per_req;
        let filter = self.options.filter.within(window).newest(most);
        let matching = Arc::new(filter.parsed().clone());
        let stores = self.options.direction.is_down() && !self.options.dry_run;
        let asked = if stores { Asked::Matching(matching) } else { Asked::Listing(matching) };
        self.paging.pages += 1;
        let subscription = format!("page{}", self.paging.pages);
        self.peer.send(message::req(&subscription, &filter))?;
        self.heard = std::time::Instant::now();
        self.paging.page = Some(Page {
            subscription,
            window,
            asked,
            events: Vec::new(),
            rows: Rows::default(),
            unsettled: 0,
            ended: false,
        });
        Ok(())
    }

    /// Events of a page have been stored or refused.
    pub(super) fn paged(&mut self, subscription: &str, events: &[Settled]) -> Result<(), End> {
        let page = self.paging.page.as_mut().filter(|page| page.subscription == subscription);
        let Some(page) = page else { return Ok(()) };
        if page.events.len() > MOST_PAGE_EVENTS {
            let reason = format!("the peer answers a REQ with over {MOST_PAGE_EVENTS} events");
            return Err(End::Lost(PeerError::Refused { reason }));
        }
        page.unsettled = page.unsettled.saturating_sub(events.len());
        page.events.extend(events.iter().filter_map(|event| Some((event.id?, event.created_at))));
        let new = events.iter().filter(|event| event.fate == Fate::Stored).count() as u64;
        if let Some(pass) = &mut self.pass {
            pass.need += new;
        }
        self.memory.report.need += new;
        self.finish_page();
        Ok(())
    }

    /// An event that only the peer has, in a sync that takes nothing from it.
    pub(super) fn seen(&mut self, event: &Settled, seen: Seen) {
        let Some(pass) = &mut self.pass else { return };
        if pass.breakdown.as_mut().is_some_and(|breakdown| breakdown.looked_at(event, seen)) {
            return;
        }
        let is_again = event.id.is_some_and(|id| self.paging.overlap.contains(&id));
        if !is_again {
            pass.need += 1;
            if let (Some(breakdown), Some(page)) = (&pass.breakdown, &mut self.paging.page) {
                page.rows.add_theirs(breakdown.by, event.created_at, seen);
            }
            if self.options.direction.is_down() {
                self.memory.report.need += 1;
            } else {
                pass.explain("not to be downloaded");
            }
        }
    }

    /// EOSE of a page.
    pub(super) fn page_ended(&mut self, subscription: &str) -> Result<(), End> {
        let Some(page) = self.paging.page.as_mut() else { return Ok(()) };
        if page.subscription == subscription && !page.ended {
            page.ended = true;
            self.paging.failures = 0;
            self.peer.send(message::close(subscription))?;
            self.finish_page();
        }
        Ok(())
    }

    /// CLOSED of a page. Returns whether it was one.
    pub(super) fn page_refused(&mut self, subscription: &str, text: &str) -> Result<bool, End> {
        let Some(page) = self.paging.page.take_if(|it| it.subscription == subscription) else {
            return Ok(false);
        };
        self.paging.windows.push_front(page.window);
        if text.starts_with("auth-required") {
            self.wait_for_auth(text)?;
            return Ok(true);
        }
        self.paging.failures += 1;
        if self.paging.failures > MOST_FAILURES {
            let reason = format!("the peer does not answer REQ: {text}");
            return Err(End::Lost(PeerError::Refused { reason }));
        }
        self.not_before = Some(std::time::Instant::now() + std::time::Duration::from_secs(1));
        Ok(true)
    }

    /// Compares a page that is complete with ours, and goes on to older events.
    fn finish_page(&mut self) {
        let over = |page: &mut Page| page.ended && page.unsettled == 0;
        let Some(page) = self.paging.page.take_if(over) else { return };
        self.memory.report.round_trips += 1;
        let Page { window, events, rows, .. } = page;
        self.add_rows(rows);
        let oldest = events.iter().map(|(_, created_at)| *created_at).min();
        let overlap = std::mem::take(&mut self.paging.overlap);
        let is_new = events.iter().any(|(id, _)| !overlap.contains(id));
        let limited = self.options.filter.parsed().limit.is_some();
        // What the page shows completely, and where the next one begins.
        let (shown, next) = match oldest {
            Some(oldest) if !limited => {
                let of_oldest = events.iter().filter(|(_, created_at)| *created_at == oldest);
                self.paging.overlap = of_oldest.map(|(id, _)| *id).collect();
                let after = oldest.saturating_add(1);
                // Where nothing is new the peer shows no more of this second.
                let (from, until) =
                    if is_new { (after, Some(oldest)) } else { (oldest, oldest.checked_sub(1)) };
                let next = until.filter(|until| window.since.is_none_or(|since| since <= *until));
                let since = if next.is_some() { Some(from) } else { window.since };
                (Window { since, ..window }, next)
            }
            _ => (window, None),
        };
        match next {
            Some(_) => self.paging.windows.push_front(Window { until: next, ..window }),
            None => self.paging.overlap.clear(),
        }
        if shown.since.unwrap_or(0) <= shown.until.unwrap_or(u64::MAX) {
            let theirs = events.into_iter().map(|(id, _)| id).chain(overlap).collect();
            self.compare(shown, theirs);
        }
    }

    /// Finds which of our events in `window` are not among `theirs`.
    fn compare(&mut self, window: Window, theirs: HashSet<[u8; 32]>) {
        if !self.options.direction.is_up() && !self.options.dry_run {
            return;
        }
        let filter = self.options.filter.within(window).parsed().clone();
        let (sets, store) = (self.local.sets.clone(), self.local.store.clone());
        let peer = self.url.as_str().to_owned();
        let by = self.pass.as_ref().and_then(|pass| Some(pass.breakdown.as_ref()?.by));
        self.begin_work(move || {
            let set = sets.snapshot(&[filter], usize::MAX).map_err(|error| match error {
                SnapshotError::Store(error) => error,
                SnapshotError::TooLarge { .. } => StoreError::Closed,
            })?;
            let mut have = Vec::new();
            set.for_each(0..set.len(), &mut |item| {
                if !theirs.contains(&item.id) {
                    have.push(item.id);
                }
            });
            let remembered = store.reader().refused(&peer, &have)?;
            let rows = match by {
                Some(by) => breakdown::of_ours(sets.source(), by, &have)?,
                None => Rows::default(),
            };
            Ok(Work::Compared { have, remembered, rows })
        });
    }
}
