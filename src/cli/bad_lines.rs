//! The lines of an import that are no events: the first are shown one by one, the others counted by
//! the field that is wrong.

use std::collections::BTreeMap;

/// So many lines are shown one by one.
const MOST_SHOWN: u64 = 20;
/// So many fields are counted apart; an event has seven.
const MOST_FIELDS: usize = 16;

/// The lines so far.
#[derive(Default)]
pub(super) struct BadLines {
    count: u64,
    // How many lines more than are shown, and the first of them.
    by_field: BTreeMap<String, (u64, u64)>,
}

impl BadLines {
    /// Notes a line, and returns what is to be said of it now.
    pub(super) fn add(&mut self, line: u64, reason: &str) -> Option<String> {
        self.count += 1;
        if self.count <= MOST_SHOWN {
            return Some(format!("line {line}: {reason}"));
        }
        let field = reason.split(':').next().unwrap_or_default();
        let is_known = self.by_field.contains_key(field) || self.by_field.len() < MOST_FIELDS;
        let field = if is_known { field } else { "other" };
        self.by_field.entry(field.to_owned()).or_insert((0, line)).0 += 1;
        (self.count == MOST_SHOWN + 1).then(|| "more lines that are no events are counted".into())
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// What is to be said at the end of those that were not shown.
    pub(super) fn summary(&self) -> Option<String> {
        let more = self.count.checked_sub(MOST_SHOWN).filter(|more| *more > 0)?;
        let by_field: Vec<String> = self
            .by_field
            .iter()
            .map(|(field, (count, first))| format!("{count} {field} (first in line {first})"))
            .collect();
        Some(format!("and {more} more lines are no events: {}", by_field.join(", ")))
    }
}
