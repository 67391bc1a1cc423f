//! The keys in which two configurations differ.

use super::Config;
use std::collections::BTreeMap;
use toml::Value;

impl Config {
    /// The keys with different values, such as `limits.filters`, in order. All peers together are
    /// the key `peer`.
    pub fn differing_keys(&self, other: &Self) -> Vec<String> {
        let (mine, mut theirs) = (values(self), values(other));
        let mut keys: Vec<String> = mine
            .into_iter()
            .filter(|(key, value)| theirs.remove(key).as_ref() != Some(value))
            .map(|(key, _)| key)
            .collect();
        keys.extend(theirs.into_keys());
        keys.sort_unstable();
        keys
    }
}

/// Every value, by section and key.
pub(super) fn values(config: &Config) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    // A configuration is always a table, because it was parsed from one.
    for (section, value) in toml::Table::try_from(config).unwrap_or_default() {
        match value {
            Value::Table(table) => {
                found.extend(
                    table.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)),
                );
            }
            value => drop(found.insert(section, value)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn keys_that_differ_are_named_with_their_section() {
        let read = |text: &str| Config::parse(text, Path::new("a.toml")).unwrap();
        let default = Config::default();
        assert!(default.differing_keys(&default).is_empty());
        let other =
            read("[limits]\nfilters = 3\n[relay]\nname = \"x\"\n[[peer]]\nurl = \"ws://a\"");
        let keys = ["limits.filters", "peer", "relay.name"];
        assert_eq!(default.differing_keys(&other), keys);
        assert_eq!(other.differing_keys(&default), keys);
    }
}
