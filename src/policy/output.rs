//! The program's standard error output: logged, at a bounded rate.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of the program's lines that are logged in a [`PERIOD`].
const LINES: u64 = 60;
const PERIOD: Duration = Duration::from_secs(60);
/// Maximum length of a logged line, in bytes; the rest is cut off.
const LINE_BYTES: usize = 1_024;

/// Counts the lines of a period. It outlives the runs of the program, because a program that is
/// restarted repeatedly writes the same lines each time.
pub(super) struct Output {
    state: Mutex<OutputState>,
}

struct OutputState {
    began: Instant,
    lines: u64,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(OutputState { began: Instant::now(), lines: 0 }) }
    }

    /// Whether a line may be logged now. Logs the number of lines that were left out before it.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.began) >= PERIOD {
            let left_out = state.lines.saturating_sub(LINES);
            if left_out > 0 {
                tracing::warn!(left_out, "write policy output: lines were left out of the log");
            }
            *state = OutputState { began: now, lines: 0 };
        }
        state.lines = state.lines.saturating_add(1);
        if state.lines == LINES {
            tracing::warn!(
                "write policy output: log limit of {LINES} lines in {} s reached; further lines are \
                dropped until then",
                PERIOD.as_secs()
            );
        }
        state.lines <= LINES
    }

    /// Logs what the program writes to standard error, until its end.
    pub(super) fn log_lines(&self, stderr: impl Read) {
        let mut lines = BufReader::new(stderr);
        loop {
            let mut line = Vec::new();
            // Bounds the memory of a line without an end.
            match lines.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if !line.ends_with(b"\n") && skip_line(&mut lines).is_none() {
                return;
            }
            if self.admits(Instant::now()) {
                tracing::info!("write policy: {}", String::from_utf8_lossy(&line).trim_end());
            }
        }
    }
}

/// Skips the rest of a line; `None` at the end of the stream.
fn skip_line(lines: &mut impl BufRead) -> Option<()> {
    loop {
        let buffer = lines.fill_buf().ok()?;
        if buffer.is_empty() {
            return Some(());
        }
        let (used, ended) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), false),
        };
        lines.consume(used);
        if ended {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_are_logged_in_a_period_and_as_many_in_the_next() {
        let output = Output::new();
        let began = Instant::now();
        let admitted = |after: Duration| {
            (0..10 * LINES).filter(|_| output.admits(began + after)).count() as u64
        };
        assert_eq!(admitted(Duration::ZERO), LINES);
        assert_eq!(admitted(PERIOD / 2), 0);
        assert_eq!(admitted(2 * PERIOD), LINES);
    }

    #[test]
    fn a_line_without_an_end_is_passed_over() {
        let mut text = vec![b'x'; 10_000];
        text.extend_from_slice(b"\nnext\n");
        let mut lines = BufReader::with_capacity(64, text.as_slice());
        assert_eq!(skip_line(&mut lines), Some(()));
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "next\n");
        assert_eq!(skip_line(&mut lines), Some(()));
    }
}
