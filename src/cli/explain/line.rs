//! A whole message as JSON: its elements and their positions in the line, so that errors can point
//! at a position.

use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;

/// A line that is a JSON array.
pub(super) struct JsonLine<'line> {
    text: &'line str,
    elements: Vec<Element>,
    // The number of bytes of the line before `text`.
    before: usize,
}

struct Element {
    // Its first byte in the text.
    at: usize,
    value: Value,
}

/// The expected form of an element.
#[derive(Clone, Copy)]
pub(super) enum ElementShape {
    /// A string.
    String,
    /// A filter, or an array of them.
    Filter,
    /// Any value, or none.
    Optional,
}

impl ElementShape {
    pub(super) fn fits(self, value: Option<&Value>) -> bool {
        match self {
            Self::String => value.is_some_and(Value::is_string),
            Self::Filter => value.is_some_and(|value| value.is_object() || value.is_array()),
            Self::Optional => true,
        }
    }
}

impl<'line> JsonLine<'line> {
    /// Parses `text`, which comes after `before` bytes of prompts.
    pub(super) fn read(text: &'line str, before: usize) -> Result<Self, String> {
        let raw: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| {
            let hint = match text.contains('\'') && !text.contains('"') {
                true => "; the quotation marks have to be double (\")",
                false => "",
            };
            let reason = format!("the line is not a JSON array: {error}{hint}");
            wrong_at(before + byte_of(&error, text), &reason)
        })?;
        let elements = raw.into_iter().map(|raw| {
            let at = raw.get().as_ptr().addr().saturating_sub(text.as_ptr().addr());
            serde_json::from_str(raw.get())
                .map(|value| Element { at, value })
                .map_err(|error| wrong_at(before + at, &format!("cannot be read: {error}")))
        });
        Ok(Self { text, elements: elements.collect::<Result<_, _>>()?, before })
    }

    /// The elements that are strings, each at its index.
    pub(super) fn strings(&self) -> Vec<Option<&str>> {
        self.elements.iter().map(|element| element.value.as_str()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.elements.len()
    }

    /// The element at index `place`.
    pub(super) fn get(&self, place: usize) -> Option<&Value> {
        self.elements.get(place).map(|element| &element.value)
    }

    /// The error for a message of this form: its first element with the wrong form, or its end if
    /// one is missing.
    pub(super) fn misshapen(&self, shapes: &[ElementShape], reason: &str) -> String {
        let place = (0..)
            .zip(shapes)
            .find(|(place, shape)| !shape.fits(self.get(*place)))
            .map_or(shapes.len(), |(place, _)| place);
        let end = self.text.trim_end().len().saturating_sub(1);
        let at = self.elements.get(place).map_or(end, |element| element.at);
        wrong_at(self.before + at, reason)
    }
}

/// Bytes of a line include quotes and hex digits; bytes of a message are the decoded ones.
fn wrong_at(byte: usize, reason: &str) -> String {
    format!("byte {byte} of the line: {reason}")
}

/// The position of a JSON error.
fn byte_of(error: &serde_json::Error, text: &str) -> usize {
    if error.classify() == Category::Eof {
        return text.len();
    }
    let lines_before: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (lines_before + error.column().saturating_sub(1)).min(text.len())
}
