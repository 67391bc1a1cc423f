//! Retention: the events that the operator keeps, and for how long. Rules limit age, count and the
//! size of the store. Removed events are kept out: by age, because the rule applies to each
//! incoming event too; otherwise by a floor, below which events are refused.
//!
//! The writer removes events in small steps between its batches. The rules are recorded in the
//! store too, so that they apply when it is opened without a configuration.

mod floors;
mod preview;
mod sweep;
mod window;

pub(super) use floors::find;
pub use preview::RuleMatches;
pub(super) use preview::preview;
pub(super) use sweep::{Retaining, retire};
pub use window::RetentionWindow;
pub(super) use window::window;

use negsync_nostr::kinds::{DELETION, KindRange, VANISH};
use serde::{Deserialize, Serialize};

/// The reason by which a sync reports that such an event is not moved.
pub const RETIRED: &str = "past retention";

/// The rules of retention.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// An event is removed when any of the rules covers it.
    pub rules: Vec<RetentionRule>,
    /// Maximum number of bytes in use in the store's file; the oldest events are removed first.
    /// `None` for no limit.
    pub store_bytes: Option<u64>,
}

/// A rule for events of some kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionRule {
    /// The kinds; if empty, all except requests to delete (5) and to vanish (62).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindRange>,
    /// Maximum age of an event by its `created_at`, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// Number of the newest events of each author and kind that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_author: Option<u32>,
}

impl Retention {
    /// Maximum number of authors and kinds that an engine's writer remembers for a check of their number
    /// of events.
    pub const MOST_SUSPECTS: usize = 65_536;

    /// Whether there are no rules: everything is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.store_bytes.is_none()
    }

    /// The rules as the store keeps them.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// As [`Retention::to_text`] has written them; none where they cannot be read.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The second before which events of a kind are too old.
    #[must_use]
    pub fn oldest(&self, kind: u16, now: u64) -> Option<u64> {
        let ages = self.rules.iter().filter(|rule| rule.covers(kind));
        ages.filter_map(|rule| rule.max_age_s).min().map(|age| now.saturating_sub(age))
    }

    /// The number of events of a kind that are kept for each author.
    #[must_use]
    pub fn per_author(&self, kind: u16) -> Option<u32> {
        let rules = self.rules.iter().filter(|rule| rule.covers(kind));
        rules.filter_map(|rule| rule.max_per_author).min()
    }

    /// Whether a rule counts events.
    #[must_use]
    pub fn counts(&self) -> bool {
        self.rules.iter().any(|rule| rule.max_per_author.is_some())
    }

    /// Whether a rule goes by age.
    #[must_use]
    pub fn ages(&self) -> bool {
        self.rules.iter().any(|rule| rule.max_age_s.is_some())
    }
}

impl RetentionRule {
    /// Whether the rule applies to the kind.
    #[must_use]
    pub fn covers(&self, kind: u16) -> bool {
        match self.kinds.as_slice() {
            [] => is_removed_by_size(kind),
            kinds => kinds.iter().any(|range| match *range {
                KindRange::One(one) => one == kind,
                KindRange::FromTo(first, last) => (first..=last).contains(&kind),
            }),
        }
    }
}

/// Requests are kept: the events they keep out would come back.
pub(super) fn is_removed_by_size(kind: u16) -> bool {
    ![DELETION, VANISH].contains(&kind)
}
