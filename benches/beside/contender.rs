//! A relay as a process, over a store of its own.

use super::client::Client;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The program to run.
pub enum Program {
    Negsync,
    /// The binary of strfry.
    Strfry(PathBuf),
}

impl Program {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Negsync => "second negsync",
            Self::Strfry(_) => "strfry",
        }
    }
}

/// A running relay; ended when dropped.
pub struct Contender {
    program: Program,
    folder: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Contender {
    /// A running relay that has stored the lines of a file.
    pub fn filled(program: Program, folder: &Path, lines: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut contender = Self { program, folder: folder.to_owned(), port, process: None };
        contender.configure();
        let mut import = match &contender.program {
            Program::Negsync => {
                let mut import = Command::new(env!("CARGO_BIN_EXE_negsync"));
                import.args(["import", "--no-verify", "--store"]).arg(contender.store());
                import
            }
            Program::Strfry(binary) => {
                let mut import = Command::new(binary);
                import.arg(contender.strfry_config()).args(["import", "--no-verify"]);
                import
            }
        };
        let lines = std::fs::File::open(lines).unwrap();
        let done = import.current_dir(folder).stdin(lines).stdout(Stdio::null());
        assert!(done.stderr(Stdio::null()).status().unwrap().success(), "the import failed");
        contender.start();
        contender
    }

    fn store(&self) -> PathBuf {
        self.folder.join("events.sqlite")
    }

    fn strfry_config(&self) -> String {
        format!("--config={}", self.folder.join("strfry.conf").display())
    }

    /// Configures both so that they refuse nothing.
    fn configure(&self) {
        let (name, text) = match &self.program {
            Program::Negsync => (
                "relay.toml",
                "[rates]\nevents_per_s = 0\nqueries_per_s = 0\nneg_per_s = 0\nother_per_s = 0\n\
                 [connections]\nper_address = 100000\nin_all = 100000\n\
                 [negentropy]\nmax_sync_events = 1000000000\n"
                    .to_owned(),
            ),
            Program::Strfry(_) => (
                "strfry.conf",
                format!(
                    "db = \"{db}/\"\n\
                     events {{\n rejectEventsOlderThanSeconds = 1000000000\n }}\n\
                     relay {{\n bind = \"127.0.0.1\"\n port = {port}\n nofiles = 0\n \
                     maxSubsPerConnection = 200\n negentropy {{\n enabled = true\n \
                     maxSyncEvents = 1000000000\n }}\n }}\n",
                    db = self.folder.join("db").display(),
                    port = self.port,
                ),
            ),
        };
        std::fs::create_dir_all(self.folder.join("db")).unwrap();
        std::fs::write(self.folder.join(name), text).unwrap();
    }

    fn start(&mut self) {
        let mut relay = match &self.program {
            Program::Negsync => {
                let mut relay = Command::new(env!("CARGO_BIN_EXE_negsync"));
                relay.args(["relay", "--listen", &format!("127.0.0.1:{}", self.port), "--store"]);
                relay.arg(self.store()).arg("--config").arg(self.folder.join("relay.toml"));
                relay
            }
            Program::Strfry(binary) => {
                let mut relay = Command::new(binary);
                relay.arg(self.strfry_config()).arg("relay");
                relay
            }
        };
        relay.current_dir(&self.folder).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(relay.spawn().unwrap());
    }

    /// Stops it as an operator does, and starts it again. Returns the time of the start.
    pub fn restart(&mut self) -> Instant {
        let mut process = self.process.take().unwrap();
        let pid = process.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        process.wait().unwrap();
        let began = Instant::now();
        self.start();
        began
    }

    /// A connection; waits for a relay that is still starting.
    pub async fn connect(&self) -> Client {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let began = Instant::now();
        loop {
            match Client::connect(address).await {
                Ok(client) => return client,
                Err(error) if began.elapsed() > Duration::from_secs(60) => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// The CPU time of the process so far.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let fields = stat.rsplit_once(") ").unwrap().1.split_whitespace();
        // User and system time, in hundredths of a second.
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Its resident memory without pages of files, in bytes.
    pub fn anonymous_bytes(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1_024.0
    }

    fn proc(&self, file: &str) -> String {
        let pid = self.process.as_ref().unwrap().id();
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
