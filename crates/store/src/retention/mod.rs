//! Retention: which events the operator keeps, and for how long. Rules go by age, by count and by the
//! size of the store. What they remove is kept out: by age, because the rule says so of any event that
//! comes; else by a floor, below which events are refused.
//!
//! The writer removes in small steps between its batches. The rules stand in the store as well, so that
//! whoever opens it without a configuration goes by them.

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

/// How a sync names the reason why such an event is not moved.
pub const RETIRED: &str = "past retention";

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// An event goes when one of the rules says so.
    pub rules: Vec<RetentionRule>,
    /// The most bytes that the store's file may use; the oldest events go first. `None` for any number.
    pub store_bytes: Option<u64>,
}

/// A rule for events of some kinds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionRule {
    /// The kinds; empty for all but requests to delete (5) and to vanish (62).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindRange>,
    /// How old an event may be by its `created_at`, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// How many events of each author and kind are kept, the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_author: Option<u32>,
}

impl Retention {
    /// Whether everything is kept.
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

    /// How many events of an author are kept of a kind.
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
    /// Whether events of the kind fall under the rule.
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

/// Requests stay: what they keep out would come back.
pub(super) fn is_removed_by_size(kind: u16) -> bool {
    ![DELETION, VANISH].contains(&kind)
}
