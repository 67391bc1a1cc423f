//! The output of `negsync sync --trace`: all messages, with NIP-77 explained as by `negsync
//! decode`.

use super::explain::{Explained, Sender, explain};
use negsync::relay_url::redacted;
use negsync::sync::{Speaker, Trace};
use std::fmt::Write as _;
use std::io::Write as _;

/// Maximum length of other messages, in characters.
const SHOWN_CHARS: usize = 120;

/// Writes all messages to and from the peer at `url` to standard error.
pub(super) fn to_standard_error(url: &str) -> Trace {
    let url = redacted(url);
    Trace::new(move |speaker, message| {
        // A single write, so that messages of several peers do not mix.
        let _ = std::io::stderr().lock().write_all(shown(&url, speaker, message).as_bytes());
    })
}

fn shown(url: &str, speaker: Speaker, message: &str) -> String {
    let (arrow, sender) = match speaker {
        Speaker::Us => ('>', Sender::Client),
        Speaker::Peer => ('<', Sender::Relay),
    };
    if !message.starts_with(r#"["NEG-"#) {
        let more = if message.chars().nth(SHOWN_CHARS).is_some() { "..." } else { "" };
        // A peer's message may contain terminal control characters.
        let start = message.chars().take(SHOWN_CHARS);
        let start: String = start.map(|char| if char.is_control() { '?' } else { char }).collect();
        return format!("{url} {arrow} {start}{more}\n");
    }
    let Explained { text, wrong } = explain(message, sender, false);
    let mut shown = String::new();
    let mut lines = text.lines().chain(wrong.as_deref());
    let _ = writeln!(shown, "{url} {arrow} {}", lines.next().unwrap_or_default());
    for line in lines {
        let _ = writeln!(shown, "    {line}");
    }
    shown
}
