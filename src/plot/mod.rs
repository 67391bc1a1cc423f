//! Draws the differences of two relays as SVG: bars over time or by name.
//!
//! Common events and differences never share a scale, because a few missing events would not be
//! visible beside many.

mod bars;
mod file;

pub use bars::{Bar, Days, differences, held, only_here};
pub use file::{by_name, over_time};

/// Escapes `text` for HTML or SVG, in content and in attributes.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML cannot represent the other control characters.
            '\t' | '\n' | '\r' => escaped.push(' '),
            other if other.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}
