//! Where two relays differ, drawn: bars over time or by name, as SVG.
//!
//! What both sides hold and what only one holds never share a scale: a few lacking events would
//! not show beside many.

mod bars;
mod file;

pub use bars::{Bar, Days, differences, held, only_here};
pub use file::{by_name, over_time};

/// `text` for markup, HTML or SVG: nothing in it is taken for a tag, an entity or the end of an
/// attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no way to write the others.
            '\t' | '\n' | '\r' => escaped.push(' '),
            other if other.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}
