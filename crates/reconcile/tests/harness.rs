//! `examples/harness` as a pair of processes, and against the crate.

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// An item's time and id hex.
type Line = (u64, String);

fn item(number: u64) -> Line {
    // Spread over few seconds, ids in no order.
    let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (1000 + number % 50, format!("{id:016x}{number:048x}"))
}

struct Harness {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Harness {
    fn start(items: &[Line], frame_limit_bytes: usize, rule: &str) -> Self {
        // Where `cargo test` builds examples; with `--test` alone it builds none.
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        path.pop();
        path.push("examples/harness");
        let mut child = Command::new(&path)
            .env("FRAMESIZELIMIT", frame_limit_bytes.to_string())
            .env("RULE", rule)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}: cargo build --example harness", path.display())
            });
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut harness = Self { child, answers };
        for (created_at, id) in items {
            harness.write(&format!("item,{created_at},{id}"));
        }
        harness.write("seal");
        harness
    }

    fn write(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn read(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, message: &str) -> String {
        self.write(&format!("msg,{message}"));
        self.read().strip_prefix("msg,").unwrap().to_owned()
    }

    /// Closes its input and says whether it ended well.
    fn end(mut self) -> bool {
        drop(self.child.stdin.take());
        self.child.wait().unwrap().success()
    }
}

/// Runs `initiator` against `answer` and returns what it has and needs, sorted.
fn session(
    initiator: &mut Harness,
    mut answer: impl FnMut(&str) -> String,
) -> (Vec<String>, Vec<String>) {
    let (mut have, mut need) = (Vec::new(), Vec::new());
    initiator.write("initiate");
    loop {
        let line = initiator.read();
        match line.split_once(',') {
            Some(("have", id)) => have.push(id.to_owned()),
            Some(("need", id)) => need.push(id.to_owned()),
            Some(("msg", message)) => {
                let answer = answer(message);
                initiator.write(&format!("msg,{answer}"));
            }
            _ => {
                assert_eq!(line, "done");
                break;
            }
        }
    }
    for ids in [&mut have, &mut need] {
        ids.sort();
        ids.dedup();
    }
    (have, need)
}

fn unhex(hex: &str) -> Vec<u8> {
    let mut bytes = vec![0; hex.len() / 2];
    faster_hex::hex_decode(hex.as_bytes(), &mut bytes).unwrap();
    bytes
}

fn ids(numbers: impl Iterator<Item = u64>) -> Vec<String> {
    let mut ids: Vec<String> = numbers.map(|number| item(number).1).collect();
    ids.sort();
    ids
}

fn sets() -> (Vec<Line>, Vec<Line>) {
    let ours = (0..3000).filter(|number| number % 10 != 3).map(item).collect();
    let theirs = (100..3000).filter(|number| number % 17 != 5).map(item).collect();
    (ours, theirs)
}

fn expected() -> (Vec<String>, Vec<String>) {
    let ours = |number: &u64| number % 10 != 3;
    let theirs = |number: &u64| *number >= 100 && number % 17 != 5;
    (
        ids((0..3000).filter(|number| ours(number) && !theirs(number))),
        ids((0..3000).filter(|number| theirs(number) && !ours(number))),
    )
}

#[test]
fn a_pair_of_processes_finds_what_differs() {
    let (ours, theirs) = sets();
    for rule in ["reference", "adaptive"] {
        for limit in [0, 4096, 20_000] {
            let mut initiator = Harness::start(&ours, limit, rule);
            let mut responder = Harness::start(&theirs, limit, rule);
            let found = session(&mut initiator, |message| responder.ask(message));
            assert!(found == expected(), "{rule}, {limit}");
            assert!(initiator.end() && responder.end());
        }
    }
}

#[test]
fn the_crate_answers_and_asks() {
    let (ours, theirs) = sets();
    let of = |items: &[Line]| {
        let mut set = NegentropyStorageVector::new();
        for (created_at, id) in items {
            let id = unhex(id).try_into().unwrap();
            set.insert(*created_at, Id::from_byte_array(id)).unwrap();
        }
        set.seal().unwrap();
        set
    };
    let theirs_of_the_crate = of(&theirs);
    for rule in ["reference", "adaptive"] {
        let mut responder = Negentropy::borrowed(&theirs_of_the_crate, 5000).unwrap();
        let mut initiator = Harness::start(&ours, 4096, rule);
        let found = session(&mut initiator, |message| {
            faster_hex::hex_string(&responder.reconcile(&unhex(message)).unwrap())
        });
        assert!(found == expected(), "{rule}");
        assert!(initiator.end());
    }

    let ours_of_the_crate = of(&ours);
    let mut initiator = Negentropy::borrowed(&ours_of_the_crate, 4096).unwrap();
    let mut responder = Harness::start(&theirs, 5000, "reference");
    let (mut have, mut need) = (Vec::new(), Vec::new());
    let mut message = initiator.initiate().unwrap();
    loop {
        let answer = responder.ask(&faster_hex::hex_string(&message));
        match initiator.reconcile_with_ids(&unhex(&answer), &mut have, &mut need).unwrap() {
            Some(next) => message = next,
            None => break,
        }
    }
    let hex = |found: Vec<Id>| {
        let mut ids: Vec<String> =
            found.iter().map(|id| faster_hex::hex_string(id.as_bytes())).collect();
        ids.sort();
        ids.dedup();
        ids
    };
    assert!((hex(have), hex(need)) == expected());
    assert!(responder.end());
}

#[test]
fn any_error_ends_it_with_a_failure() {
    for line in ["item,1,00", "seal", "msg,zz", "msg,6", "msg,61ff", "msg,", "hello"] {
        let mut harness = Harness::start(&[], 0, "reference");
        harness.write(line);
        assert!(!harness.end(), "{line}");
    }
}
