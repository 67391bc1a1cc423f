//! The address of a store on a server: its URL, and its form for display.

use crate::fault::{fault, within};
use crate::tls::{TlsConnector, TlsMode, TlsStream};
use negsync_nostr::relay_url::{check_login, redacted};
use negsync_store::StoreError;
use percent_encoding::percent_decode_str;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{CancelToken, Client, Config, Connection, Socket};

/// Timeout for connecting to one host, unless the URL sets `connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for a silent server, unless the URL sets `tcp_user_timeout`.
const PATIENCE: Duration = Duration::from_secs(10);
/// The system's minimum time between two probes of a silent connection.
const SHORTEST_KEEPALIVE: Duration = Duration::from_secs(1);
/// Maximum length of a password file.
const PASSWORD_FILE_BYTES: u64 = 1 << 20;
/// The host if neither the URL nor `PGHOST` names one.
const DEFAULT_HOST: &str = "localhost";

/// The settings of each session of a store. The timeout, in milliseconds, applies to every statement. Cursors
/// are planned as read to their end.
const SESSION: &str = "-c search_path=negsync -c jit=off -c cursor_tuple_fraction=1 \
                       -c statement_timeout=600000";

/// The address of a store: a URL as libpq accepts it. It is displayed without its login and the
/// values of its parameters, which may contain a password.
#[derive(Clone)]
pub struct Address {
    // The URL for display.
    shown: String,
    // One for each host of the URL.
    hosts: Vec<Config>,
    // The index of the host that answered last.
    answered: Arc<AtomicUsize>,
    tls: TlsConnector,
    patience: Duration,
}

/// Drives a connection until it ends. Internal: negsync-attached uses it.
#[doc(hidden)]
pub type Served = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

/// A connection that still has to be polled.
pub(crate) type ServedConnection = Connection<Socket, TlsStream>;

impl Address {
    /// Parses `postgres://user@host:port/database?key=value`. Several hosts, separated by commas,
    /// are tried in turn until one accepts writes. Missing parts are taken from `PGHOST`, `PGUSER`,
    /// `PGSSLMODE` and `PGSSLROOTCERT`, and a missing password from `PGPASSWORD` or else from the
    /// file in `PGPASSFILE` or `~/.pgpass`.
    ///
    /// `sslmode` and `sslrootcert` are those of libpq; `sslrootcert=system` means the authorities
    /// that browsers trust, and allows only `sslmode=verify-full`. `tcp_user_timeout` is the
    /// timeout for a silent server, in milliseconds.
    ///
    /// # Errors
    /// [`StoreError`] when it is not such a URL, when the end of its login is ambiguous, or when
    /// the file of `sslrootcert` cannot be read.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        Self::read(url, SESSION, "negsync")
    }

    /// As [`Address::parse`], for a database that is not a store: its sessions keep the server's settings
    /// and have `application` as their name.
    ///
    /// # Errors
    /// As [`Address::parse`].
    pub fn of_other(url: &str, application: &str) -> Result<Self, StoreError> {
        Self::read(url, "", application)
    }

    fn read(url: &str, session: &str, application: &str) -> Result<Self, StoreError> {
        if !is_address(url) {
            let expected = "expected postgres://user@host/database".to_owned();
            return Err(StoreError::Address(expected));
        }
        check_login(url).map_err(|error| StoreError::Address(error.to_string()))?;
        let shown = redacted(url);
        let (url, own) = take_parameters(url);
        // The error's text may contain parts of the URL.
        let mut config: Config = url.parse().map_err(|_| {
            let reason = match wrong_parameter(&url) {
                Some(key) => format!("its parameter {key} is unknown or has a wrong value"),
                None => "not a URL of PostgreSQL: postgres://user@host/database".to_owned(),
            };
            StoreError::Address(reason)
        })?;
        let patience = match own.tcp_user_timeout {
            Some(text) => match text.parse() {
                Ok(0) => PATIENCE,
                Ok(milliseconds) => Duration::from_millis(milliseconds),
                Err(_) => {
                    let expected = "tcp_user_timeout is not a number of milliseconds".to_owned();
                    return Err(StoreError::Address(expected));
                }
            },
            None => PATIENCE,
        };
        let mode = own.sslmode.or_else(|| std::env::var("PGSSLMODE").ok());
        let roots = own.sslrootcert.or_else(|| std::env::var("PGSSLROOTCERT").ok());
        let mode = TlsMode::parse(mode.as_deref(), roots.as_deref())?;
        let tls = TlsConnector::new(mode, roots.as_deref())?;
        complete(&mut config, patience, application);
        let options = config.get_options().unwrap_or_default();
        config.options(format!("{options} {session}"));
        let hosts = (0..config.get_hosts().len()).map(|place| of_host(&config, place, mode));
        let hosts = hosts.collect();
        Ok(Self { shown, hosts, answered: Arc::default(), tls, patience })
    }

    /// Connects to the first host that answers and accepts writes, beginning with the one that did
    /// so last.
    pub(crate) async fn connect(&self) -> Result<(Client, ServedConnection), StoreError> {
        let first = self.answered.load(Ordering::Relaxed);
        let mut refused = StoreError::Address("no host is named".to_owned());
        for turn in 0..self.hosts.len() {
            let place = (first + turn) % self.hosts.len();
            let Some(host) = self.hosts.get(place) else { continue };
            let timeout = host.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
            let connected = async { host.connect(self.tls.clone()).await.map_err(fault) };
            match within(timeout, connected).await {
                Ok(connected) => {
                    self.answered.store(place, Ordering::Relaxed);
                    return Ok(connected);
                }
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Opens a client; the caller drives its connection. Internal: negsync-attached uses it.
    ///
    /// # Errors
    /// [`StoreError`] when no host accepts the connection.
    #[doc(hidden)]
    pub async fn open_client(&self) -> Result<(Client, Served), StoreError> {
        let (client, connection) = self.connect().await?;
        Ok((client, Box::pin(connection)))
    }

    /// Cancels the statement that runs on the connection of the token. Internal: negsync-attached uses it.
    ///
    /// # Errors
    /// [`StoreError`] when the server cannot be reached.
    #[doc(hidden)]
    pub async fn cancel(&self, token: CancelToken) -> Result<(), StoreError> {
        token.cancel_query(self.tls.clone()).await.map_err(fault)
    }

    /// The encryption of connections.
    pub(crate) fn tls(&self) -> &TlsConnector {
        &self.tls
    }

    /// Timeout for requests that the server answers at once.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }
}

/// Whether a store's name is the URL of a database, and not the path of a file.
fn is_address(store: &str) -> bool {
    store.starts_with("postgres://") || store.starts_with("postgresql://")
}

/// Parameters that are handled here and not by the client library.
#[derive(Default)]
struct OwnParameters {
    sslmode: Option<String>,
    sslrootcert: Option<String>,
    tcp_user_timeout: Option<String>,
}

/// The URL without the parameters that are handled here, and those parameters.
fn take_parameters(url: &str) -> (String, OwnParameters) {
    let mut own = OwnParameters::default();
    let Some((before, parameters)) = url.split_once('?') else { return (url.to_owned(), own) };
    let is_left = |parameter: &&str| {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
        let place = match key {
            "sslmode" => &mut own.sslmode,
            "sslrootcert" => &mut own.sslrootcert,
            "tcp_user_timeout" => &mut own.tcp_user_timeout,
            _ => return true,
        };
        *place = Some(value);
        false
    };
    let left: Vec<&str> = parameters.split('&').filter(is_left).collect();
    let mark = if left.is_empty() { "" } else { "?" };
    (format!("{before}{mark}{}", left.join("&")), own)
}

/// The name of the first parameter that the client library does not accept.
fn wrong_parameter(url: &str) -> Option<&str> {
    let (_, parameters) = url.split_once('?')?;
    let accepted =
        |parameter: &str| format!("postgres://host?{parameter}").parse::<Config>().is_ok();
    let wrong = parameters.split('&').find(|parameter| !accepted(parameter))?;
    let key = wrong.split_once('=').map_or(wrong, |(key, _)| key);
    let is_name =
        |key: &str| key.bytes().all(|letter| letter == b'_' || letter.is_ascii_lowercase());
    // Anything else may be a part of a password.
    is_name(key).then_some(key)
}

/// Adds the parts that are missing in the URL.
fn complete(config: &mut Config, patience: Duration, application: &str) {
    let of_environment = |name| std::env::var(name).ok();
    if config.get_hosts().is_empty() {
        let host = of_environment("PGHOST").unwrap_or_else(|| DEFAULT_HOST.to_owned());
        for host in host.split(',') {
            config.host(host);
        }
    }
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name(application);
    }
    // A broken network is detected after this time, whatever is being waited for.
    config.tcp_user_timeout(patience);
    let keepalive = patience.max(SHORTEST_KEEPALIVE);
    config.keepalives_idle(keepalive).keepalives_interval(keepalive);
    config.keepalives_retries(2);
    if config.get_user().is_none() {
        let user = of_environment("PGUSER").or_else(|| of_environment("USER"));
        config.user(user.unwrap_or_else(|| "postgres".to_owned()));
    }
}

/// The configuration for one of the hosts, with its password.
fn of_host(all: &Config, place: usize, mode: TlsMode) -> Config {
    let mut config = Config::new();
    let port = all.get_ports().get(place).or(all.get_ports().first()).copied();
    config.port(port.unwrap_or(5_432));
    let is_local = match all.get_hosts().get(place) {
        Some(Host::Tcp(name)) => {
            config.host(name);
            false
        }
        Some(Host::Unix(folder)) => {
            config.host_path(folder);
            true
        }
        None => false,
    };
    if let Some(address) = all.get_hostaddrs().get(place) {
        config.hostaddr(*address);
    }
    // A Unix socket is not encrypted in any mode.
    config.ssl_mode(if is_local { SslMode::Disable } else { mode.of_client() });
    config.ssl_negotiation(all.get_ssl_negotiation());
    config.channel_binding(all.get_channel_binding());
    config.target_session_attrs(all.get_target_session_attrs());
    if let Some(timeout) = all.get_connect_timeout() {
        config.connect_timeout(*timeout);
    }
    if let Some(timeout) = all.get_tcp_user_timeout() {
        config.tcp_user_timeout(*timeout);
    }
    config.keepalives_idle(all.get_keepalives_idle());
    config.keepalives_interval(all.get_keepalives_interval().unwrap_or(PATIENCE));
    config.keepalives(all.get_keepalives());
    config.keepalives_retries(all.get_keepalives_retries().unwrap_or_default());
    config.options(all.get_options().unwrap_or_default());
    config.application_name(all.get_application_name().unwrap_or_default());
    let user = all.get_user().unwrap_or_default();
    config.user(user).dbname(all.get_dbname().unwrap_or(user));
    match all.get_password() {
        Some(password) => drop(config.password(password)),
        None => {
            if let Some(password) = password_beside(&config) {
                config.password(password);
            }
        }
    }
    config
}

/// The password from the environment or from the password file.
fn password_beside(config: &Config) -> Option<String> {
    if let Ok(password) = std::env::var("PGPASSWORD") {
        return Some(password);
    }
    let file = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    let file = file.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pgpass")))?;
    let text = read_password_file(&file)?;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.as_str(),
        _ => DEFAULT_HOST,
    };
    let port = config.get_ports().first().map_or(5_432, |port| *port).to_string();
    let user = config.get_user().unwrap_or_default();
    let wanted = [host, &port, config.get_dbname().unwrap_or(user), user];
    text.lines().find_map(|line| password_of(line, &wanted))
}

/// The text of the file, if only its owner can read it.
fn read_password_file(file: &Path) -> Option<String> {
    let metadata = std::fs::metadata(file).ok()?;
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "password file ignored: others can read it. Hint: chmod 600");
        return None;
    }
    if !metadata.is_file() || metadata.len() > PASSWORD_FILE_BYTES {
        return None;
    }
    std::fs::read_to_string(file).ok()
}

/// The password of a line `host:port:database:user:password`, if the line matches `wanted`.
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
        f.write_str(&self.shown)
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
        assert_eq!(address.to_string(), "postgres://...@db.example:5433/events");
        assert!(!format!("{address:?}").contains("secret"));
        for wrong in [
            "postgres://me:secret@db.example:port/events",
            "postgres://me:p@secret/w:ord@db.example:5433/events",
            "postgres://me:secret/w:ord@db.example/events",
            "postgres://me:secret?x@db.example/events",
            "postgres://db.example/events?user=me&password=secret@x",
            "postgres://me@db.example/events?password=secret@x",
        ] {
            let error = Address::parse(wrong).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_parameter_that_is_not_accepted_is_named() {
        for wrong in ["gssencmode=disable", "connect_timeout=soon", "application_name=a&gssencmode"]
        {
            let url = format!("postgres://me:secret@db.example/events?{wrong}");
            let error = Address::parse(&url).unwrap_err().to_string();
            assert!(
                error.contains("parameter gssencmode")
                    || error.contains("parameter connect_timeout"),
                "{error}"
            );
            assert!(!error.contains("secret") && !error.contains("soon"), "{error}");
        }
    }

    #[test]
    fn a_login_may_hold_escaped_signs() {
        let address = Address::parse("postgres://me:a%40%2F%3Fb@db.example/events").unwrap();
        assert_eq!(address.hosts[0].get_password(), Some(b"a@/?b".as_slice()));
        assert_eq!(address.hosts[0].get_hosts(), [Host::Tcp("db.example".to_owned())]);
    }

    #[test]
    fn modes_of_encryption_are_those_of_libpq() {
        for mode in ["disable", "allow", "prefer", "require"] {
            let url = format!("postgres://me@db.example/events?sslmode={mode}&connect_timeout=3");
            let address = Address::parse(&url).unwrap();
            let shown = "postgres://...@db.example/events?sslmode=...&connect_timeout=...";
            assert_eq!(address.to_string(), shown);
            assert_eq!(
                address.hosts[0].get_connect_timeout(),
                Some(&std::time::Duration::from_secs(3))
            );
        }
        let full = "postgres://me@db.example/events?sslrootcert=system&sslmode=verify-full";
        assert!(Address::parse(full).is_ok());
        let weak = ["disable", "allow", "prefer", "require", "verify-ca"];
        let weak = weak.map(|mode| format!("sslrootcert=system&sslmode={mode}"));
        let weak = weak.iter().map(String::as_str);
        let wrong = ["sslmode=full", "sslmode=verify-ca&sslrootcert=%2Fnot%2Fthere.pem"];
        for wrong in wrong.into_iter().chain(weak) {
            let url = format!("postgres://me@db.example/events?{wrong}");
            let error = Address::parse(&url).unwrap_err().to_string();
            assert!(error.contains("ssl"), "{error}");
        }
        assert!(Address::parse("relay.sqlite").is_err());
    }

    #[test]
    fn each_host_has_its_port_and_a_socket_is_not_encrypted() {
        let url = "postgres://me:a%3Fb@one:1,%2Frun%2Fsocket:2,three/events?sslmode=require";
        let address = Address::parse(url).unwrap();
        let of = |host: &Config| (host.get_hosts().to_vec(), host.get_ports().to_vec());
        let hosts: Vec<_> = address.hosts.iter().map(of).collect();
        let tcp = |name: &str| vec![Host::Tcp(name.to_owned())];
        assert_eq!(
            hosts,
            [
                (tcp("one"), vec![1]),
                (vec![Host::Unix("/run/socket".into())], vec![2]),
                (tcp("three"), vec![5_432])
            ]
        );
        let modes: Vec<SslMode> = address.hosts.iter().map(Config::get_ssl_mode).collect();
        assert_eq!(modes, [SslMode::Require, SslMode::Disable, SslMode::Require]);
        assert_eq!(address.hosts[0].get_password(), Some(b"a?b".as_slice()));
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
