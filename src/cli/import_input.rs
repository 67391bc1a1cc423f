//! The input of an import: a file or standard input, plain or packed by gzip or zstd. Each line has
//! an event, alone or in a message.

use super::chunks::CHUNK_BYTES;
use anyhow::{Context, bail};
use flate2::bufread::MultiGzDecoder;
use serde_json::value::RawValue;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// The first bytes of data packed by gzip (RFC 1952) and zstd (RFC 8878).
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The lines of an import.
pub(super) struct ImportInput {
    pub(super) lines: Box<dyn BufRead>,
    /// The total length of the lines in bytes, if known.
    pub(super) length: Option<u64>,
}

impl ImportInput {
    /// Opens and unpacks the file; without a path, or with `-`, standard input.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let input = Self::open_as_it_is(path)?;
        let Self { mut lines, length } = input;
        let beginning = lines.fill_buf().context("cannot read the input")?;
        let lines: Box<dyn BufRead> = if beginning.starts_with(&GZIP) {
            Box::new(BufReader::with_capacity(CHUNK_BYTES, MultiGzDecoder::new(lines)))
        } else if beginning.starts_with(&ZSTD) {
            let unpacked = zstd::Decoder::with_buffer(lines).context("cannot unpack the input")?;
            Box::new(BufReader::with_capacity(CHUNK_BYTES, unpacked))
        } else {
            return Ok(Self { lines, length });
        };
        Ok(Self { lines, length: None })
    }

    fn open_as_it_is(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path.filter(|path| path.as_os_str() != "-") else {
            let lines = Box::new(BufReader::with_capacity(CHUNK_BYTES, std::io::stdin()));
            return Ok(Self { lines, length: None });
        };
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let metadata = file.metadata().ok();
        let length = metadata.map(|metadata| metadata.len());
        Ok(Self { lines: Box::new(BufReader::with_capacity(CHUNK_BYTES, file)), length })
    }
}

/// The inputs in order: the files of a directory by name, without hidden files and subdirectories;
/// `None` is standard input.
pub(super) fn files(path: Option<&Path>) -> anyhow::Result<Vec<Option<PathBuf>>> {
    let Some(path) = path.filter(|path| path.as_os_str() != "-") else { return Ok(vec![None]) };
    let text = path.to_string_lossy();
    if text.starts_with("ws://") || text.starts_with("wss://") {
        bail!(
            "{text} is a relay, and import reads files; `negsync sync {text} --direction down` brings \
             its events"
        );
    }
    if !path.is_dir() {
        return Ok(vec![Some(path.to_owned())]);
    }
    let failed = || format!("cannot read {}", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if entry.path().is_file() && !is_hidden {
            files.push(Some(entry.path()));
        }
    }
    if files.is_empty() {
        bail!("cannot read {}: it is a directory without files", path.display());
    }
    files.sort_unstable();
    Ok(files)
}

/// The event of a line: the whole line, or the event in a message of a client or relay (NIP-01),
/// `["EVENT", event]` or `["EVENT", id, event]`.
pub(super) fn event_of(line: &str) -> &str {
    if !line.starts_with('[') {
        return line;
    }
    let elements: Vec<&RawValue> = serde_json::from_str(line).unwrap_or_default();
    match elements.as_slice() {
        [verb, event] | [verb, _, event] if verb.get() == r#""EVENT""# => event.get(),
        _ => line,
    }
}
