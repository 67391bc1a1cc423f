//! `tests/interop/negentropy-peer.mjs` in one Node process for many sessions.

use crate::support::distinct;
use negsync_reconcile::item::Item;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The process; it ends with its standard input.
pub struct Peer {
    child: Child,
    lines_in: Option<ChildStdin>,
    lines_out: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start() -> Self {
        let script =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/interop/negentropy-peer.mjs");
        let mut child = Command::new("node")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("node: {error}"));
        let lines_in = child.stdin.take();
        let lines_out = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines_in, lines_out }
    }

    /// Makes it the responder of the following sessions.
    pub fn respond(&mut self, limit: usize, items: &[Item]) {
        self.write(&format!("respond,{limit},{}", hex_items(items)));
        assert_eq!(self.read(), ("ready".to_owned(), String::new()));
    }

    pub fn answer(&mut self, message: &[u8]) -> Vec<u8> {
        self.write(&format!("msg,{}", faster_hex::hex_string(message)));
        self.expect("msg")
    }

    /// Makes it ask `answer` until it is done, and returns its result.
    pub fn ask(
        &mut self,
        limit: usize,
        items: &[Item],
        mut answer: impl FnMut(&[u8]) -> Vec<u8>,
    ) -> (Vec<[u8; 32]>, Vec<[u8; 32]>) {
        self.write(&format!("initiate,{limit},{}", hex_items(items)));
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let mut message = self.expect("msg");
        loop {
            assert!(message.len() <= limit, "{} bytes in a frame of {limit}", message.len());
            self.write(&format!("msg,{}", faster_hex::hex_string(&answer(&message))));
            have.extend(self.expect("have"));
            need.extend(self.expect("need"));
            match self.read() {
                (word, hex) if word == "msg" => message = unhex(&hex),
                (word, _) => {
                    assert_eq!(word, "done");
                    return (distinct(have.chunks(32)), distinct(need.chunks(32)));
                }
            }
        }
    }

    fn write(&mut self, line: &str) {
        writeln!(self.lines_in.as_mut().unwrap(), "{line}").unwrap();
    }

    fn expect(&mut self, word: &str) -> Vec<u8> {
        let (found, hex) = self.read();
        assert_eq!(found, word);
        unhex(&hex)
    }

    fn read(&mut self) -> (String, String) {
        let mut line = String::new();
        self.lines_out.read_line(&mut line).unwrap();
        let (word, rest) = line.trim_end().split_once(',').unwrap_or((line.trim_end(), ""));
        (word.to_owned(), rest.to_owned())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.lines_in.take());
        let _ = self.child.wait();
    }
}

fn hex_items(items: &[Item]) -> String {
    let bytes: Vec<u8> = items
        .iter()
        .flat_map(|item| [&item.created_at.to_be_bytes()[..], &item.id].concat())
        .collect();
    faster_hex::hex_string(&bytes)
}

fn unhex(hex: &str) -> Vec<u8> {
    faster_hex::hex_decode_vec(hex.as_bytes()).unwrap()
}
