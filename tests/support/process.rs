//! The real binary: run to its end, or as a relay that answers on a socket.

use super::client::Client;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// What a command that ended has said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `negsync` with these arguments and this standard input.
pub fn negsync(arguments: &[&str], stdin: &str) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_negsync"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_owned();
    // A command that fails at once leaves its input unread.
    let writing = std::thread::spawn(move || drop(input.write_all(stdin.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    Ended {
        status: output.status,
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `negsync relay` in a process of its own; killed when dropped.
pub struct RelayProcess {
    child: Child,
    url: String,
}

impl RelayProcess {
    /// Starts on a free port and waits for the line that says where.
    pub fn start(store: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_negsync"))
            .args(["relay", "--listen", "127.0.0.1:0", "--store"])
            .arg(store)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("ws://"))
            .unwrap_or_else(|| panic!("the relay did not say where it serves: {line:?}"))
            .to_owned();
        Self { child, url }
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.url).await
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end and returns the exit status with what was logged.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("the relay did not end in 20 s"),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status, log)
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        // Of a process that has ended this says so, and nothing else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
