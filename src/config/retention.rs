//! `[retention]`: which events are kept, and for how long.

use super::section::section;
use crate::store::{KindRange, Retention, RetentionRule};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

section! {
    /// `[retention]`
    #[derive(Default)]
    pub struct RetentionConfig {
        /// The rules by age and by count.
        #[serde(deserialize_with = "rules")]
        pub rules: Vec<RetentionRule> => OnReload,
        /// Maximum size of the store's used space, in MiB; 0 for no limit.
        pub store_mb: u64 where 0..=1_073_741_824 => OnReload,
    }
}

impl RetentionConfig {
    /// The rules in the form of the store.
    pub fn retention(&self) -> Retention {
        let bytes = Some(self.store_mb << 20).filter(|bytes| *bytes > 0);
        Retention { rules: self.rules.clone(), store_bytes: bytes }
    }
}

/// Maximum number of rules.
const MOST_RULES: usize = 1_000;

/// A rule as the file has it. An empty list of kinds is no rule for all kinds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleInFile {
    kinds: Option<Vec<KindRange>>,
    max_age_s: Option<u64>,
    max_per_author: Option<u32>,
}

impl RuleInFile {
    /// The fault of the rule, if it has one.
    fn fault(&self) -> Option<&'static str> {
        let is_reversed =
            |kinds: &KindRange| matches!(kinds, KindRange::FromTo(first, last) if first > last);
        if self.max_age_s.is_none() && self.max_per_author.is_none() {
            return Some("a rule has to say max_age_s, max_per_author, or both");
        }
        if self.max_age_s == Some(0) || self.max_per_author == Some(0) {
            return Some(
                "a rule that keeps nothing: put refuse-kind lines into the ban list instead",
            );
        }
        match &self.kinds {
            Some(kinds) if kinds.is_empty() => {
                Some("kinds: is empty; leave it out for a rule about all kinds except 5 and 62")
            }
            Some(kinds) if kinds.iter().any(is_reversed) => {
                Some("kinds: a range begins with its lower kind, such as [9734, 9735]")
            }
            _ => None,
        }
    }
}

fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RetentionRule>, D::Error> {
    let rules = Vec::<RuleInFile>::deserialize(deserializer)?;
    if rules.len() > MOST_RULES {
        return Err(D::Error::custom(format!("more than {MOST_RULES} rules")));
    }
    if let Some(fault) = rules.iter().find_map(RuleInFile::fault) {
        return Err(D::Error::custom(fault));
    }
    let rule = |RuleInFile { kinds, max_age_s, max_per_author }| RetentionRule {
        kinds: kinds.unwrap_or_default(),
        max_age_s,
        max_per_author,
    };
    Ok(rules.into_iter().map(rule).collect())
}
