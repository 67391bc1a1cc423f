//! The URL of a database, displayed without its password.

use crate::relay_url::redacted;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt::{self, Debug, Display, Formatter};

/// The schemes of database URLs.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// The URL of a PostgreSQL database, such as `postgres://user@host/database`; empty for none.
///
/// [`Display`] and [`Debug`] leave out the login and the values of parameters, which may contain a
/// password; [`DatabaseUrl::expose`] and [`Serialize`] do not.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// Accepts a text with a scheme of database URLs; `None` for any other. The rest is checked
    /// when the database is opened.
    pub fn parse(text: &str) -> Option<Self> {
        SCHEMES.iter().any(|scheme| text.starts_with(scheme)).then(|| Self(text.to_owned()))
    }

    /// Whether no database is configured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The URL with its password, for the connection.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Display for DatabaseUrl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted(&self.0))
    }
}

impl Debug for DatabaseUrl {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self::default());
        }
        // The error must not contain the text, which may have a password.
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom("must be postgres://user@host/database, or empty"))
    }
}

#[cfg(test)]
mod tests {
    use super::DatabaseUrl;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://db,other:5433/events", "postgres://db,other:5433/events"),
            ("postgresql://relay:pass@db/events", "postgresql://...@db/events"),
            ("postgres://relay:p@ss/w:ord@db:5433/events", "postgres://...@db:5433/events"),
            ("postgres:///events?password=pass", "postgres:///events?password=..."),
        ] {
            let url = DatabaseUrl::parse(url).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("{shown:?}"));
        }
        assert_eq!(DatabaseUrl::parse("events.sqlite"), None);
        assert_eq!(DatabaseUrl::default().to_string(), "");
    }
}
