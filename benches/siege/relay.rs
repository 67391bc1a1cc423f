//! The relay of a siege.

use crate::support::fill;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A configuration without rate limits.
pub const UNLIMITED: &str =
    "[rates]\nevents_per_s = 0\nqueries_per_s = 0\nneg_per_s = 0\nother_per_s = 0\n";

/// A relay process with a store of its own; ended when dropped.
pub struct Relay {
    process: Child,
    pub address: SocketAddr,
    pub directory: TempDir,
}

impl Relay {
    /// Starts over a store of `stored` generated events.
    pub fn start(stored: usize, configuration: &str) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_negsync")), stored, configuration)
    }

    /// As [`Relay::start`], by a command that becomes `negsync`.
    pub fn start_by(command: Command, stored: usize, configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fill(&directory.path().join("events.sqlite"), stored);
        Self::over(command, directory, configuration)
    }

    /// As [`Relay::start_by`], over `events.sqlite` in a directory.
    pub fn over(mut command: Command, directory: TempDir, configuration: &str) -> Self {
        let file = directory.path().join("relay.toml");
        std::fs::write(&file, configuration).unwrap();
        let mut process = command
            .args(["relay", "--listen", "127.0.0.1:0", "--store"])
            .arg(directory.path().join("events.sqlite"))
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (_, address) = line.trim().rsplit_once("ws://").unwrap();
        Self { process, address: address.parse().unwrap(), directory }
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Resident memory in MB, without pages of the store's file, which the system may drop.
    pub fn memory_mb(&self) -> f64 {
        let status = self.proc("status");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e3
    }

    /// The CPU time of its current threads, in ms.
    pub fn cpu_ms(&self) -> f64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<f64>().ok()
        };
        tasks.filter_map(of_task).sum::<f64>() / 1e6
    }

    /// The number of open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// The length of the write-ahead log, in MB.
    pub fn wal_mb(&self) -> f64 {
        let path = self.directory.path().join("events.sqlite-wal");
        std::fs::metadata(path).map_or(0.0, |file| file.len() as f64 / 1e6)
    }

    /// Its CPU time, on all cores.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        let fields = stat.rsplit_once(") ").unwrap().1.split_whitespace();
        // User and system time, in hundredths of a second.
        let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Sends SIGTERM, and returns the time until it ends.
    pub fn terminate(&mut self) -> Duration {
        let began = Instant::now();
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.process.wait().unwrap();
        began.elapsed()
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
