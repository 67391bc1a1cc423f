//! A PostgreSQL for tests: the server that `NEGSYNC_POSTGRES` names, or one of Debian's binaries in a folder
//! of its own, reached by a Unix socket.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;

/// Whom the server runs as where the tests run as root, whom it refuses: `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;
const START_TIMEOUT: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A server, and a database in it that is of this test alone.
pub struct TestServer {
    url: String,
    own: Option<OwnServer>,
}

/// A server of Debian's binaries in a folder of its own.
pub struct OwnServer {
    programs: PathBuf,
    folder: tempfile::TempDir,
    child: Option<Child>,
    // Settings beside those of every server, each as `name=value`.
    settings: Vec<String>,
}

impl TestServer {
    /// Starts a server and makes a database; `None` without PostgreSQL, which is said.
    ///
    /// # Panics
    /// Without PostgreSQL where `CI` is `true`.
    pub fn start() -> Option<Self> {
        if let Ok(server) = std::env::var("NEGSYNC_POSTGRES") {
            return Some(Self { url: fresh_database(&server), own: None });
        }
        Self::own(&[])
    }

    /// As [`TestServer::start`], of a server that is this test's alone, with these settings.
    ///
    /// # Panics
    /// As [`TestServer::start`].
    pub fn own(settings: &[&str]) -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "PostgreSQL is not installed");
            left_out("a test over PostgreSQL. Install it, or name a server with NEGSYNC_POSTGRES");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut own = OwnServer { programs, folder, child: None, settings };
        own.make();
        own.start();
        let url = fresh_database(&own.url());
        Some(Self { url, own: Some(own) })
    }

    /// The URL of the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills the server as a crash of the machine would, and starts it again; `false` where it is not of
    /// this test.
    pub fn kill_and_restart(&mut self) -> bool {
        let Some(own) = &mut self.own else { return false };
        if let Some(mut child) = own.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        own.start();
        true
    }

    /// The server.
    ///
    /// # Panics
    /// Where it is not of this test.
    pub fn server(&mut self) -> &mut OwnServer {
        self.own.as_mut().unwrap()
    }

    /// The URL of the database on this server and then on another one.
    pub fn url_with(&mut self, other: &OwnServer) -> String {
        let folders = [self.server().socket_folder(), other.socket_folder()];
        let database = self.url.rsplit('/').next().unwrap();
        format!("postgres://postgres@{}/{database}", folders.join(","))
    }
}

/// Says that a test is left out, past the test harness, which would keep it to itself.
pub fn left_out(what: &str) {
    let _ = writeln!(std::io::stderr(), "\n*** LEFT OUT: {what}.\n");
}

impl OwnServer {
    /// The folder of the socket, as a URL has it.
    fn socket_folder(&self) -> String {
        self.folder.path().to_str().unwrap().replace('/', "%2F")
    }

    /// The URL of the database `postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.socket_folder())
    }

    /// The socket of the server.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(".s.PGSQL.5432")
    }

    /// The folder of the server, for files of a test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills the server as a crash of the machine would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A replica of this server, which streams what is committed.
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

    /// Makes a replica the server that takes writes.
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

    /// Gives the folder to whom the server runs as.
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

    /// Starts the server and waits until it answers. After a crash it refuses to start while processes
    /// of the last one are left.
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
                .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
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
        // So that the server gives its shared memory back.
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

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}

/// The folder with the newest of Debian's servers, or the one that is in the path.
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

/// Makes a database on the server and returns its URL.
fn fresh_database(server: &str) -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("negsync_test_{}_{number}", std::process::id());
    run(server, &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")).unwrap();
    let (before, parameters) = server.split_once('?').unwrap_or((server, ""));
    let (host, _) = before.rsplit_once('/').unwrap();
    let mark = if parameters.is_empty() { "" } else { "?" };
    format!("{host}/{name}{mark}{parameters}")
}

/// Runs statements on a connection of their own.
pub fn run(url: &str, statements: &str) -> Result<(), tokio_postgres::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let served = tokio::spawn(connection);
        let done = client.batch_execute(statements).await;
        drop(client);
        let _ = served.await;
        done
    })
}
