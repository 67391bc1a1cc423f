//! A PostgreSQL server for tests: the one named in `NEGSYNC_POSTGRES`, or one of Debian's binaries
//! in a folder of its own, reached by a Unix socket. Also a listener of stores.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod certificates;
mod databases;
mod heard_set;
mod relay_tables;

pub use certificates::{Certificates, free_port};
pub use heard_set::HeardSet;
pub use relay_tables::RelayTables;

use databases::SharedDatabases;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// The user and group of the server if the tests run as root, which the server refuses: `nobody`
/// and `nogroup`.
const NOBODY: u32 = 65_534;
const START_TIMEOUT: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A server with a database for this test only. A database on a shared server is dropped at the
/// end, or, after a killed test, when the next one starts.
pub struct TestServer {
    url: String,
    server: Server,
}

enum Server {
    Own(OwnServer),
    Shared(SharedDatabases),
}

/// A server of Debian's binaries in a folder of its own.
pub struct OwnServer {
    programs: PathBuf,
    folder: tempfile::TempDir,
    settings: Vec<(&'static str, String)>,
    child: Option<Child>,
}

impl TestServer {
    /// Creates a database on the server named in `NEGSYNC_POSTGRES`, or else starts a server;
    /// `None` without PostgreSQL, which is reported.
    ///
    /// # Panics
    /// Without PostgreSQL if `CI` is `true`.
    pub fn start() -> Option<Self> {
        match std::env::var("NEGSYNC_POSTGRES") {
            Ok(url) => Some(Self::new(Server::Shared(SharedDatabases::new(url)))),
            Err(_) => Self::start_own(&[]),
        }
    }

    /// Starts a server for this test with these settings, regardless of `NEGSYNC_POSTGRES`.
    ///
    /// # Panics
    /// As [`TestServer::start`].
    pub fn start_own(settings: &[(&'static str, &str)]) -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "PostgreSQL is not installed");
            left_out("a test over PostgreSQL. Install it, or name a server with NEGSYNC_POSTGRES");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let mut own = OwnServer { programs, folder, settings: owned(settings), child: None };
        own.make();
        own.start();
        Some(Self::new(Server::Own(own)))
    }

    fn new(server: Server) -> Self {
        Self { url: server.make_database(), server }
    }

    /// The URL of the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name of the database.
    pub fn database_name(&self) -> &str {
        self.url.rsplit('/').next().unwrap()
    }

    /// Creates another database; returns its URL.
    pub fn database(&self) -> String {
        self.server.make_database()
    }

    /// The folder with the server's Unix socket, if the server belongs to this test.
    pub fn folder(&self) -> Option<&Path> {
        match &self.server {
            Server::Own(own) => Some(own.folder.path()),
            Server::Shared(_) => None,
        }
    }

    /// Kills the server like a crash of the machine, and starts it again; `false` if it does not
    /// belong to this test.
    pub fn kill_and_restart(&mut self) -> bool {
        self.restart_after(|| {})
    }

    /// Like [`TestServer::kill_and_restart`]; calls `meanwhile` while the server is down.
    pub fn restart_after(&mut self, meanwhile: impl FnOnce()) -> bool {
        let Server::Own(own) = &mut self.server else { return false };
        own.kill();
        meanwhile();
        own.start();
        true
    }

    /// Like [`TestServer::kill_and_restart`], with other settings from then on.
    pub fn restart_with(&mut self, settings: &[(&'static str, &str)]) -> bool {
        let Server::Own(own) = &mut self.server else { return false };
        own.kill();
        own.settings = owned(settings);
        own.start();
        true
    }
}

impl TestServer {
    /// The server.
    ///
    /// # Panics
    /// If it does not belong to this test.
    pub fn server(&mut self) -> &mut OwnServer {
        match &mut self.server {
            Server::Own(own) => own,
            Server::Shared(_) => panic!("the server is shared"),
        }
    }

    /// The URL of the database with this server as the first host and another one as the second.
    pub fn url_with(&mut self, other: &OwnServer) -> String {
        let folders = [self.server().host(), other.host()];
        format!("postgres://postgres@{}/{}", folders.join(","), self.database_name())
    }
}

/// Reports that a test is left out, past the test harness, which would capture the output.
pub fn left_out(what: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** LEFT OUT: {what}.\n");
}

impl Server {
    fn make_database(&self) -> String {
        match self {
            Self::Own(own) => databases::make(&own.url(), &databases::fresh_name()),
            Self::Shared(shared) => databases::make(&shared.server, &shared.fresh_name()),
        }
    }
}

impl OwnServer {
    /// The folder of the socket and the port, in the form of a URL.
    fn host(&self) -> String {
        let folder = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("{folder}:{}", self.port())
    }

    fn port(&self) -> &str {
        let port = self.settings.iter().find(|(name, _)| *name == "port");
        port.map_or("5432", |(_, port)| port)
    }

    /// The URL of the database `postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.host())
    }

    /// The socket of the server.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(format!(".s.PGSQL.{}", self.port()))
    }

    /// The folder of the server, for files of a test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills the server like a crash of the machine.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A replica of this server, which streams its commits.
    pub fn replica(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (programs, settings) = (self.programs.clone(), self.settings.clone());
        let mut replica = Self { programs, folder, child: None, settings };
        replica.take_folder();
        let copied = replica
            .command("pg_basebackup")
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--pgdata"])
            .arg(replica.data())
            .args(["--username=postgres", "--host"])
            .arg(self.folder.path())
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        replica.start();
        replica
    }

    /// Promotes a replica to the primary server.
    pub fn promote(&self) {
        run(&self.url(), "SELECT pg_promote()").unwrap();
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Gives the folder to the user of the server.
    fn take_folder(&self) {
        if is_root() {
            chown(self.folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }

    fn make(&self) {
        self.take_folder();
        let made = self
            .command("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"])
            .args(["--no-sync", "--no-instructions", "--pgdata"])
            .arg(self.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Starts the server and waits until it answers. After a crash it refuses to start while
    /// processes of the previous one are running.
    pub fn start(&mut self) {
        let began = Instant::now();
        while began.elapsed() < START_TIMEOUT {
            let log = File::create(self.folder.path().join("log")).unwrap();
            let mut child = self
                .command("postgres")
                .arg("-D")
                .arg(self.data())
                .args(["-c", "listen_addresses=", "-c", "max_connections=100", "-k"])
                .arg(self.folder.path())
                .args(
                    self.settings
                        .iter()
                        .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]),
                )
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            while child.try_wait().unwrap().is_none() && began.elapsed() < START_TIMEOUT {
                if run(&self.url(), "SELECT 1").is_ok() {
                    self.child = Some(child);
                    return;
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = std::fs::read_to_string(self.folder.path().join("log"));
        panic!("the server did not start: {log:?}");
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // So that the server releases its shared memory.
        let _ = self
            .command("pg_ctl")
            .args(["stop", "--silent", "--mode=immediate", "--pgdata"])
            .arg(self.data())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn owned(settings: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}

/// The folder with Debian's newest server, or the one in the path.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    folders.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.splice(0..0, std::env::split_paths(&path));
    let has_all = |folder: &&PathBuf| {
        ["initdb", "postgres", "pg_basebackup", "pg_ctl"]
            .iter()
            .all(|name| Path::new(folder).join(name).is_file())
    };
    folders.iter().rev().find(has_all).cloned()
}

/// Runs statements on a new connection.
///
/// # Errors
/// The server's error.
pub fn run(url: &str, statements: &str) -> Result<(), tokio_postgres::Error> {
    query(url, statements).map(drop)
}

/// Runs statements on a new connection; returns the rows as text. Waits on another thread, so that
/// async tests can call it.
///
/// # Errors
/// The server's error.
pub fn query(
    url: &str,
    statements: &str,
) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(rows(url, statements))
    };
    std::thread::scope(|scope| scope.spawn(wait).join().unwrap())
}

async fn rows(
    url: &str,
    statements: &str,
) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    let served = tokio::spawn(connection);
    let done = client.simple_query(statements).await;
    drop(client);
    let _ = served.await;
    let rows = done?.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|place| row.get(place).map(str::to_owned)).collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}
