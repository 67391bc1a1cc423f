//! Lines of an import that are not events: the first ones are shown; the others are written to a
//! file and counted by the faulty field.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Number of lines that are shown.
const MOST_SHOWN: u64 = 20;
/// Number of fields that are counted separately; an event has seven.
const MOST_FIELDS: usize = 16;

/// The bad lines so far.
pub(super) struct BadLines {
    count: u64,
    // The current file, if there are several.
    file: Option<String>,
    // The number of lines that are not shown, and the place of the first one, by field.
    by_field: BTreeMap<String, (u64, String)>,
    rest: RestFile,
}

/// The file for lines that are not shown; created for the first of them.
struct RestFile {
    path: PathBuf,
    writer: Option<BufWriter<File>>,
}

impl BadLines {
    /// No lines yet; lines that are not shown go to the file at `rest`.
    pub(super) fn new(rest: PathBuf) -> Self {
        let rest = RestFile { path: rest, writer: None };
        Self { count: 0, file: None, by_field: BTreeMap::new(), rest }
    }

    /// Continues with another file.
    pub(super) fn begin(&mut self, file: Option<&Path>) {
        self.file = file.map(|file| file.display().to_string());
    }

    /// Records a line. Returns the text to show for it, if any.
    pub(super) fn add(&mut self, line: u64, reason: &str) -> Option<String> {
        self.count += 1;
        let text = match &self.file {
            Some(file) => format!("{file}, line {line}: {reason}"),
            None => format!("line {line}: {reason}"),
        };
        if self.count <= MOST_SHOWN {
            return Some(text);
        }
        self.rest.write(&text);
        let field = reason.split(':').next().unwrap_or_default();
        let is_known = self.by_field.contains_key(field) || self.by_field.len() < MOST_FIELDS;
        let field = if is_known { field } else { "other" };
        let place = || match &self.file {
            Some(file) => format!("{line} of {file}"),
            None => line.to_string(),
        };
        self.by_field.entry(field.to_owned()).or_insert_with(|| (0, place())).0 += 1;
        (self.count == MOST_SHOWN + 1)
            .then(|| "further lines that are not events are only counted".into())
    }

    /// The number of bad lines.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The final text about lines that were not shown.
    pub(super) fn summary(&mut self) -> Option<String> {
        let more = self.count.checked_sub(MOST_SHOWN).filter(|more| *more > 0)?;
        let by_field: Vec<String> = self
            .by_field
            .iter()
            .map(|(field, (count, first))| format!("{field} {count} (first in line {first})"))
            .collect();
        let mut text = format!(
            "{more} further lines are not events, by the wrong field: {}",
            by_field.join(", ")
        );
        match self.rest.finish() {
            Ok(()) => text += &format!("; they are listed in {}", self.rest.path.display()),
            Err(error) => {
                text += &format!("; {} cannot be written: {error}", self.rest.path.display());
            }
        }
        Some(text)
    }
}

impl RestFile {
    /// A failure is reported at the end: the import continues.
    fn write(&mut self, text: &str) {
        if self.writer.is_none() {
            self.writer = File::create(&self.path).ok().map(BufWriter::new);
        }
        if let Some(writer) = &mut self.writer {
            let _ = writeln!(writer, "{text}");
        }
    }

    fn finish(&mut self) -> std::io::Result<()> {
        match &mut self.writer {
            Some(writer) => writer.flush(),
            None => File::create(&self.path).map(|_| ()),
        }
    }
}
