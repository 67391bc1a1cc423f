//! A whole message as JSON: its elements, and where in the line each stands, so that whatever is
//! wrong can be pointed at.

use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;

/// A line that is a JSON array.
pub(super) struct JsonLine<'line> {
    text: &'line str,
    elements: Vec<Element>,
    // How many bytes of the line stand before `text`.
    before: usize,
}

struct Element {
    // Its first byte in the text.
    at: usize,
    value: Value,
}

/// What an element of a message has to be.
#[derive(Clone, Copy)]
pub(super) enum ElementShape {
    /// A string.
    String,
    /// A filter, or an array of them.
    Filter,
    /// Anything, or nothing.
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
    /// Reads `text`, which stands behind `before` bytes of prompts.
    pub(super) fn read(text: &'line str, before: usize) -> Result<Self, String> {
        let raw: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| {
            let reason = format!("the line is no JSON array of a message: {error}");
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

    /// The elements that are strings, each in its place.
    pub(super) fn strings(&self) -> Vec<Option<&str>> {
        self.elements.iter().map(|element| element.value.as_str()).collect()
    }

    /// The element at `place`.
    pub(super) fn get(&self, place: usize) -> Option<&Value> {
        self.elements.get(place).map(|element| &element.value)
    }

    /// What is wrong with a message that should have had this shape: its first element that does
    /// not fit, or its end when one is missing.
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

/// Bytes of a line count its quotes and hex digits, those of a message what they stand for.
fn wrong_at(byte: usize, reason: &str) -> String {
    format!("byte {byte} of the line: {reason}")
}

/// Where an error of JSON is.
fn byte_of(error: &serde_json::Error, text: &str) -> usize {
    if error.classify() == Category::Eof {
        return text.len();
    }
    let lines_before: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (lines_before + error.column().saturating_sub(1)).min(text.len())
}
