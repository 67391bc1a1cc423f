//! Where a store on a server is: its URL, and what of it may be shown.

use negsync_store::StoreError;
use std::fmt;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// How long a connection may take to be made, where the URL does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may be silent on the level of TCP.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// A longer password file is not read.
const PASSWORD_FILE_BYTES: u64 = 1 << 20;

/// What each session is set to. No reading takes longer than the timeout, in milliseconds, whoever waits for it.
const SESSION: &str = "-c search_path=negsync -c jit=off -c statement_timeout=600000";

/// The address of a store: a URL as libpq takes it. It is shown without its password.
#[derive(Clone)]
pub struct Address {
    config: Config,
}

impl Address {
    /// Reads `postgres://user@host:port/database?key=value`. A password that the URL does not have is
    /// taken from `PGPASSWORD`, or else from the file of `PGPASSFILE` or `~/.pgpass`.
    ///
    /// # Errors
    /// When it is no such URL, or asks for what is not supported: TLS.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        if !is_address(url) {
            let expected = "expected postgres://user@host/database".to_owned();
            return Err(StoreError::Address(expected));
        }
        refuse_encryption(url)?;
        // The error's own text may hold parts of the URL.
        let mut config: Config = url.parse().map_err(|_| {
            StoreError::Address("not a URL of PostgreSQL: postgres://user@host/database".to_owned())
        })?;
        if config.get_ssl_mode() == SslMode::Require {
            return Err(no_encryption());
        }
        config.ssl_mode(SslMode::Disable);
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("negsync");
        }
        // A network that is cut shows after so long, whoever waits for an answer.
        config.tcp_user_timeout(SILENCE_TIMEOUT);
        config.keepalives_idle(SILENCE_TIMEOUT / 3).keepalives_interval(SILENCE_TIMEOUT / 3);
        config.keepalives_retries(2);
        let options = config.get_options().unwrap_or_default();
        config.options(format!("{options} {SESSION}"));
        if config.get_user().is_none() {
            let user = std::env::var("PGUSER").or_else(|_| std::env::var("USER"));
            config.user(user.unwrap_or_else(|_| "postgres".to_owned()));
        }
        if config.get_password().is_none()
            && let Some(password) = password_beside(&config)
        {
            config.password(password);
        }
        Ok(Self { config })
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }
}

/// Whether a store's name is the URL of one on a server, and not the path of a file.
pub fn is_address(store: &str) -> bool {
    store.starts_with("postgres://") || store.starts_with("postgresql://")
}

fn no_encryption() -> StoreError {
    StoreError::Address(
        "sslmode=require and above are not supported yet; reach the server by a Unix socket, over \
         loopback or through a tunnel, with sslmode=disable or prefer"
            .to_owned(),
    )
}

fn refuse_encryption(url: &str) -> Result<(), StoreError> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let asks = |parameter: &str| {
        ["sslmode=verify-ca", "sslmode=verify-full", "sslmode=require"].contains(&parameter)
    };
    if parameters.split('&').any(asks) { Err(no_encryption()) } else { Ok(()) }
}

/// The password of the environment, or of the password file.
fn password_beside(config: &Config) -> Option<String> {
    if let Ok(password) = std::env::var("PGPASSWORD") {
        return Some(password);
    }
    let file = std::env::var_os("PGPASSFILE").map(std::path::PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| std::path::PathBuf::from(home).join(".pgpass"))
    })?;
    if std::fs::metadata(&file).ok()?.len() > PASSWORD_FILE_BYTES {
        return None;
    }
    let text = std::fs::read_to_string(file).ok()?;
    let host = config.get_hosts().first().map_or("localhost".to_owned(), |host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(_) => "localhost".to_owned(),
    });
    let port = config.get_ports().first().map_or(5_432, |port| *port).to_string();
    let user = config.get_user().unwrap_or_default();
    let wanted = [host.as_str(), &port, config.get_dbname().unwrap_or(user), user];
    text.lines().find_map(|line| password_of(line, &wanted))
}

/// The password of a line `host:port:database:user:password`, where it is of what is wanted.
fn password_of(line: &str, wanted: &[&str; 4]) -> Option<String> {
    let mut fields = Vec::new();
    let (mut field, mut is_escaped) = (String::new(), false);
    for letter in line.chars() {
        match letter {
            '\\' if !is_escaped => is_escaped = true,
            ':' if !is_escaped && fields.len() < wanted.len() => {
                fields.push(std::mem::take(&mut field));
            }
            letter => {
                field.push(letter);
                is_escaped = false;
            }
        }
    }
    let fits = fields.len() == wanted.len()
        && fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
    fits.then_some(field)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.config;
        write!(f, "postgres://{}@", config.get_user().unwrap_or_default())?;
        for (place, host) in config.get_hosts().iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            match host {
                Host::Tcp(name) => f.write_str(name)?,
                Host::Unix(folder) => write!(f, "{}", folder.display())?,
            }
            let ports = config.get_ports();
            if let Some(port) = ports.get(place).or_else(|| ports.first()) {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let address = Address::parse("postgres://me:secret@db.example:5433/events").unwrap();
        assert_eq!(address.to_string(), "postgres://me@db.example:5433/events");
        assert!(!format!("{address:?}").contains("secret"));
        let error = Address::parse("postgres://me:secret@db.example:port/events").unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn what_asks_for_encryption_is_refused() {
        for mode in ["require", "verify-ca", "verify-full"] {
            let url = format!("postgres://me@db.example/events?sslmode={mode}");
            let error = Address::parse(&url).unwrap_err().to_string();
            assert!(error.contains("sslmode"), "{error}");
        }
        assert!(Address::parse("postgres://me@db.example/events?sslmode=prefer").is_ok());
        assert!(Address::parse("relay.sqlite").is_err());
    }

    #[test]
    fn a_password_file_is_read_as_libpq_reads_it() {
        let wanted = ["db", "5432", "events", "me"];
        let of = |line| password_of(line, &wanted);
        assert_eq!(of("db:5432:events:me:a:b"), Some("a:b".to_owned()));
        assert_eq!(of(r"*:*:*:me:a\:b\\"), Some(r"a:b\".to_owned()));
        assert_eq!(of("db:5432:other:me:a"), None);
        assert_eq!(of("# a remark"), None);
    }
}
