//! Reads the lines of an import in chunks, each line with its number and of bounded length.

use anyhow::Context;
use std::io::{BufRead, Read};

/// Lines in a chunk, and their approximate bytes.
const CHUNK_LINES: usize = 512;
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// Lines with their numbers, counted from 1, and their number of input bytes.
pub(super) struct Chunk {
    pub(super) lines: Vec<(u64, String)>,
    // The number of a line above the length limit, which ends the chunk.
    pub(super) too_long: Option<u64>,
    pub(super) bytes: u64,
}

/// Reads an input chunk by chunk.
pub(super) struct Chunks<R> {
    input: R,
    line_limit_bytes: usize,
    line: u64,
}

impl<R: BufRead> Chunks<R> {
    /// Chunks whose lines have at most `line_limit_bytes` each, without line ends.
    pub(super) fn new(input: R, line_limit_bytes: usize) -> Self {
        Self { input, line_limit_bytes, line: 0 }
    }

    /// The next lines, without empty ones; `None` at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Chunk>> {
        let mut chunk = Chunk { lines: Vec::with_capacity(CHUNK_LINES), too_long: None, bytes: 0 };
        while chunk.lines.len() < CHUNK_LINES && chunk.bytes < CHUNK_BYTES as u64 {
            let mut text = Vec::new();
            let read = (&mut self.input)
                .take(self.line_limit_bytes as u64 + 1)
                .read_until(b'\n', &mut text)
                .with_context(|| format!("cannot read line {}", self.line + 1))?;
            if read == 0 {
                break;
            }
            self.line += 1;
            chunk.bytes += read as u64;
            if read > self.line_limit_bytes && text.last() != Some(&b'\n') {
                chunk.bytes += self.input.skip_until(b'\n')? as u64;
                chunk.too_long = Some(self.line);
                break;
            }
            // Invalid UTF-8 is invalid JSON too, and is reported as such.
            let text = String::from_utf8_lossy(&text);
            // Some editors begin a file with a byte order mark.
            let text = text.trim_start_matches('\u{feff}').trim();
            if !text.is_empty() {
                chunk.lines.push((self.line, text.to_owned()));
            }
        }
        Ok((chunk.bytes > 0).then_some(chunk))
    }
}
