//! The data of the page, gathered cheaply at one time: counts and days from the index, kinds from a
//! scan at intervals.

use super::render::Audience;
use crate::index::{Slice, SnapshotError};
use crate::item::Item;
use crate::metrics::{
    DayDiffers, DriftLook, IntGauge, LastSync, MOST_LOOK_DAYS, PeerStatus, Tally,
};
use crate::plot::{Bar, Days};
use crate::reconcile::RangeSet;
use crate::relay::RelayState;
use crate::store::DAY_S;
use crate::store::{self, EventStore, Filter, StoreError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of bars.
const MOST_BARS: u64 = 90;
/// Minimum number of days, even for a new store.
const LEAST_DAYS: u64 = 14;
/// Maximum age of the counts by kind.
const KINDS_AGE: Duration = Duration::from_secs(2);
/// Counting kinds takes at most one part in this many of the time.
const KINDS_SHARE: u32 = 20;

/// The time range of the page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Span {
    /// The last 90 days, and all days on which a peer differs.
    Days90,
    /// The last year, and all days on which a peer differs.
    Year,
    /// From the oldest event to the newest.
    #[default]
    All,
}

impl Span {
    pub(super) const ALL: [Self; 3] = [Self::Days90, Self::Year, Self::All];

    /// The range named in a URL's query: `days=90`, `days=365` or `days=all`.
    pub(super) fn of_query(query: Option<&str>) -> Self {
        let named = |span: &Self| query == Some(format!("days={}", span.name()).as_str());
        Self::ALL.into_iter().find(named).unwrap_or_default()
    }

    /// Its name in a query.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Days90 => "90",
            Self::Year => "365",
            Self::All => "all",
        }
    }

    /// A description for people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Days90 => "90 days",
            Self::Year => "a year",
            Self::All => "everything",
        }
    }
}

/// The data of the page. If anyone may see it, it derives from public events only; see
/// [`public_part`] for the peers.
pub(super) struct Facts {
    /// The second at which it was gathered.
    pub(super) now: u64,
    pub(super) events: usize,
    /// The number of stored events of each kind, highest first.
    pub(super) kinds: Arc<Vec<(u16, u64)>>,
    pub(super) connections: u64,
    pub(super) neg_sessions: u64,
    pub(super) peers: Vec<PeerStatus>,
    pub(super) span: Span,
    pub(super) days: Days,
    /// The number of our events on these days.
    pub(super) held: Vec<Bar>,
}

/// The last counts of stored events by kind.
#[derive(Default)]
pub(super) struct Kinds(Mutex<KindCounts>);

#[derive(Default)]
struct KindCounts {
    kinds: Arc<Vec<(u16, u64)>>,
    at: Option<Instant>,
    took: Duration,
}

impl Kinds {
    fn get(&self, store: &dyn EventStore) -> Result<Arc<Vec<(u16, u64)>>, StoreError> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = KINDS_AGE.max(counted.took * KINDS_SHARE);
        if counted.at.is_none_or(|at| at.elapsed() >= most) {
            let began = Instant::now();
            let mut kinds = store.kinds()?;
            kinds.sort_by_key(|(kind, count)| (std::cmp::Reverse(*count), *kind));
            let (kinds, took) = (Arc::new(kinds), began.elapsed());
            *counted = KindCounts { kinds, at: Some(Instant::now()), took };
        }
        Ok(Arc::clone(&counted.kinds))
    }
}

impl Facts {
    /// Gathers the data; may wait for the index and the store.
    pub(super) fn gather(
        relay: &RelayState,
        kinds: &Kinds,
        viewer: Audience,
        span: Span,
    ) -> Result<Self, StoreError> {
        let all = set_of(relay.index.snapshot(&[Filter::default()], usize::MAX))?;
        let now = relay.service.now();
        let peers = relay.service.peers.all(now);
        let (set, peers) = match viewer {
            Audience::Operator => (all, peers),
            Audience::Anyone => {
                let stranger = store::Viewer::new(relay.private_kinds.clone(), []);
                let public = relay.index.snapshot_for(&stranger, &[Filter::default()], usize::MAX);
                let public = set_of(public)?;
                let shown = |peer| public_part(peer, &all, &public);
                let peers = peers.into_iter().map(shown).collect();
                (public, peers)
            }
        };
        let mut kinds = kinds.get(relay.index.store().as_ref())?;
        if viewer == Audience::Anyone {
            let is_public = |it: &&(u16, u64)| !relay.private_kinds.contains(it.0);
            kinds = Arc::new(kinds.iter().filter(is_public).copied().collect());
        }
        let days = days(&set, &peers, now, span);
        Ok(Self {
            now,
            events: set.len(),
            kinds,
            connections: gauge(&relay.service.metrics.connections),
            neg_sessions: gauge(&relay.service.metrics.neg_sessions),
            held: held(&set, days),
            span,
            days,
            peers,
        })
    }
}

fn set_of(snapshot: Result<Slice, SnapshotError>) -> Result<Slice, StoreError> {
    snapshot.map_err(|error| match error {
        SnapshotError::Store(error) => error,
        _ => StoreError::Closed,
    })
}

/// The public part of a peer's state: whether it is reached and equal, and the days on which it
/// lacks public events. The number of moved events and the peer's own events would reveal private
/// events.
fn public_part(peer: PeerStatus, all: &Slice, public_set: &Slice) -> PeerStatus {
    let public = |last| LastSync { tally: Tally::default(), differs: BTreeMap::new(), ..last };
    let last_sync = peer.last_sync.map(public);
    let look = peer.look.as_deref().and_then(|look| public_look(look, all, public_set));
    PeerStatus {
        last_sync,
        totals: Tally::default(),
        have: 0,
        need: 0,
        differs_since: None,
        look: look.map(Arc::new),
        ..peer
    }
}

/// The days of a comparison on which we store nothing private, so that no private events differ;
/// `None` if there were differences and none of them may be shown.
fn public_look(look: &DriftLook, all: &Slice, public: &Slice) -> Option<DriftLook> {
    let before = |set: &Slice, second: u64| set.lower_bound(&Item::new(second, [0; 32]));
    let count = |set: &Slice, from: u64, to: u64| before(set, to).saturating_sub(before(set, from));
    let is_public = |place: usize, day: &DayDiffers| {
        let stands_for_older = place == 0 && look.days.len() >= MOST_LOOK_DAYS;
        let from = if stands_for_older { 0 } else { day.day };
        let to = day.day.saturating_add(DAY_S);
        day.have > 0 && count(all, from, to) == count(public, from, to)
    };
    let days: Vec<DayDiffers> = look
        .days
        .iter()
        .enumerate()
        .filter(|(place, day)| is_public(*place, day))
        .map(|(_, day)| DayDiffers { need: 0, ..*day })
        .collect();
    let shown = DriftLook { at: look.at, days, error: look.error.clone() };
    (look.days.is_empty() || !shown.days.is_empty()).then_some(shown)
}

fn gauge(gauge: &IntGauge) -> u64 {
    u64::try_from(gauge.get()).unwrap_or(0)
}

/// The days of the range, and all days on which a peer differs. A range ends with the newest event
/// that is not in the future; the full range is from the oldest to the newest event.
fn days(set: &Slice, peers: &[PeerStatus], now: u64, span: Span) -> Days {
    let second = |rank: Option<usize>| rank.and_then(|rank| set.item(rank)).map(|it| it.created_at);
    let oldest = second(Some(0)).unwrap_or(now);
    let newest = second(set.len().checked_sub(1)).unwrap_or(now);
    let present = set.lower_bound(&Item::new(now.saturating_add(1), [0; 32])).checked_sub(1);
    let present = second(present).unwrap_or(now);
    let differing = peers.iter().filter_map(|peer| peer.look.as_ref()).flat_map(|it| &it.days);
    let (first, last) =
        differing.fold((u64::MAX, 0), |(first, last), it| (it.day.min(first), it.day.max(last)));
    let last = last.max(if span == Span::All { newest } else { present });
    let back = |days: u64| last.saturating_sub((days - 1) * DAY_S);
    let begin = match span {
        Span::Days90 => back(90).max(oldest),
        Span::Year => back(365).max(oldest),
        Span::All => oldest,
    };
    Days::new(begin.min(back(LEAST_DAYS)).min(first), last, MOST_BARS)
}

/// The number of events in the set on each of the days.
fn held(set: &Slice, days: Days) -> Vec<Bar> {
    let ranks: Vec<usize> =
        days.edges().map(|edge| set.lower_bound(&Item::new(edge, [0; 32]))).collect();
    let mut bars = days.bars();
    for (bar, ranks) in bars.iter_mut().zip(ranks.windows(2)) {
        if let [from, to] = ranks {
            bar.held = to.saturating_sub(*from) as u64;
        }
    }
    bars
}
