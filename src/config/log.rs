//! `[log]`

use super::section::section;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

section! {
    /// `[log]`
    pub struct LogConfig {
        /// A level, or directives by module.
        #[serde(deserialize_with = "log_level")]
        pub level: String => OnReload,
        /// The format of a line.
        pub format: LogFormat => Restart,
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Validates the level, because `tracing` would take any word for the name of a module.
fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let text = String::deserialize(deserializer)?;
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level).trim();
        if !LEVELS.contains(&level) {
            return Err(D::Error::custom(format!("{level:?} is not one of {}", LEVELS.join(", "))));
        }
    }
    Ok(text)
}
