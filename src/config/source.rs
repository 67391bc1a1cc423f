//! The sources of a configuration: the defaults, overridden by a file, overridden by environment
//! variables.

use super::difference::values;
use super::error::line_at;
use super::{Config, ConfigError, DatabaseUrl};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The prefix of environment variables that set keys: `NEGSYNC__STORE__PATH` sets `store.path`.
const PREFIX: &str = "NEGSYNC__";
/// Minimum similarity of an unknown and a known name for a hint, from 0 to 1.
const LIKENESS: f64 = 0.85;

/// The source of a key's value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueOrigin {
    /// The default.
    #[default]
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
}

/// A configuration with the source of each value.
#[derive(Debug, Clone)]
pub struct LoadedConfig {
    /// The configuration.
    pub config: Config,
    // By key, such as `limits.filters`; without keys that have their default.
    origins: BTreeMap<String, ValueOrigin>,
    // The text of the file, for the lines of errors.
    text: String,
    path: PathBuf,
}

impl LoadedConfig {
    /// The source of a key's value; the key is written as in `limits.filters`. All peers together
    /// are the key `peer`.
    pub fn origin(&self, key: &str) -> ValueOrigin {
        self.origins.get(key).cloned().unwrap_or_default()
    }

    /// An error in a `key` of the `[[peer]]` with index `place`, for checks that only a sync can
    /// make.
    pub fn wrong_peer(&self, place: usize, key: &str, message: String) -> ConfigError {
        match self.origin("peer") {
            ValueOrigin::Environment { variable } => {
                ConfigError::Variable { variable, message: format!("{key}: {message}") }
            }
            _ => ConfigError::in_peer(&self.text, &self.path, place, key, message),
        }
    }

    /// If both a file and a database are configured, keeps the one that a variable sets.
    fn choose_store(&mut self) -> Result<(), ConfigError> {
        if self.config.store.url.is_empty() {
            return Ok(());
        }
        let message = "store.path is set as well; remove one of the two".to_owned();
        match (self.origin("store.path"), self.origin("store.url")) {
            (ValueOrigin::Environment { .. }, ValueOrigin::Environment { variable }) => {
                Err(ConfigError::Variable { variable, message })
            }
            (ValueOrigin::File { .. }, ValueOrigin::File { path, line }) => {
                Err(ConfigError::Invalid { path, line, key: "url: ".to_owned(), message })
            }
            (ValueOrigin::Environment { .. }, _) => {
                self.config.store.url = DatabaseUrl::default();
                self.origins.remove("store.url");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The error for an event limit above the message limit: names the variable, or else the line.
    fn wrong_limit(&self, message: String) -> ConfigError {
        let keys = ["limits.event_bytes", "limits.message_bytes"];
        let variable = keys.into_iter().find_map(|key| match self.origin(key) {
            ValueOrigin::Environment { variable } => Some(variable),
            _ => None,
        });
        match variable {
            Some(variable) => ConfigError::Variable { variable, message },
            None => ConfigError::of_event_bytes(&self.text, &self.path, message),
        }
    }
}

impl Config {
    /// Reads a configuration file, without environment variables: see [`Config::load`].
    ///
    /// # Errors
    /// [`ConfigError`] with the line and the key, when a key is unknown or a value is invalid.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, path)
    }

    /// Parses a configuration from text; `path` is only for errors.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::load_text(text, path, [])?.config)
    }

    /// Loads a configuration: the defaults, overridden by the file, if there is one, overridden by
    /// the variables. `NEGSYNC__LIMITS__FILTERS` sets `limits.filters`. A list is written in TOML
    /// or with commas between its values; `NEGSYNC__PEER` is a TOML array of tables. Variables
    /// without the prefix `NEGSYNC__` are ignored.
    ///
    /// # Errors
    /// [`ConfigError`] with the line and the key of the file, or the variable's name, when a key is
    /// unknown or a value is invalid.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<LoadedConfig, ConfigError> {
        let text = file.map(read_text).transpose()?.unwrap_or_default();
        Self::load_text(&text, file.unwrap_or(Path::new("relay.toml")), variables)
    }

    fn load_text(
        text: &str,
        path: &Path,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<LoadedConfig, ConfigError> {
        let mut config = parse_file(text, path)?;
        let mut origins = lines(text, path);
        // The text was parsed before.
        let mut table: Table = toml::from_str(text).unwrap_or_default();
        for (key, variable, text) in overrides(variables)? {
            let wrong = |message| ConfigError::Variable { variable: variable.clone(), message };
            set(&mut table, &key, &text).map_err(wrong)?;
            config = table
                .clone()
                .try_into()
                .map_err(|error: toml::de::Error| wrong(error.message().trim_end().to_owned()))?;
            origins.insert(key, ValueOrigin::Environment { variable });
        }
        let mut loaded =
            LoadedConfig { config, origins, text: text.to_owned(), path: path.to_owned() };
        loaded.choose_store()?;
        if let Some(message) = loaded.config.limits.contradiction() {
            return Err(loaded.wrong_limit(message));
        }
        match super::sync::repeated_peer(&loaded.config.peers) {
            Some((place, message)) => Err(loaded.wrong_peer(place, "url", message)),
            None => Ok(loaded),
        }
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

/// Parses each value by itself; contradictions between values are checked later.
fn parse_file(text: &str, path: &Path) -> Result<Config, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = line_at(text, error.span().map_or(0, |span| span.start));
        let key = text
            .lines()
            .nth(line - 1)
            .and_then(|line| line.split_once('='))
            .map_or(String::new(), |(key, _)| format!("{}: ", key.trim()));
        let message = error.message().to_owned();
        ConfigError::Invalid { path: path.to_owned(), line, key, message }
    })
}

/// The name of the variable that sets a key.
fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// A variable as it is often written; it would have no effect.
fn one_underscore(variable: &str) -> String {
    variable.replace("__", "_")
}

/// The variables that set keys: key, variable and value, ordered by variable.
fn overrides(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String, String)>, ConfigError> {
    let known: BTreeMap<String, String> =
        Config::keys().into_iter().map(|key| (variable_of(&key.name), key.name)).collect();
    let mut found = Vec::new();
    for (variable, text) in variables {
        let variable = variable.to_string_lossy().into_owned();
        if !variable.starts_with(&one_underscore(PREFIX)) {
            continue;
        }
        let Some(key) = known.get(&variable) else {
            let meant = one_underscore(&variable);
            let message = match known.keys().find(|name| one_underscore(name) == meant) {
                Some(name) => format!("its parts need two underscores between them: {name}"),
                None if variable.starts_with(PREFIX) => unknown(&variable, known.keys()),
                None => continue,
            };
            return Err(ConfigError::Variable { variable, message });
        };
        let Ok(text) = text.into_string() else {
            let message = "the value is not UTF-8".to_owned();
            return Err(ConfigError::Variable { variable, message });
        };
        found.push((key.clone(), variable, text));
    }
    found.sort_unstable();
    Ok(found)
}

fn unknown<'a>(variable: &str, known: impl Iterator<Item = &'a String>) -> String {
    let alike = known
        .map(|name| (strsim::jaro_winkler(&variable[PREFIX.len()..], &name[PREFIX.len()..]), name))
        .filter(|(likeness, _)| *likeness >= LIKENESS)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    match alike {
        Some((_, name)) => format!("there is no such key; did you mean {name}?"),
        None => format!(
            "there is no such key: each key of relay.toml has a variable, such as {}",
            variable_of("store.path")
        ),
    }
}

/// Sets a value in the table, with the type of the key's default.
fn set(table: &mut Table, key: &str, text: &str) -> Result<(), String> {
    let default = values(&Config::default()).remove(key);
    let value = match default {
        Some(Value::String(_)) => text.into(),
        Some(Value::Integer(_)) => integer(text),
        Some(Value::Boolean(_)) => match text.trim() {
            "true" => true.into(),
            "false" => false.into(),
            _ => return Err(format!("must be true or false, not {text:?}")),
        },
        Some(Value::Array(default)) => list(text, default.first().is_some_and(Value::is_integer))?,
        // The peers: there are none by default.
        _ => toml_value(text)?,
    };
    match key.split_once('.') {
        Some((section, key)) => {
            let section = table.entry(section).or_insert_with(|| Table::new().into());
            if let Value::Table(section) = section {
                section.insert(key.to_owned(), value);
            }
        }
        None => drop(table.insert(key.to_owned(), value)),
    }
    Ok(())
}

/// A number, or the text itself, which the parser then refuses with the key's bounds.
fn integer(text: &str) -> Value {
    text.trim().replace('_', "").parse::<i64>().map_or_else(|_| text.into(), Value::from)
}

fn list(text: &str, of_integers: bool) -> Result<Value, String> {
    let text = text.trim();
    if text.starts_with('[') {
        return toml_value(text);
    }
    let values = text.split(',').map(str::trim).filter(|value| !value.is_empty());
    Ok(Value::Array(if of_integers {
        values.map(integer).collect()
    } else {
        values.map(Value::from).collect()
    }))
}

fn toml_value(text: &str) -> Result<Value, String> {
    let parsed: Result<Table, _> = toml::from_str(&format!("value = {}", text.trim()));
    let wrong = |error: toml::de::Error| format!("is not TOML: {}", error.message().trim_end());
    parsed.map_err(wrong)?.remove("value").ok_or_else(|| "is not TOML".to_owned())
}

/// The line of each key that the text sets.
fn lines(text: &str, path: &Path) -> BTreeMap<String, ValueOrigin> {
    let mut found = BTreeMap::new();
    let Ok(table) = toml::de::DeTable::parse(text) else { return found };
    let origin =
        |start: usize| ValueOrigin::File { path: path.to_owned(), line: line_at(text, start) };
    for (section, value) in table.get_ref() {
        match value.get_ref().as_table() {
            Some(keys) => found.extend(keys.iter().map(|(key, _)| {
                let name = format!("{}.{}", section.get_ref(), key.get_ref());
                (name, origin(key.span().start))
            })),
            None => drop(found.insert(section.get_ref().to_string(), origin(section.span().start))),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: Option<&Path>, variables: &[(&str, &str)]) -> Result<LoadedConfig, ConfigError> {
        Config::load(file, variables.iter().map(|(name, value)| (name.into(), value.into())))
    }

    /// Each key, set to its default by its variable, overrides a file with another value.
    #[test]
    fn every_key_has_a_variable_that_wins_over_the_file() {
        let defaults = values(&Config::default());
        for key in Config::keys() {
            let (variable, expected) = (variable_of(&key.name), defaults.get(&key.name));
            let text = match expected {
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
                None => r#"[{ url = "ws://a" }]"#.to_owned(),
            };
            let loaded = load(None, &[(&variable, &text)]).unwrap();
            assert_eq!(loaded.origin(&key.name), ValueOrigin::Environment { variable });
            if expected.is_some() {
                assert_eq!(loaded.config, Config::default(), "{}", key.name);
            } else {
                assert_eq!(loaded.config.peers.len(), 1);
            }
        }
    }

    #[test]
    fn a_value_says_where_it_comes_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        let text = "[limits]\nfilters = 3\n\nsubscriptions = 4\n[[peer]]\nurl = \"ws://a\"\n";
        std::fs::write(&path, text).unwrap();
        let loaded =
            load(Some(&path), &[("NEGSYNC__LIMITS__FILTERS", "5"), ("HOME", "/")]).unwrap();
        assert_eq!(loaded.config.limits.filters, 5);
        assert_eq!(loaded.config.limits.subscriptions, 4);
        let line = |line| ValueOrigin::File { path: path.clone(), line };
        for (key, origin) in [
            (
                "limits.filters",
                ValueOrigin::Environment { variable: "NEGSYNC__LIMITS__FILTERS".into() },
            ),
            ("limits.subscriptions", line(4)),
            ("peer", line(5)),
            ("limits.event_tags", ValueOrigin::Default),
        ] {
            assert_eq!(loaded.origin(key), origin, "{key}");
        }
    }

    #[test]
    fn lists_are_toml_or_separated_by_commas() {
        for text in ["4, 1059", "[4, 1059]", "4,1059,"] {
            let loaded = load(None, &[("NEGSYNC__AUTH__PRIVATE_KINDS", text)]).unwrap();
            assert_eq!(loaded.config.auth.private_kinds, [4, 1059]);
        }
        let text = "127.0.0.1,10.0.0.0/8";
        let loaded = load(None, &[("NEGSYNC__CONNECTIONS__TRUSTED_PROXIES", text)]).unwrap();
        assert_eq!(loaded.config.connections.trusted_proxies.len(), 2);
        let loaded = load(None, &[("NEGSYNC__METRICS__ALLOW", "")]).unwrap();
        assert!(loaded.config.metrics.allow.is_empty());
    }

    #[test]
    fn a_bad_variable_is_named_with_what_is_wrong() {
        for (variable, text, said) in [
            ("NEGSYNC__STOR__PATH", "a", "did you mean NEGSYNC__STORE__PATH?"),
            ("NEGSYNC__LIMITS__FILTER", "1", "did you mean NEGSYNC__LIMITS__FILTERS?"),
            ("NEGSYNC__QWERTY", "1", "such as NEGSYNC__STORE__PATH"),
            ("NEGSYNC__STORE__PATH", "", "must name a file"),
            ("NEGSYNC__LIMITS__FILTERS", "many", "must be a whole number from 1 to 1000"),
            ("NEGSYNC__LIMITS__FILTERS", "0", "0 is not between 1 and 1000"),
            ("NEGSYNC__PAGE__ENABLED", "yes", "must be true or false"),
            ("NEGSYNC__RELAY__LISTEN", "here", "must be an address and a port"),
            ("NEGSYNC__PEER", "[{ url = 1 }]", "invalid type"),
            ("NEGSYNC__PEER", "[{", "is not TOML"),
            ("NEGSYNC__LIMITS__EVENT_BYTES", "4194305", "lower event_bytes"),
        ] {
            let error = load(None, &[(variable, text)]).unwrap_err().to_string();
            let begin = format!("environment variable {variable}: ");
            assert!(error.starts_with(&begin) && error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_bad_file_is_refused_with_key_and_line() {
        for (text, line, key) in [
            ("[relay]\nnam = \"x\"", 2, "nam"),
            ("[limits]\n\nfilters = 0", 3, "filters"),
            ("[limits]\nfilters = \"many\"", 2, "filters"),
            ("[negentropy]\nframe_limit_bytes = 100", 2, "frame_limit_bytes"),
            ("[relay]\nlisten = \"here\"", 2, "listen"),
            ("[relay]\npubkey = \"npub\"", 2, "pubkey"),
            ("[relay]\nicon = \"icon.png\"", 2, "icon"),
            ("[relay]\nterms_of_service = \"javascript:alert(1)\"", 2, "terms_of_service"),
            ("[store]\nsynchronous = \"off\"", 2, "synchronous"),
            ("[store]\npath = \"\"", 2, "path"),
            ("[store]\npath = \"postgres://db/events\"", 2, "path"),
            ("[store]\nurl = \"mysql://db/events\"", 2, "url"),
            ("[store]\npath = \"a\"\nurl = \"postgres://db/events\"", 3, "url"),
            ("[auth]\nrelay_url = \"relay.example\"", 2, "relay_url"),
            ("[auth]\nsync_keys = [\"nobody\"]", 2, "sync_keys"),
            ("[auth]\nprivate_kinds = [70000]", 2, "private_kinds"),
            ("[nothing]\nx = 1", 1, "nothing"),
            ("relay = 5", 1, "expected a section, such as [relay]"),
            ("peer = 5", 1, "expected sections that begin with [[peer]]"),
            ("[peer]\nurl = \"ws://a\"", 1, "expected sections that begin with [[peer]]"),
            (
                "[relay]\nhosts = [\"https://a.example\"]",
                2,
                "hosts: \"https://a.example\" is not a host",
            ),
            ("[relay]\nhosts = [\"a.example:7777\"]", 2, "is not a host name"),
            ("[retention]\nrules = [{ kinds = [], max_age_s = 9 }]", 2, "kinds: is empty"),
            ("[retention]\nrules = [{ kinds = [[9, 5]], max_age_s = 9 }]", 2, "lower kind"),
            ("[retention]\nrules = [{ kinds = [\"x\"], max_age_s = 9 }]", 2, "a kind such as 7"),
            ("[[peer]]\nurl = \"ws://a\"\ndirection = \"in\"", 3, "direction"),
            ("[[peer]]\nurl = \"http://a\"", 2, "url"),
            ("[[peer]]\nurl = \"ws://a\"\n[[peer]]\nurl = \"WS://A:80/\"", 4, "url"),
            ("[[peer]]\nurl = \"ws://a\"\ninterval_s = 0", 3, "interval_s"),
            ("[relay\n", 1, ""),
        ] {
            let error = Config::parse(text, Path::new("a.toml")).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a.toml, line {line}: ")), "{text}: {error}");
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}
