//! Every example in a `--help` does what it is shown for.

use super::import::{import, lines};
use crate::support::events::EPOCH;
use crate::support::process::{RelayProcess, examples, negsync};
use crate::support::{Author, id_of};
use negsync_testserver::TestServer;
use nostr::nips::nip19::ToBech32;
use nostr::{EventId, PublicKey};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Other programs in the examples, as scripts that do the necessary part of their work.
const OTHERS: [(&str, &str); 4] = [
    ("systemctl", "exit 0"),
    ("jq", "exec grep -q '^{'"),
    ("man", "exec grep -q '^.TH '"),
    ("strfry", "exec cat events.jsonl"),
];

/// A machine with a store of some events, a configuration, a relay on another store, and the files
/// named in the examples.
struct Machine {
    directory: tempfile::TempDir,
    relays: Vec<RelayProcess>,
    // `None` without PostgreSQL, which is reported.
    database: Option<TestServer>,
    notes: Vec<Value>,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let notes: Vec<Value> =
            (0..20).map(|second| Author::new(1).note(EPOCH + second, "n")).collect();
        let relays = (0..2).map(|number| {
            let store = directory.path().join(format!("relay-{number}.sqlite"));
            assert!(import(&store, &[], &lines(&notes[number..])).status.success());
            RelayProcess::start(&store)
        });
        let database = TestServer::start();
        let machine = Self { relays: relays.collect(), database, notes, directory };
        std::fs::create_dir_all(machine.path("exports")).unwrap();
        std::fs::create_dir_all(machine.path("home/.local/share/bash-completion/completions"))
            .unwrap();
        std::fs::create_dir_all(machine.path("bin")).unwrap();
        for file in ["events.jsonl", "exports/events.jsonl"] {
            std::fs::write(machine.path(file), lines(&machine.notes)).unwrap();
        }
        let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
        std::io::Write::write_all(&mut packed, lines(&machine.notes).as_bytes()).unwrap();
        std::fs::write(machine.path("events.jsonl.zst"), packed.finish().unwrap()).unwrap();
        let text = format!(
            "[relay]\nlisten = {:?}\n[store]\npath = \"events.sqlite\"\n\
             [retention]\nrules = [{{ kinds = [7], max_age_s = 60 }}]\n",
            machine.address()
        );
        std::fs::write(machine.path("relay.toml"), text).unwrap();
        for (name, script) in OTHERS {
            let path = machine.path("bin").join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn address(&self) -> &str {
        self.relays[0].url().trim_start_matches("ws://")
    }

    /// Creates the stores that an example needs.
    fn prepare(&self, command: &str) {
        for name in ["copy.sqlite", "backup.sqlite", "events.sqlite", "negsync.sqlite"] {
            for suffix in ["", "-wal", "-shm", ".lock", ".bans"] {
                let _ = std::fs::remove_file(self.path(&format!("{name}{suffix}")));
            }
        }
        let stores = match command {
            "restore" => ["copy.sqlite", "backup.sqlite"],
            _ => ["events.sqlite", "negsync.sqlite"],
        };
        for name in stores {
            assert!(import(&self.path(name), &[], &lines(&self.notes)).status.success());
        }
    }

    /// An example as it is run here.
    fn here(&self, example: &str) -> String {
        let (note, key) = (id_of(&self.notes[3]), Author::new(1).key());
        let note = EventId::from_hex(note).unwrap().to_bech32().unwrap();
        let public = PublicKey::from_hex(&key).unwrap().to_bech32().unwrap();
        let [one, other] = [0, 1].map(|number| self.relays[number].url().to_owned());
        let database = self.database.as_ref().map_or("", TestServer::url);
        let places = [
            ("postgres://relay@db.example/events", database),
            ("/etc/negsync/", ""),
            ("/var/lib/negsync/", ""),
            ("/backup/2026-11-26.sqlite", "backup.sqlite"),
            ("/backup/", ""),
            ("wss://relay.example.com", &one),
            ("wss://a.example.com", &one),
            ("wss://b.example.com", &other),
            // For a sync between this relay and another one.
            ("--between ws://127.0.0.1:7777", &format!("--between {other}")),
            ("127.0.0.1:7777", self.address()),
            ("note1...", &note),
            ("npub1...", &public),
            ("HEX", &key),
        ];
        places.iter().fold(example.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    fn shell(&self, line: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_negsync")).parent().unwrap().display();
        let path =
            format!("{}:{program}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(self.directory.path()).stdin(Stdio::null());
        command.env("PATH", path).env("HOME", self.path("home"));
        command
    }

    fn run(&self, command: &str, example: &str) -> Output {
        self.prepare(command);
        self.shell(&self.here(example)).output().unwrap()
    }
}

/// The commands that `negsync --help` lists.
fn commands() -> Vec<String> {
    let help = negsync(&["--help"], "").stdout;
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let names = list.lines().take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
    names.filter(|name| *name != "help").map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_example_of_each_help_runs() {
    let machine = Machine::new();
    let commands = commands();
    assert!(commands.len() > 20, "{commands:?}");
    // The relay serves until it is ended, and attach is tested beside another relay's database.
    let mut left_out = vec!["relay", "attach"];
    if machine.database.is_none() {
        left_out.push("copy");
    }
    for command in commands.iter().filter(|it| !left_out.contains(&it.as_str())) {
        for example in examples(command) {
            let ended = machine.run(command, &example);
            // A difference is a valid result.
            let is_answer =
                ended.status.success() || (command == "diff" && ended.status.code() == Some(3));
            assert!(is_answer, "{example}: {ended:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_example_of_a_relay_serves() {
    let machine = Machine::new();
    for example in examples("relay") {
        machine.prepare("relay");
        let line =
            format!("exec env {}", example.replace("/etc/negsync/", "").replace(":7777", ":0"));
        let mut command = machine.shell(&line);
        command.env("NEGSYNC__RELAY__LISTEN", "127.0.0.1:0");
        RelayProcess::serving(command).client().await.fence().await;
    }
}
