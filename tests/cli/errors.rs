//! Errors of the command line name the cause, the object and a hint, in one line and with an exit
//! code.

use crate::support::disk::write_secret;
use crate::support::process::{RelayProcess, negsync};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

struct Row<'row> {
    arguments: &'row str,
    // The parts of the line: the cause, the object, the hint.
    says: &'row [&'row str],
    code: i32,
}

const fn row<'row>(arguments: &'row str, says: &'row [&'row str]) -> Row<'row> {
    Row { arguments, says, code: 1 }
}

fn check(directory: &Path, rows: &[Row<'_>]) {
    for Row { arguments, says, code } in rows {
        // `%` stands for the directory.
        let of_directory = |word: &str| word.replace('%', directory.to_str().unwrap());
        let words: Vec<String> = arguments.split(' ').map(of_directory).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = negsync(&words, "");
        assert_eq!(ended.status.code(), Some(*code), "{words:?}: {}", ended.stderr);
        let text = format!("{}{}", ended.stdout, ended.stderr);
        for part in *says {
            let part = of_directory(part);
            assert!(text.contains(&part), "{words:?} does not say {part:?}: {text}");
        }
        assert!(!text.contains("panicked") && !text.contains("Error {"), "{words:?}: {text}");
        // The cause appears once, although the error, its source and the source's source all have
        // it.
        if *code == 1 && text.starts_with("negsync: ") {
            assert_eq!(text.trim_end().lines().count(), 1, "{words:?}: {text}");
        }
    }
}

#[test]
fn files_that_cannot_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    std::fs::write(directory.join("notes.txt"), "somebody's notes\n".repeat(100)).unwrap();
    std::fs::create_dir(directory.join("empty")).unwrap();
    check(
        directory,
        &[
            row(
                "relay --config %/no.toml",
                &["configuration %/no.toml", "No such file", "leave --config out"],
            ),
            row("import --config %", &["configuration %", "directory", "leave --config out"]),
            row(
                "relay --store %/no/a.sqlite",
                &["%/no/a.sqlite.lock", "No such file", "make the directory first", "--store"],
            ),
            row(
                "import --store %/no/a.sqlite",
                &["%/no/a.sqlite.lock", "No such file", "make the directory first"],
            ),
            row(
                "import --store %/notes.txt",
                &["%/notes.txt", "not a database", "name another with --store"],
            ),
            row(
                "export --store %/no.sqlite",
                &["%/no.sqlite", "unable to open", "--store", "negsync import"],
            ),
            row("neg-open {} --store %/no.sqlite", &["%/no.sqlite", "unable to open", "--store"]),
            row(
                "neg-open {} --events %/no.jsonl",
                &["%/no.jsonl", "No such file", "is its name right?"],
            ),
            row(
                "import %/no.jsonl --store %/a.sqlite",
                &["%/no.jsonl", "No such file", "is its name right?"],
            ),
            row("import %/empty --store %/a.sqlite", &["cannot read %/empty", "directory"]),
        ],
    );
}

#[test]
fn addresses_and_urls_that_cannot_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listen = format!("relay --store %/a.sqlite --listen {address}");
    check(
        directory.path(),
        &[
            row(&listen, &["cannot listen on", &address, "in use", "another program", "--listen"]),
            // TEST-NET-1: no machine has it.
            row(
                "relay --store %/a.sqlite --listen 192.0.2.1:7777",
                &["192.0.2.1:7777", "this machine does not have that address"],
            ),
            row(
                "relay --listen 7777",
                &["'7777'", "must be an address and a port: \"127.0.0.1:7777\""],
            ),
            row("relay --listen localhost", &["'localhost'", "localhost:7777"]),
            row("attach --listen 127.0.1:7777", &["'127.0.1:7777'", "localhost:7777"]),
            row(
                "sync http://relay.example.com",
                &["http://relay.example.com", "ws:// or wss://", "wss://relay.example.com"],
            ),
            row("sync relay.example.com", &["\"relay.example.com\"", "ws:// or wss://"]),
            row("diff wss://", &["\"wss://\"", "wss://relay.example.com"]),
            row("sync ws://me:secret@relay.example.com", &["user name", "wss://relay.example.com"]),
        ],
    );
}

#[test]
fn filters_and_words_that_cannot_be_used() {
    let directory = tempfile::tempdir().unwrap();
    let filter = "'{\"kinds\":[1]";
    check(
        directory.path(),
        &[
            row(
                "sync ws://127.0.0.1:1 --filter {kinds:[1]}",
                &["--filter", "not JSON", filter, "single quotes"],
            ),
            row("export --filter [1]", &["--filter", "a JSON object", filter]),
            row("export --filter {\"kinds\":[\"a\"]}", &["kinds", "from 0 to 65535", filter]),
            row("export --filter {\"kind\":[1]}", &["kind: not a filter key", filter]),
            row("neg-open { --empty", &["\"{\"", "not JSON", filter]),
            row("sync ws://127.0.0.1:1 --direction in", &["'in'", "down, up or both"]),
            row("decode xyz", &["byte 0", "no hex digit"]),
            row("frobnicate", &["frobnicate", "--help"]),
            row("relay --frobnicate", &["--frobnicate", "--help"]),
            row("sync", &["<URL>", "Usage: negsync sync"]),
            row("man nonsense", &["\"nonsense\"", "negsync --help"]),
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_in_use_keys_that_are_none_and_relays_that_are_away() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let running = RelayProcess::start(&directory.join("used.sqlite"));
    write_secret(&directory.join("key"), "not a key");
    let open = directory.join("open");
    write_secret(&open, &"01".repeat(32));
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(directory.join("open.toml"), format!("[sync]\nkey_file = {open:?}\n")).unwrap();
    let key = directory.join("key");
    std::fs::write(directory.join("key.toml"), format!("[sync]\nkey_file = {key:?}\n")).unwrap();
    std::fs::write(directory.join("asks.toml"), "[auth]\nrequired = true\n").unwrap();
    let away = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = away.local_addr().unwrap().to_string();
    drop(away);
    let away = format!("diff ws://{address} --store %/a.sqlite");
    let incomplete = |arguments, says| Row { arguments, says, code: 2 };
    check(
        directory,
        &[
            row(
                "relay --store %/used.sqlite --listen 127.0.0.1:0",
                &["%/used.sqlite", "in use", "stop it first"],
            ),
            row("import --store %/used.sqlite", &["%/used.sqlite", "in use", "stop it first"]),
            row("sync ws://127.0.0.1:1 --store %/used.sqlite", &["%/used.sqlite", "stop it first"]),
            row(
                "sync ws://127.0.0.1:1 --store %/a.sqlite --config %/open.toml",
                &["%/open", "0644", "others can read it", "chmod 600"],
            ),
            row(
                "sync ws://127.0.0.1:1 --store %/a.sqlite --config %/key.toml",
                &["%/key", "64 hex digits"],
            ),
            row(
                "attach --attach nostr-rs-relay:%/nostr.db --config %/asks.toml",
                &["[auth] asks clients for a key", "attach.relay_url is empty: set it"],
            ),
            incomplete(&away, &[&address, "nothing serves at", "is the relay running?"]),
            incomplete(
                "diff ws://relay.invalid --store %/a.sqlite",
                &["ws://relay.invalid", "is the name relay.invalid right?"],
            ),
        ],
    );
    drop(running);
}
