//! The program: run by a shell, with requests as lines on its standard input and answers as lines
//! on its standard output. It is restarted if it ends or does not answer in time.

use super::output::Output;
use super::pending::{Pending, Reply};
use super::{Answer, PolicySource};
use crate::config::WritePolicyConfig;
use crate::hex;
use crate::prefix::Prefix;
use crate::store::{Event, NextJob, SourceQueue};
use serde::Deserialize;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::oneshot;

/// The weight of an event in addition to its bytes.
const EVENT_WEIGHT: usize = 1_024;
/// Maximum length of a line from the program; after a longer one it is restarted.
const LINE_BYTES: u64 = 64 << 10;
/// Maximum length of a message that is passed on, in bytes.
const MESSAGE_BYTES: usize = 1_024;
/// The first pause before a restart; it doubles with each run without any answer.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// Interval of checks whether the program's file has changed.
const LOOK: Duration = Duration::from_secs(1);
/// Environment variables that the program inherits, in addition to `LC_...`: none that may contain
/// a secret.
const ENVIRONMENT: [&str; 8] = ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"];
/// Time for the program to end by itself.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// One event to ask about.
struct PolicyRequest {
    id: [u8; 32],
    line: String,
    reply: Reply,
}

/// The handle of the program. Dropping it ends the program.
pub(super) struct Plugin {
    // Bounded by the number of events that each source may have in progress.
    requests: Arc<SourceQueue<PolicyRequest>>,
}

impl Plugin {
    pub(super) fn start(config: &WritePolicyConfig) -> io::Result<Self> {
        let requests = Arc::new(SourceQueue::default());
        let queue = Arc::clone(&requests);
        let keeper = ProgramKeeper {
            command: config.command.clone(),
            timeout: Duration::from_secs(config.timeout_s),
            run: None,
            is_wanted: false,
            failures: 0,
            start_at: Instant::now(),
            looked: Instant::now(),
            output: Arc::new(Output::new()),
            errors: Arc::new(Output::new()),
        };
        thread::Builder::new().name("write-policy".into()).spawn(move || keeper.keep(&queue))?;
        Ok(Self { requests })
    }

    /// Asks about an event when its source has its turn. The reply is dropped if the program does
    /// not answer.
    pub(super) fn ask(
        &self,
        event: &Event,
        source: &PolicySource,
        now: u64,
    ) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        let line = line(event, source, now);
        let request = PolicyRequest { id: event.item().id, line, reply };
        let weight = EVENT_WEIGHT + request.line.len();
        // Fails only if the queue is closed; the reply is then dropped.
        let _ = self.requests.push(&source.origin, [(weight, request)]);
        answer
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.requests.close();
    }
}

/// The request line for an event.
fn line(event: &Event, source: &PolicySource, now: u64) -> String {
    let (json, kind) = (event.json(), source.kind);
    let info = serde_json::Value::from(source.info.as_str());
    format!(
        "{{\"type\":\"new\",\"event\":{json},\"receivedAt\":{now},\"sourceType\":\"{kind}\",\
         \"sourceInfo\":{info}}}\n"
    )
}

/// A line from the program.
#[derive(Deserialize)]
struct ProgramLine {
    id: String,
    action: String,
    #[serde(default)]
    msg: Option<String>,
}

impl ProgramLine {
    fn answer(self) -> Option<Answer> {
        match self.action.as_str() {
            "accept" => Some(Answer::Accept),
            "reject" => {
                let text = cut(self.msg.as_deref().unwrap_or(""), MESSAGE_BYTES);
                Some(Answer::Reject(match text {
                    "" => Prefix::Blocked.before("not wanted by this relay"),
                    text => text.to_owned(),
                }))
            }
            "shadowReject" => Some(Answer::ShadowReject),
            _ => None,
        }
    }
}

/// Keeps the program running, and sends it one event after the other.
struct ProgramKeeper {
    command: String,
    timeout: Duration,
    run: Option<ProgramRun>,
    // Whether the first event has arrived: from then on the program is kept running.
    is_wanted: bool,
    // The number of runs since the last one that gave an answer.
    failures: u32,
    // The earliest time of the next start.
    start_at: Instant,
    // The last check of the program's file.
    looked: Instant,
    // The program's output streams have separate limits in the log.
    output: Arc<Output>,
    errors: Arc<Output>,
}

/// One run of the program.
struct ProgramRun {
    stdin: ChildStdin,
    group: u32,
    pending: Arc<Pending>,
    changed_at: Option<SystemTime>,
}

impl ProgramKeeper {
    fn keep(mut self, queue: &SourceQueue<PolicyRequest>) {
        loop {
            match queue.pop_within(LOOK) {
                NextJob::Item((_, request)) => {
                    self.is_wanted = true;
                    self.renew();
                    self.revive();
                    self.ask(request);
                }
                NextJob::TimedOut if self.is_wanted => self.revive(),
                NextJob::TimedOut => {}
                NextJob::Closed => break,
            }
        }
        if let Some(run) = self.run.take() {
            run.stop();
        }
    }

    fn ask(&mut self, request: PolicyRequest) {
        let PolicyRequest { id, line, reply, .. } = request;
        let Some(run) = self.run.as_mut().filter(|run| run.pending.begin(id, reply)) else {
            return;
        };
        if let Err(error) = run.stdin.write_all(line.as_bytes()) {
            tracing::warn!(%error, "write policy: writing to its standard input failed");
            run.end();
        }
    }

    /// Starts the program if it is not running and the pause is over.
    fn revive(&mut self) {
        if let Some(run) = self.run.take_if(|run| run.pending.has_ended()) {
            self.failures = if run.pending.has_answered() { 0 } else { self.failures };
            self.put_off();
        }
        if self.run.is_some() || Instant::now() < self.start_at {
            return;
        }
        tracing::info!(command = %self.command, "the write policy is started");
        match self.start() {
            Ok(run) => self.run = Some(run),
            Err(error) => {
                tracing::error!(command = %self.command, %error, "the write policy cannot be run");
                self.put_off();
            }
        }
    }

    fn put_off(&mut self) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(MOST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.start_at = Instant::now() + pause;
        tracing::warn!(
            "the write policy does not run; nothing is accepted until it is started again, in \
             {:.1} s",
            pause.as_secs_f64()
        );
    }

    /// Ends the program if its file has changed, once it has answered all requests.
    fn renew(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let changed_at = changed_at(&self.command);
        if let Some(run) =
            self.run.take_if(|run| changed_at.is_some() && run.changed_at != changed_at)
        {
            tracing::info!("the write policy has changed");
            run.pending.settle();
            run.stop();
            self.start_at = Instant::now();
        }
    }

    fn start(&self) -> io::Result<ProgramRun> {
        let changed_at = changed_at(&self.command);
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(&self.command)
            .env_clear()
            .envs(environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // The group includes the shell's children, so that they end with it; signals of our
            // terminal do not reach it.
            .process_group(0)
            .spawn()?;
        let group = child.id();
        let pending = Arc::new(Pending::new());
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            kill(group, "KILL");
            return Err(io::Error::other("no pipes"));
        };
        let (hearing, watching, timeout) =
            (Arc::clone(&pending), Arc::clone(&pending), self.timeout);
        let (output, errors) = (Arc::clone(&self.output), Arc::clone(&self.errors));
        let log = move || errors.log_lines(stderr);
        let hear = move || {
            if let Err(error) = hear(stdout, &hearing, &output) {
                tracing::error!(%error, "write policy: invalid output; the program is restarted");
            }
            // It may still be running without anyone reading its output.
            end(group, &hearing);
        };
        let spawned = thread::Builder::new()
            .name("policy-hear".into())
            .spawn(hear)
            .and_then(|_| thread::Builder::new().name("policy-log".into()).spawn(log))
            .and_then(|_| {
                let watch = move || watch(child, &watching, timeout);
                thread::Builder::new().name("policy-watch".into()).spawn(watch)
            });
        if let Err(error) = spawned {
            kill(group, "KILL");
            return Err(error);
        }
        Ok(ProgramRun { stdin, group, pending, changed_at })
    }
}

impl ProgramRun {
    /// Asks the program to end, and makes sure that it does.
    fn stop(self) {
        let Self { stdin, group, pending, .. } = self;
        drop(stdin);
        if !pending.has_ended() {
            kill(group, "TERM");
        }
        if !pending.wait_for_end(END_TIMEOUT) {
            end(group, &pending);
        }
    }

    fn end(&self) {
        end(self.group, &self.pending);
    }
}

/// When the program's file last changed, if the command is only its path.
fn changed_at(command: &str) -> Option<SystemTime> {
    let path = PathBuf::from((!command.contains(' ')).then_some(command)?);
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// Passes the program's answers on, until the end of its output.
fn hear(stdout: impl Read, pending: &Pending, output: &Output) -> io::Result<()> {
    let warn = |error: &str, line: &str| {
        if output.admits(Instant::now()) {
            tracing::warn!(line = cut(line, 200), "write policy output cannot be used: {error}");
        }
    };
    let mut lines = BufReader::new(stdout);
    while let Some(line) = next_line(&mut lines)? {
        let read: ProgramLine = match serde_json::from_str(&line) {
            Ok(read) => read,
            Err(error) => {
                warn(&error.to_string(), &line);
                continue;
            }
        };
        let id = hex::decode_array(&read.id);
        let answer = read.answer().unwrap_or_else(|| {
            warn("no action", &line);
            Answer::Missing
        });
        if !id.is_some_and(|id| pending.answer(&id, answer)) {
            warn("nobody asked about this id", &line);
        }
    }
    Ok(())
}

/// The environment of the program.
fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| ENVIRONMENT.contains(&name) || name.starts_with("LC_"))
    })
}

fn next_line(lines: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let read = lines.take(LINE_BYTES).read_until(b'\n', &mut line)?;
    if read as u64 == LINE_BYTES && line.last() != Some(&b'\n') {
        return Err(io::Error::other(format!("a line of more than {LINE_BYTES} bytes")));
    }
    Ok((read > 0).then(|| String::from_utf8_lossy(&line).into_owned()))
}

/// Supervises the run until its end; ends it if the program does not answer in time.
fn watch(mut child: Child, pending: &Pending, timeout: Duration) {
    let group = child.id();
    if pending.watch(timeout) {
        tracing::error!("the write policy has not answered for {} s", timeout.as_secs());
        end(group, pending);
    }
    match child.wait() {
        Ok(status) => tracing::info!("the write policy has ended: {status}"),
        Err(error) => tracing::warn!(%error, "the write policy cannot be waited for"),
    }
}

/// Ends a run at once. After the program has ended nothing is killed, because its process id may be
/// another program's.
fn end(group: u32, pending: &Pending) {
    if !pending.has_ended() {
        kill(group, "KILL");
        pending.end();
    }
}

/// Signals the program's process group.
fn kill(group: u32, signal: &str) {
    let script = r#"kill -s "$0" -- "-$1" 2>/dev/null"#;
    let _ = Command::new("sh").args(["-c", script, signal, &group.to_string()]).status();
}

/// The beginning of a text, at most `most_bytes` long.
fn cut(text: &str, most_bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(most_bytes)).unwrap_or(text).trim_end()
}
