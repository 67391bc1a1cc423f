//! `negsync import`: reads JSON Lines, and prints a summary line.

use crate::support::client::Client;
use crate::support::negentropy_client::neg_ids;
use crate::support::process::{Ended, RelayProcess, negsync};
use crate::support::{Author, corpora, events, id_of, model};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub fn lines(events: &[Value]) -> String {
    events.iter().map(|event| format!("{event}\n")).collect()
}

pub fn import(store: &Path, arguments: &[&str], stdin: &str) -> Ended {
    let store = store.to_str().unwrap();
    negsync(&[&["import", "--store", store], arguments].concat(), stdin)
}

fn write(directory: &Path, text: &str) -> PathBuf {
    let path = directory.join("events.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}

/// The numbers of the summary by the words after them.
fn counts(ended: &Ended) -> Vec<(u64, String)> {
    let line = ended.stdout.lines().last().unwrap_or_else(|| panic!("no last line: {ended:?}"));
    line.split([',', '('])
        .map(|part| part.trim_matches([' ', ')']).split_once(' ').unwrap())
        .map(|(count, what)| (count.parse().unwrap(), what.to_owned()))
        .collect()
}

fn count(ended: &Ended, what: &str) -> u64 {
    counts(ended).iter().find(|(_, name)| name == what).map_or(0, |(count, _)| *count)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_is_what_a_relay_serves() {
    for corpus in corpora(60, 400) {
        for way in ["file", "dash", "standard input", "no-verify"] {
            let directory = tempfile::tempdir().unwrap();
            let store = directory.path().join("events.sqlite");
            let text = lines(&corpus.events);
            let file = write(directory.path(), &text);
            let file = file.to_str().unwrap();
            let ended = match way {
                "file" => import(&store, &[file], ""),
                "dash" => import(&store, &["-"], &text),
                "no-verify" => import(&store, &["--no-verify", file], ""),
                _ => import(&store, &[], &text),
            };
            assert!(ended.status.success(), "{way}: {ended:?}");
            let kept = model::kept(&corpus.events, events::unix_now());
            let all: u64 =
                ["stored", "duplicate", "refused"].map(|w| count(&ended, w)).iter().sum();
            assert_eq!(all, corpus.events.len() as u64, "{way}: {ended:?}");
            assert!(count(&ended, "stored") >= kept.len() as u64, "{way}: {ended:?}");
            // Repeated: all kept events are duplicates.
            let again = import(&store, &[file], "");
            assert!(count(&again, "duplicate") >= kept.len() as u64, "{way}: {again:?}");

            let relay = RelayProcess::start(&store);
            let mut client = relay.client().await;
            let shown = model::public(&kept);
            let served: Vec<Value> =
                model::answer(&[json!({})], &shown).into_iter().cloned().collect();
            assert_eq!(client.query(&[json!({})]).await, served, "{}, {way}", corpus.name);
            assert_eq!(neg_ids(&mut client, &json!({})).await, model::ids(&shown));
        }
    }
}

#[test]
fn the_closing_line_counts_by_reason() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let author = Author::new(1);
    let at = events::EPOCH;
    let deleted = author.note(at, "deleted");
    let all = [
        author.deletion(at, json!([["e", id_of(&deleted)]])),
        deleted,
        author.event(0, at + 1, json!([]), "new"),
        author.event(0, at, json!([]), "old"),
        author.event(20_000, at, json!([]), "ephemeral"),
        author.event(1, at, json!([["expiration", "1"]]), "expired"),
        author.note(at, "stored"),
    ];
    let mut forged = author.note(at, "said");
    forged["content"] = json!("never said");
    let text = format!("{}{forged}\nnot json\n{}", lines(&all), lines(&all[6..]));
    let ended = import(&store, &[], &text);
    assert!(ended.status.success(), "{ended:?}");
    for (what, expected) in [
        ("stored", 3),
        ("duplicate", 1),
        ("refused", 6),
        ("superseded", 1),
        ("deleted", 1),
        ("ephemeral", 1),
        ("expired", 1),
        ("invalid", 2),
    ] {
        assert_eq!(count(&ended, what), expected, "{what}: {ended:?}");
    }
    let again = import(&store, &["--json"], &text);
    let report: Value = serde_json::from_str(&again.stdout).unwrap();
    let refused_for = json!({
        "superseded": 1, "deleted": 1, "ephemeral": 1, "expired": 1, "invalid": 2
    });
    let expected = json!({ "stored": 0, "duplicate": 4, "refused": 6, "refused_for": refused_for });
    assert_eq!(report, expected);
    // A repeated import finds nothing new.
    let again = import(&store, &[], &text);
    assert_eq!(count(&again, "stored"), 0, "{again:?}");
}

#[test]
fn a_bad_line_is_reported_with_its_number_and_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let author = Author::new(1);
    let notes: Vec<Value> =
        (0..1_500).map(|second| author.note(events::EPOCH + second, "n")).collect();
    let mut forged = notes[7].clone();
    forged["sig"] = notes[8]["sig"].clone();
    let mut text: Vec<Vec<u8>> =
        notes.iter().map(|note| format!("{note}\r\n").into_bytes()).collect();
    // Empty lines count only as lines.
    text.insert(3, b"\n".to_vec());
    text.insert(4, b"not json\n".to_vec());
    text.insert(600, b"{\"id\":5}\n".to_vec());
    text.insert(601, vec![0xff, 0xfe, b'\n']);
    text.insert(900, format!("{forged}\n").into_bytes());
    text.insert(1_200, [vec![b'x'; 17 << 20], b"\n".to_vec()].concat());
    text.push(b"[]".to_vec());
    let path = directory.path().join("events.jsonl");
    std::fs::write(&path, text.concat()).unwrap();
    let ended = import(&store, &[path.to_str().unwrap()], "");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(count(&ended, "stored"), 1_500, "{}", ended.stdout);
    assert_eq!(count(&ended, "duplicate"), 0, "{}", ended.stdout);
    let expected = [
        (5, "event: not JSON"),
        (601, "id: "),
        (602, "event: not JSON"),
        (901, "sig: "),
        (1_201, "longer than 16 MiB"),
        (text.len(), "event: must be a JSON object"),
    ];
    for (line, reason) in expected {
        let report = format!("line {line}: {reason}");
        assert!(ended.stderr.contains(&report), "no {report:?} in {}", ended.stderr);
    }
    assert_eq!(ended.stderr.lines().count(), count(&ended, "invalid") as usize, "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_verify_trusts_and_verification_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let mut forged = Author::new(1).note(events::EPOCH, "x");
    forged["sig"] = json!("00".repeat(64));
    let text = lines(std::slice::from_ref(&forged));
    let ended = import(&store, &[], &text);
    assert_eq!((count(&ended, "stored"), count(&ended, "invalid")), (0, 1), "{ended:?}");
    assert!(ended.stderr.contains("line 1: sig: "), "{ended:?}");
    let ended = import(&store, &["--no-verify"], &text);
    assert_eq!(count(&ended, "stored"), 1, "{ended:?}");
    // Text that is not an event is refused nevertheless.
    let ended = import(&store, &["--no-verify"], "{}\n");
    assert_eq!(count(&ended, "invalid"), 1, "{ended:?}");
}

/// The index files beside the store.
fn index_files(store: &Path) -> BTreeSet<OsString> {
    let entries = std::fs::read_dir(store.parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains("-index-")).collect()
}

/// A relay that started after an import used to read the whole store.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_goes_on_from_the_index_files_of_an_import() {
    const EVENTS: usize = 17_000;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let (note, mut text) = (Author::new(1).note(events::EPOCH, "x"), String::new());
    for number in 0..EVENTS {
        let mut note = note.clone();
        note["id"] = json!(format!("{number:064x}"));
        writeln!(text, "{note}").unwrap();
    }
    let ended = import(&store, &["--no-verify"], &text);
    assert_eq!(count(&ended, "stored"), EVENTS as u64, "{ended:?}");
    let left = index_files(&store);
    assert!(!left.is_empty());
    let relay = RelayProcess::start(&store);
    let mut client = relay.client().await;
    assert_eq!(neg_ids(&mut client, &json!({})).await.len(), EVENTS);
    assert_eq!(index_files(&store), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_beside_a_running_relay_is_refused_and_so_is_a_second_relay() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let note = Author::new(1).note(events::EPOCH, "x");
    let text = lines(std::slice::from_ref(&note));
    let relay = RelayProcess::start(&store);
    let mut client: Client = relay.client().await;
    let path = store.to_str().unwrap();
    for arguments in
        [vec!["import", "--store", path], vec!["relay", "--listen", "127.0.0.1:0", "--store", path]]
    {
        let ended = negsync(&arguments, &text);
        assert!(!ended.status.success(), "{ended:?}");
        assert!(ended.stderr.contains("in use"), "{}", ended.stderr);
        assert!(ended.stderr.contains(path), "{}", ended.stderr);
    }
    client.fence().await;
    assert_eq!(client.count(&[json!({})]).await, 0);
    relay.signal("KILL");
    relay.ended();
    // However the relay ended, its lock is free.
    assert_eq!(count(&import(&store, &[], &text), "stored"), 1);
}

/// Inside relays' and clients' messages, and packed, in one or several members.
#[test]
fn events_are_found_in_messages_and_in_packed_files() {
    let directory = tempfile::tempdir().unwrap();
    let notes: Vec<Value> =
        (0..300).map(|second| Author::new(1).note(events::EPOCH + second, "n")).collect();
    let line = |number: usize, note: &Value| match number % 3 {
        0 => format!("{note}\n"),
        1 => format!("{}\n", json!(["EVENT", note])),
        _ => format!(" [ \"EVENT\", \"a, sub\" ,{note} ] \r\n"),
    };
    let text: Vec<String> = notes.iter().enumerate().map(|(n, note)| line(n, note)).collect();
    let (first, second) = (text[..100].concat().into_bytes(), text[100..].concat().into_bytes());
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    for (name, parts) in [
        ("plain", [first.clone(), second.clone()]),
        ("gzip", [gzip(&first), gzip(&second)]),
        ("zstd", [zstd(&first), zstd(&second)]),
    ] {
        let store = directory.path().join(name);
        let path = directory.path().join("events");
        std::fs::write(&path, parts.concat()).unwrap();
        let ended = import(&store, &[path.to_str().unwrap()], "");
        assert!(ended.status.success() && ended.stderr.is_empty(), "{name}: {ended:?}");
        assert_eq!(count(&ended, "stored"), 300, "{name}: {ended:?}");
    }
    // Other messages are not events.
    let other = "[\"EOSE\",\"x\"]\n[\"EVENT\"]\n[\"event\",{}]\n[\"EVENT\",{},{},{}]\n";
    let ended = import(&directory.path().join("plain"), &[], &format!("{}\n{other}", notes[0]));
    assert_eq!((count(&ended, "duplicate"), count(&ended, "invalid")), (1, 4), "{ended:?}");
}

/// Twenty lines are shown; a file of another kind does not fill the screen.
#[test]
fn many_bad_lines_are_summed_up() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let note = Author::new(1).note(events::EPOCH, "n");
    let mut forged = note.clone();
    forged["content"] = json!("never said");
    let text = format!("{note}\n{}{}", "bad\n".repeat(30), format!("{forged}\n").repeat(12));
    let ended = import(&store, &[], &text);
    let said: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(said.len(), 22, "{ended:?}");
    assert!(said[0].starts_with("line 2: ") && said[19].starts_with("line 21: "), "{said:?}");
    let rest = directory.path().join("events.sqlite.import-errors");
    let summed_up = "22 further lines are not events, by the wrong field: event 10 (first in line 22), \
         id 12 (first in line 32)";
    assert_eq!(said[21], format!("{summed_up}; they are listed in {}", rest.display()));
    let listed = std::fs::read_to_string(&rest).unwrap();
    let listed: Vec<&str> = listed.lines().collect();
    assert_eq!((listed.len(), listed[21].split(": ").next()), (22, Some("line 43")));
    assert_eq!(count(&ended, "invalid"), 42, "{ended:?}");
    let ended = import(&store, &[], &"bad\n".repeat(20));
    assert_eq!(ended.stderr.lines().count(), 21, "{ended:?}");
}

#[test]
fn a_missing_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let ended = import(&directory.path().join("events.sqlite"), &["/nowhere/events.jsonl"], "");
    assert!(!ended.status.success() && ended.stderr.contains("/nowhere/events.jsonl"), "{ended:?}");
}

/// A line above the limit is refused completely, whatever its beginning.
#[test]
fn a_line_over_the_limit_is_reported_as_too_long_whatever_it_begins_with() {
    const LIMIT: usize = 16 << 20;
    let directory = tempfile::tempdir().unwrap();
    let author = Author::new(1);
    let [hidden, padded, after, last] =
        ["hidden", "padded", "after", "last"].map(|text| author.note(events::EPOCH, text));
    let padded = padded.to_string();
    let text = [
        // Blank up to the limit.
        format!("{}{hidden}\r\n", " ".repeat(LIMIT)),
        // Exactly the maximum length.
        format!("{}{padded}\n", " ".repeat(LIMIT - padded.len())),
        format!("{}\n", " ".repeat(3 * LIMIT + 1)),
        format!("{after}\r\n"),
        // Without a line end.
        format!("{last}"),
    ];
    let path = write(directory.path(), &text.concat());
    let ended = import(&directory.path().join("store"), &[path.to_str().unwrap()], "");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stderr, "line 1: longer than 16 MiB\nline 3: longer than 16 MiB\n");
    assert_eq!((count(&ended, "stored"), count(&ended, "invalid")), (3, 2), "{ended:?}");
    // At the end of the input too.
    let path = write(directory.path(), &" ".repeat(LIMIT + 1));
    let ended = import(&directory.path().join("store"), &[path.to_str().unwrap()], "");
    assert!(ended.stderr.starts_with("line 1: longer than 16 MiB\n"), "{ended:?}");
    // An empty input is valid.
    let ended = import(&directory.path().join("store"), &[], "");
    assert!(ended.status.success() && count(&ended, "stored") == 0, "{ended:?}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("empty");
    std::fs::create_dir(&path).unwrap();
    let path = path.to_str().unwrap();
    let ended = import(&directory.path().join("store"), &[path], "");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains(path) && ended.stderr.contains("directory"), "{ended:?}");
}

/// The reader of the messages may stop: the import still completes.
#[test]
fn a_reader_of_the_messages_that_stops_early_does_not_stop_the_import() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let note = Author::new(1).note(events::EPOCH, "behind many bad lines");
    let path = write(directory.path(), &format!("{}{note}\n", "bad\n".repeat(5_000)));
    let mut child = Command::new(env!("CARGO_BIN_EXE_negsync"))
        .args(["import", "--store", store.to_str().unwrap(), path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    let again = import(&store, &[], &lines(&[note]));
    assert_eq!(count(&again, "duplicate"), 1, "{again:?}");
}

/// The same file under another name is the same store.
#[test]
fn a_store_is_in_use_under_all_its_names() {
    let directory = tempfile::tempdir().unwrap();
    let [store, link] = ["events.sqlite", "link.sqlite"].map(|name| directory.path().join(name));
    std::os::unix::fs::symlink(&store, &link).unwrap();
    for (ours, theirs) in [(&store, &link), (&link, &store)] {
        let _relay = RelayProcess::start(ours);
        let ended = import(theirs, &[], "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains("in use"), "{ended:?}");
    }
}

#[test]
fn a_file_of_something_else_is_told_with_what_makes_lines_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let notes: Vec<Value> = (0..3).map(|n| Author::new(1).note(events::EPOCH + n, "n")).collect();
    let path = directory.path().join("events");
    for (bytes, words) in [
        (vec![0x1f, 0x8b, 8, 0], "cannot read"),
        (vec![0x28, 0xb5, 0x2f, 0xfd, 0xff], "cannot read"),
        (serde_json::to_vec_pretty(&notes).unwrap(), "jq -c '.[]'"),
        (serde_json::to_vec(&notes).unwrap(), "jq -c '.[]'"),
        (b"not json\n".to_vec(), "no line is an event"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let ended = import(&store, &[path.to_str().unwrap()], "");
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(words), "{words}: {ended:?}");
    }
    // A byte order mark is not a part of the first event.
    let ended = import(&store, &[], &format!("\u{feff}{}", lines(&notes)));
    assert!(ended.status.success() && count(&ended, "stored") == 3, "{ended:?}");
    // A single faulty line has its own number.
    let ended = import(&store, &[], &format!("{}{{\"id\n", lines(&notes)));
    assert!(ended.stderr.starts_with("line 4: ") && !ended.stderr.contains("line 1"), "{ended:?}");
}

/// The files of a directory, packed or not, and events written by strfry with --fried.
#[test]
fn the_files_of_a_directory_are_imported_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let [store, folder] = ["events.sqlite", "exports"].map(|name| directory.path().join(name));
    std::fs::create_dir_all(folder.join("deeper")).unwrap();
    let notes: Vec<Value> =
        (0..30).map(|second| Author::new(1).note(events::EPOCH + second, "n")).collect();
    let fried: String = notes[..10]
        .iter()
        .map(|note| {
            let mut note = note.clone();
            note["fried"] = json!("9c010000");
            format!("{note}\n")
        })
        .collect();
    let bad = "bad\n".repeat(25);
    let packed = zstd::encode_all(lines(&notes[10..]).as_bytes(), 1).unwrap();
    std::fs::write(folder.join("a.jsonl"), format!("{fried}{bad}")).unwrap();
    std::fs::write(folder.join("b.jsonl.zst"), packed).unwrap();
    std::fs::write(folder.join(".hidden"), "bad").unwrap();
    std::fs::write(folder.join("deeper").join("c.jsonl"), "bad").unwrap();
    let errors = directory.path().join("errors");
    let arguments = [folder.to_str().unwrap(), "--errors", errors.to_str().unwrap()];
    let ended = import(&store, &arguments, "");
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!((count(&ended, "stored"), count(&ended, "invalid")), (30, 25), "{ended:?}");
    let place = format!("{}, line 11: ", folder.join("a.jsonl").display());
    assert!(ended.stderr.starts_with(&place), "{ended:?}");
    assert_eq!(std::fs::read_to_string(&errors).unwrap().lines().count(), 5);
    let again = import(&store, &[folder.join("a.jsonl").to_str().unwrap()], "");
    assert!(again.stderr.starts_with("line 11: "), "{again:?}");
}

#[test]
fn a_relay_is_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let ended = import(&directory.path().join("store"), &["wss://relay.example.com"], "");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let hint = "`negsync sync wss://relay.example.com --direction down`";
    assert!(ended.stderr.contains(hint), "{ended:?}");
}
