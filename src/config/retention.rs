//! `[retention]`: which events are kept, and for how long.

use super::section::section;
use crate::store::{Retention, RetentionRule};
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

fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RetentionRule>, D::Error> {
    let rules = Vec::<RetentionRule>::deserialize(deserializer)?;
    if rules.len() > MOST_RULES {
        return Err(D::Error::custom(format!("more than {MOST_RULES} rules")));
    }
    for rule in &rules {
        if rule.max_age_s.is_none() && rule.max_per_author.is_none() {
            return Err(D::Error::custom("a rule has to say max_age_s, max_per_author, or both"));
        }
        if rule.max_age_s == Some(0) || rule.max_per_author == Some(0) {
            let text = "a rule that keeps nothing: put refuse-kind lines into the ban list instead";
            return Err(D::Error::custom(text));
        }
    }
    Ok(rules)
}
