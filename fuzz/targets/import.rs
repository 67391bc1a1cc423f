//! The import reader: it returns every line with its number, complete or reported as too long, and
//! a reason for every line that is not an event. The first byte chooses the maximum length of
//! lines.

use super::input::Input;
use negsync::store::Event;
use std::io::BufReader;

// The reader belongs to the program, not to the library.
#[path = "../../src/cli/chunks.rs"]
mod chunks;

use chunks::Chunks;

pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let limit_bytes = [16 << 20, 1_000, 40, 1][usize::from(input.byte()) % 4];
    let text = input.rest();
    let mut expected = expected(text, limit_bytes);
    // A buffer small enough to split lines.
    let mut chunks = Chunks::new(BufReader::with_capacity(7, text), limit_bytes);
    let mut read_bytes = 0;
    while let Some(chunk) = chunks.next().expect("memory can be read") {
        read_bytes += chunk.bytes;
        for (line, text) in chunk.lines {
            assert_eq!(expected.next(), Some((line, Some(text.clone()))));
            check_line(&text);
        }
        if let Some(line) = chunk.too_long {
            assert_eq!(expected.next(), Some((line, None)));
        }
    }
    assert_eq!(expected.next(), None);
    assert_eq!(read_bytes, text.len() as u64);
}

/// Each line that is not empty, with its number; `None` for one that is too long.
fn expected(text: &[u8], limit_bytes: usize) -> impl Iterator<Item = (u64, Option<String>)> {
    text.split(|byte| *byte == b'\n').zip(1..).filter_map(move |(line, number)| {
        if line.len() > limit_bytes {
            return Some((number, None));
        }
        let line = String::from_utf8_lossy(line);
        // Some editors begin a file with a byte order mark.
        let line = line.trim_start_matches('\u{feff}').trim();
        (!line.is_empty()).then(|| (number, Some(line.to_owned())))
    })
}

fn check_line(text: &str) {
    match Event::parse(text).and_then(Event::verify) {
        Ok(event) => assert!(Event::parse(event.json()).is_ok()),
        Err(error) => assert!(!error.reason.is_empty() && error.reason.len() <= 1_024),
    }
}
