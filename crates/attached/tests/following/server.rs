//! A PostgreSQL server of its own for a test, on a Unix socket, ended where it is dropped.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The user of Debian that owns nothing: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// Where the server's programs are; `None` where they are missing, which a test has to say.
fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|path| path.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop()
}

pub struct Server {
    programs: PathBuf,
    folder: TempDir,
    child: Child,
}

impl Server {
    /// `None`, said loudly, where there is no PostgreSQL; with `CI=true` that is a failure.
    pub fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "PostgreSQL is not installed");
            eprintln!("\n!!!! LEFT OUT: PostgreSQL is not installed");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mode = PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder.path(), mode).unwrap();
        let data = folder.path().join("data");
        let status = command(&programs.join("initdb"), folder.path())
            .args(["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "-D"])
            .arg(&data)
            .status()
            .unwrap();
        assert!(status.success());
        let child = serve(&programs, folder.path());
        let server = Self { programs, folder, child };
        server.wait();
        Some(server)
    }

    /// Ends the server at once, as a crash does, and starts it again.
    pub fn restart(&mut self) {
        self.end();
        self.child = serve(&self.programs, self.folder.path());
        self.wait();
    }

    fn end(&mut self) {
        // Of the server's signals the one for an immediate end.
        let status = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
        self.child.wait().unwrap();
    }

    fn wait(&self) {
        while !self.psql("postgres", "SELECT 1").0 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Runs statements; whether they succeeded, and what was printed.
    pub fn psql(&self, database: &str, sql: &str) -> (bool, String) {
        let mut child = command(&self.programs.join("psql"), self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .args(["-h", self.folder.path().to_str().unwrap(), "-U", "postgres", "-X", "-A", "-t"])
            .args(["-v", "ON_ERROR_STOP=1", "-q", "-d", database, "-f", "-"])
            .spawn()
            .unwrap();
        // Statements are longer than an argument may be. A server that is not there yet ends the
        // reading.
        let _ = child.stdin.take().unwrap().write_all(sql.as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    pub fn url(&self, database: &str) -> String {
        let folder = self.folder.path().to_str().unwrap().replace('/', "%2F");
        format!("postgres://postgres:hush@{folder}/{database}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|it| std::os::unix::fs::MetadataExt::uid(&it) == 0)
}

fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn serve(programs: &Path, folder: &Path) -> Child {
    command(&programs.join("postgres"), folder)
        .arg("-D")
        .arg(folder.join("data"))
        .arg("-k")
        .arg(folder)
        .args(["-c", "listen_addresses=", "-c", "wal_level=logical", "-c", "fsync=off"])
        .args(["-c", "max_slot_wal_keep_size=1GB"])
        .spawn()
        .unwrap()
}
