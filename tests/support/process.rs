//! The real binary: run to its end, or as a relay on a socket.

use super::client::Client;
use super::model;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The output of a command that ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `negsync` with these arguments and this standard input.
pub fn negsync(arguments: &[&str], stdin: &str) -> Ended {
    run(&mut Command::new(env!("CARGO_BIN_EXE_negsync")), arguments, stdin)
}

/// As [`negsync`], with environment variables.
pub fn negsync_with(variables: &[(&str, &str)], arguments: &[&str], stdin: &str) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.envs(variables.iter().copied());
    run(&mut command, arguments, stdin)
}

/// As [`negsync`], in a working directory.
pub fn negsync_in(directory: &Path, arguments: &[&str], stdin: &str) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    run(command.current_dir(directory), arguments, stdin)
}

/// The lines of `negsync export` for a store.
pub fn exported(store: impl AsRef<Path>) -> String {
    let ended = negsync(&["export", "--store", store.as_ref().to_str().unwrap()], "");
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout
}

/// The ids of [`exported`].
pub fn exported_ids(store: impl AsRef<Path>) -> BTreeSet<String> {
    let events: Vec<Value> =
        exported(store).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    model::ids(&events)
}

fn run(command: &mut Command, arguments: &[&str], stdin: &str) -> Ended {
    let mut child = command
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
    let stdout = read_beside(child.stdout.take().unwrap());
    let stderr = read_beside(child.stderr.take().unwrap());
    let status = wait(&mut child).unwrap_or_else(|| {
        let _ = child.kill();
        panic!("negsync {arguments:?} did not end in 20 s");
    });
    writing.join().unwrap();
    Ended { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Reads to the end on a new thread, so that a full pipe cannot block the process.
fn read_beside(mut source: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        source.read_to_string(&mut text).unwrap();
        text
    })
}

/// Waits for the end, with a timeout.
fn wait(child: &mut Child) -> Option<ExitStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return Some(status),
            None if Instant::now() > deadline => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// `negsync relay` or `negsync attach` in a process of its own; killed when dropped.
pub struct RelayProcess {
    child: Child,
    url: String,
    log: Arc<Mutex<String>>,
    reading: Option<JoinHandle<()>>,
}

impl RelayProcess {
    /// Starts on a free port and waits for the line with its address.
    pub fn start(store: &Path) -> Self {
        Self::start_with(store, &[])
    }

    /// As [`RelayProcess::start`], with more arguments.
    pub fn start_with(store: &Path, arguments: &[&str]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_negsync")), store, arguments)
    }

    /// As [`RelayProcess::start_with`], by a command that becomes `negsync`.
    pub fn start_by(mut command: Command, store: &Path, arguments: &[&str]) -> Self {
        command.args(["relay", "--listen", "127.0.0.1:0", "--store"]).arg(store).args(arguments);
        Self::serving(command)
    }

    /// `negsync relay` with only this configuration.
    pub fn configured(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        command.args(["relay", "--config"]).arg(config);
        Self::serving(command)
    }

    /// `negsync attach` with these arguments.
    pub fn attach(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
        command.args(["attach", "--listen", "127.0.0.1:0"]).args(arguments);
        Self::serving(command)
    }

    /// A command that serves and prints its address.
    pub fn serving(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        let reading = std::thread::spawn(move || {
            for line in stderr.lines() {
                *lines.lock().unwrap() += &format!("{}\n", line.unwrap());
            }
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line
            .split_whitespace()
            .find(|word| word.starts_with("ws://"))
            .map(|url| url.trim_end_matches(','))
            .unwrap_or_else(|| panic!("the relay did not say where it serves: {line:?}"))
            .to_owned();
        Self { child, url, log, reading: Some(reading) }
    }

    /// Waits for a log line that contains `text`, and returns it.
    pub fn logged(&self, text: &str) -> String {
        self.logged_again(text, 0)
    }

    /// Like [`RelayProcess::logged`], after skipping `before` lines that contain `text`.
    pub fn logged_again(&self, text: &str, before: usize) -> String {
        self.logged_within(text, before, PATIENCE)
    }

    /// Like [`RelayProcess::logged_again`], with another timeout.
    pub fn logged_within(&self, text: &str, before: usize, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        loop {
            let log = self.log.lock().unwrap().clone();
            if let Some(line) = log.lines().filter(|line| line.contains(text)).nth(before) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "{text:?} is not logged, but {log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.url).await
    }

    /// Sets a limit of the process by util-linux's name for it, such as `nofile`.
    pub fn limit(&self, name: &str, soft: &str) {
        let pid = self.child.id().to_string();
        let limit = format!("--{name}={soft}:");
        // As the owner of the process: even root may lack the right to set limits of other users'
        // processes.
        let owner = Path::new("/proc").join(&pid).metadata().unwrap().uid();
        let mut prlimit = Command::new("prlimit");
        let set = prlimit.uid(owner).args(["--pid", &pid, &limit]).status().unwrap();
        assert!(set.success(), "{limit}");
    }

    /// The number of the next file descriptor of the process.
    pub fn free_descriptor(&self) -> usize {
        let open = Path::new("/proc").join(self.child.id().to_string()).join("fd");
        (0..).find(|number| open.join(number.to_string()).symlink_metadata().is_err()).unwrap()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end, and returns the exit status and the log.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child).expect("the relay did not end in 20 s");
        self.reading.take().map(JoinHandle::join);
        let log = self.log.lock().unwrap().clone();
        (status, log)
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        // Fails only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The examples in the help of a command, each a shell command.
pub fn examples(command: &str) -> Vec<String> {
    let help = negsync(&[command, "--help"], "");
    assert!(help.status.success(), "{help:?}");
    let (_, examples) = help
        .stdout
        .split_once("Examples:\n")
        .unwrap_or_else(|| panic!("{command} has no examples"));
    let lines = examples.lines().take_while(|line| line.starts_with("  "));
    // Some have a remark in parentheses.
    let line = |line: &str| line.split("   (").next().unwrap_or(line).trim().to_owned();
    lines.map(line).collect()
}
