//! A machine with little memory: import, sync and a relay with many clients, each in a process of
//! its own under the limit set by `scripts/small-machine`. None may be killed.

use crate::client::{Client, GOOD};
use crate::relay::Relay;
use crate::support::{signed_events, unsigned_event};
use crate::{Extent, milliseconds};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The limit of a `negsync` process.
pub enum Limit {
    /// A cgroup, by its directory.
    Group(PathBuf),
    /// An address space of this many bytes.
    AddressSpace(String),
    None,
}

impl Limit {
    /// The limit set by `scripts/small-machine`.
    fn of_environment() -> Self {
        match (std::env::var("NEGSYNC_CGROUP"), std::env::var("NEGSYNC_ADDRESS_SPACE")) {
            (Ok(group), _) => Self::Group(group.into()),
            (_, Ok(bytes)) => Self::AddressSpace(bytes),
            _ => Self::None,
        }
    }

    /// `negsync`, limited from its start.
    fn command(&self) -> Command {
        let negsync = env!("CARGO_BIN_EXE_negsync");
        match self {
            Self::Group(group) => {
                let mut command = Command::new("sh");
                let enter = r#"echo $$ > "$1/cgroup.procs" && shift && exec "$@""#;
                command.args(["-c", enter, "sh"]).arg(group).arg(negsync);
                command
            }
            Self::AddressSpace(bytes) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--as={bytes}")).arg(negsync);
                command
            }
            Self::None => Command::new(negsync),
        }
    }

    /// The maximum memory since the last call, including pages of files, in MB.
    fn take_peak_mb(&self) -> Option<f64> {
        let Self::Group(group) = self else { return None };
        let peak = ["memory.max_usage_in_bytes", "memory.peak"].map(|file| group.join(file));
        let path = peak.into_iter().find(|path| path.exists())?;
        let bytes: f64 = std::fs::read_to_string(&path).ok()?.trim().parse().ok()?;
        // Resets the maximum, if the system allows it.
        let _ = std::fs::write(&path, "0");
        Some(bytes / 1e6)
    }
}

pub async fn run(extent: Extent) {
    let limit = Limit::of_environment();
    let (imported, stored) = (extent.pick(300_000, 30_000), extent.pick(1_000_000, 50_000));
    println!("\na small machine: {}", limit.name());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.jsonl");
    write_lines(&file, signed_events(imported, 1).into_iter());
    let long = directory.path().join("long.jsonl");
    write_lines(&long, long_events(extent.pick(15_000, 1_500)));
    let whole = tempfile::tempdir().unwrap();
    for (what, file, store) in [
        ("import", &file, whole.path().join("events.sqlite")),
        ("import of events of 100 KB", &long, directory.path().join("long.sqlite")),
    ] {
        let mut import = limit.command();
        import.args(["import", "--no-verify"]).arg(file).arg("--store").arg(&store);
        end(&limit, what, import);
    }
    let source = Relay::over(Command::new(env!("CARGO_BIN_EXE_negsync")), whole, "");
    let mut sync = limit.command();
    sync.args(["sync", &format!("ws://{}", source.address), "--store"]);
    sync.arg(directory.path().join("synced.sqlite"));
    end(&limit, "sync", sync);
    drop(source);
    crowd(&limit, stored).await;
}

/// Runs a command to its end.
fn end(limit: &Limit, what: &str, mut command: Command) {
    limit.take_peak_mb();
    let began = Instant::now();
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    report(limit, what, ended.status.code().is_some(), began.elapsed());
    println!("  {}", said.trim().lines().last().unwrap_or_default());
}

/// 200 clients that request 5,000 events each at the same time.
async fn crowd(limit: &Limit, stored: usize) {
    const CLIENTS: usize = 200;
    limit.take_peak_mb();
    let mut relay = Relay::start_by(limit.command(), stored, "[rates]\nqueries_per_s = 0\n");
    let mut first = Client::connect(GOOD, relay.address).await.unwrap();
    first.ask(r#"["REQ","r",{"limit":1}]"#.into(), r#"["EOSE""#).await;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (to, from) = (relay.address, crate::client::stranger(number));
        clients.spawn(async move {
            let mut client = Client::connect(from, to).await.ok()?;
            client.send(r#"["REQ","r",{"limit":5000}]"#.into()).await.ok()?;
            let mut events = 0;
            loop {
                let answer = tokio::time::timeout(Duration::from_secs(120), client.next()).await;
                let answer = answer.ok()??;
                if answer.starts_with(r#"["EOSE""#) {
                    return Some(events);
                }
                if answer.starts_with(r#"["CLOSED""#) {
                    return None;
                }
                events += usize::from(answer.starts_with(r#"["EVENT""#));
            }
        });
    }
    let (mut answered, mut events) = (0, 0);
    while let Some(done) = clients.join_next().await {
        if let Some(of_client) = done.unwrap() {
            answered += 1;
            events += of_client;
        }
    }
    report(limit, "a relay with 200 clients", relay.is_alive(), began.elapsed());
    println!(
        "  {answered} of {CLIENTS} answered, {events} events; {:.0} MB without pages of files",
        relay.memory_mb()
    );
}

fn report(limit: &Limit, what: &str, is_alive: bool, took: Duration) {
    let peak = limit.take_peak_mb().map_or_else(|| "not known".into(), |mb| format!("{mb:.0} MB"));
    let verdict = if is_alive { "not killed" } else { "MISSED: it was killed" };
    println!("{what}: {verdict}; peak {peak}; {:.1} s", milliseconds(took) / 1e3);
}

impl Limit {
    fn name(&self) -> String {
        match self {
            Self::Group(group) => format!("in the cgroup {}", group.display()),
            Self::AddressSpace(bytes) => format!("in an address space of {bytes} bytes"),
            Self::None => "no limit; run scripts/small-machine".into(),
        }
    }
}

fn write_lines(path: &Path, lines: impl Iterator<Item = String>) {
    let mut out = BufWriter::new(std::fs::File::create(path).unwrap());
    for line in lines {
        writeln!(out, "{line}").unwrap();
    }
    out.flush().unwrap();
}

/// Unsigned events of about 100 KB.
fn long_events(count: usize) -> impl Iterator<Item = String> {
    let content = format!(r#""content":"{}"#, "a long article ".repeat(100_000 / 15));
    let mut rng = StdRng::seed_from_u64(11);
    (0..count)
        .map(move |number| unsigned_event(&mut rng, number).replacen(r#""content":""#, &content, 1))
}
