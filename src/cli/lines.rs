//! Reads lines, each with its number and of bounded length.

use anyhow::{Context, ensure};
use std::io::{BufRead, Read};

/// Maximum length of a line, in bytes.
const LINE_BYTES: u64 = 64 << 20;

/// Reads an input line by line.
pub(super) struct Lines<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, number: 0 }
    }

    /// The next line that is not empty, with its number counted from 1; `None` at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<(u64, String)>> {
        loop {
            self.number += 1;
            let number = self.number;
            let mut line = Vec::new();
            let read = self
                .input
                .by_ref()
                .take(LINE_BYTES)
                .read_until(b'\n', &mut line)
                .with_context(|| format!("cannot read line {number}"))?;
            ensure!((read as u64) < LINE_BYTES, "line {number} is longer than {LINE_BYTES} bytes");
            if read == 0 {
                return Ok(None);
            }
            let line = String::from_utf8_lossy(&line);
            if !line.trim().is_empty() {
                return Ok(Some((number, line.trim().to_owned())));
            }
        }
    }
}
