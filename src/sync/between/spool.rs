//! Events in transit between relays: in memory while they are few, otherwise in an unnamed
//! temporary file.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Bytes of events kept in memory.
const IN_MEMORY_BYTES: usize = 8 << 20;
/// Maximum total bytes; further events are left for another pass.
const MOST_BYTES: u64 = 1 << 30;

/// The position of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpoolPlace {
    at: u64,
    bytes: usize,
}

/// Events, one after the other.
#[derive(Default)]
pub(super) struct Spool {
    /// The first of them, in memory.
    memory: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
}

impl Spool {
    /// Stores an event; `None` if there is no more room.
    pub(super) fn put(&mut self, json: &str) -> io::Result<Option<SpoolPlace>> {
        let bytes = json.len();
        if self.file.is_none() && self.memory.len() + bytes <= IN_MEMORY_BYTES {
            let at = self.memory.len() as u64;
            self.memory.extend_from_slice(json.as_bytes());
            return Ok(Some(SpoolPlace { at, bytes }));
        }
        if self.file_bytes + bytes as u64 > MOST_BYTES {
            return Ok(None);
        }
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(json.as_bytes())?;
        }
        let at = self.memory.len() as u64 + self.file_bytes;
        self.file_bytes += bytes as u64;
        Ok(Some(SpoolPlace { at, bytes }))
    }

    /// Reads an event.
    pub(super) fn get(&self, place: SpoolPlace) -> io::Result<String> {
        let in_memory = self.memory.len() as u64;
        let read = match (&self.file, place.at.checked_sub(in_memory)) {
            (Some(file), Some(at)) => {
                let mut read = vec![0; place.bytes];
                file.read_exact_at(&mut read, at)?;
                read
            }
            _ => {
                let start = usize::try_from(place.at).unwrap_or(usize::MAX);
                let end = start.saturating_add(place.bytes);
                self.memory.get(start..end).unwrap_or_default().to_vec()
            }
        };
        String::from_utf8(read).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_read_from_memory_and_from_the_file() {
        let mut spool = Spool::default();
        let event = |number: usize| format!("{number}{}", "é".repeat(number % 7 * 30_000));
        let places: Vec<SpoolPlace> =
            (0..100).map(|number| spool.put(&event(number)).unwrap().unwrap()).collect();
        assert!(spool.file.is_some() && spool.memory.len() > IN_MEMORY_BYTES / 2);
        for (number, place) in places.iter().enumerate() {
            assert!(spool.get(*place).unwrap() == event(number), "{number}");
        }
    }
}
