//! Explains NIP-77 messages: from a line between client and relay to text for people.

mod line;
mod ranges;
mod wants;

use line::{ElementShape, JsonLine};
use negsync::hex::{self, HexError};
use negsync::reconcile::message::{DecodeFault, PROTOCOL_VERSION};
use negsync::store::{Filter, FilterError};
use ranges::{counted, show_bound, write_table};
use serde_json::Value;
use std::fmt::Write;

/// The sender of a message, which decides the meaning of an id list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Client,
    Relay,
    Unknown,
}

/// An explained message.
pub(super) struct Explained {
    /// Lines, each with its line end.
    pub(super) text: String,
    /// The fault of the message, with its position.
    pub(super) wrong: Option<String>,
}

/// Other verbs on the same connection, which are not part of NIP-77.
const OTHER_VERBS: [&str; 9] =
    ["EVENT", "REQ", "CLOSE", "OK", "EOSE", "CLOSED", "NOTICE", "AUTH", "COUNT"];

/// Explains a line: a whole NEG message, or the hex of one. It may begin with the prompts of wscat.
/// `all` disables shortening.
pub(super) fn explain(line: &str, sender: Sender, all: bool) -> Explained {
    let (message, prompted) = without_prompt(line);
    let sender = prompted.unwrap_or(sender);
    let mut text = String::new();
    let explained = if message.starts_with(['[', '{']) {
        let before = line.len() - message.len();
        JsonLine::read(message, before).and_then(|line| explain_line(&line, sender, all, &mut text))
    } else {
        explain_hex(message.trim().trim_matches('"'), sender, "message", all, &mut text)
    };
    Explained { text, wrong: explained.err() }
}

/// wscat prints `< ` before received messages. Its `> ` precedes typed text, and in a pipe
/// everything, so it gives no information.
fn without_prompt(line: &str) -> (&str, Option<Sender>) {
    let message = line.trim_start_matches(|char: char| char.is_whitespace() || "<>".contains(char));
    let prompt = line.strip_suffix(message).unwrap_or(line);
    (message, prompt.contains('<').then_some(Sender::Relay))
}

fn explain_line(
    line: &JsonLine<'_>,
    sender: Sender,
    all: bool,
    out: &mut String,
) -> Result<(), String> {
    use ElementShape::{Optional, String as Text};
    match *line.strings().as_slice() {
        [Some("NEG-OPEN"), Some(id), None, Some(hex)] if ElementShape::Filter.fits(line.get(2)) => {
            let filter = line.get(2).map(Value::to_string).unwrap_or_default();
            let what = format!("NEG-OPEN {id:?} over {filter}");
            explain_hex(hex, Sender::Client, &what, all, out)?;
            if let Some(error) = line.get(2).and_then(filter_fault) {
                let _ = writeln!(out, "negsync as the relay refuses the filter: {error}");
            }
            Ok(())
        }
        [Some("NEG-OPEN"), ..] => {
            let reason = format!("NEG-OPEN takes an id, a filter and hex{}", open_hint(line));
            Err(line.misshapen(&[Text, Text, ElementShape::Filter, Text], &reason))
        }
        [Some("NEG-MSG"), Some(id), Some(hex)] => {
            explain_hex(hex, sender, &format!("NEG-MSG {id:?}"), all, out)
        }
        [Some("NEG-MSG"), ..] => {
            Err(line
                .misshapen(&[Text, Text, Text], "NEG-MSG takes an id and hex, and nothing else"))
        }
        [Some("NEG-ERR"), Some(id), Some(reason)]
        | [Some("NEG-ERR"), Some(id), Some(reason), _] => {
            explain_error(id, reason, line.get(3), out);
            Ok(())
        }
        [Some("NEG-ERR"), ..] => {
            Err(line.misshapen(&[Text, Text, Text, Optional], "NEG-ERR takes an id and a reason"))
        }
        [Some("NEG-CLOSE"), Some(id)] => {
            let _ = writeln!(out, "NEG-CLOSE {id:?}\nThe client ends the session.");
            Ok(())
        }
        [Some("NEG-CLOSE"), ..] => {
            Err(line.misshapen(&[Text, Text], "NEG-CLOSE takes an id, and nothing else"))
        }
        [Some(verb), ..] if OTHER_VERBS.contains(&verb) => {
            let _ = writeln!(out, "{verb}: not a NIP-77 message, passed over");
            Ok(())
        }
        [Some(verb), ..] => {
            let verb: String = verb.chars().take(40).collect();
            Err(line.misshapen(&[], &format!("{verb:?} is no verb of NIP-77")))
        }
        _ => Err(line.misshapen(&[Text], "a message begins with a verb such as NEG-MSG")),
    }
}

/// Why this NEG-OPEN may have the wrong form, to follow the error.
fn open_hint(line: &JsonLine<'_>) -> &'static str {
    let is_object = |place| line.get(place).is_some_and(Value::is_object);
    let is_string = |place| line.get(place).is_some_and(Value::is_string);
    match line.len() {
        4 if is_string(2) && is_object(3) => ", in this order",
        4 if is_string(2) => "; the filter has no quotation marks around it",
        5.. if is_object(2) && is_object(3) => "; several filters go into one array",
        5 => "; v0 of negentropy had five elements",
        _ => "",
    }
}

/// The first fault of a filter, or of an array of filters.
fn filter_fault(value: &Value) -> Option<FilterError> {
    match value {
        Value::Array(filters) => filters.iter().find_map(filter_fault),
        filter => Filter::from_json(filter).err(),
    }
}

fn explain_hex(
    hex: &str,
    sender: Sender,
    what: &str,
    all: bool,
    out: &mut String,
) -> Result<(), String> {
    let message = decode_hex(hex)?;
    let _ = writeln!(out, "{what}: {}", counted(message.len(), "byte"));
    let totals = write_table(&message, all, out).map_err(|wrong| match wrong.fault {
        DecodeFault::NotNegentropy(_) => {
            format!("{wrong}; a message of negentropy v1 begins with 61")
        }
        // Negentropy v1, "Protocol version".
        DecodeFault::OtherVersion(byte) => format!(
            "{wrong} but means version {}; a relay that supports only v1 answers with 61, and the \
             client can begin again in v1",
            byte & 0x0f
        ),
        _ => wrong.to_string(),
    })?;
    let _ = write!(
        out,
        "{}: {} skipped, {}, {} of {}",
        counted(totals.ranges(), "range"),
        totals.skips,
        counted(totals.fingerprints, "fingerprint"),
        counted(totals.lists, "list"),
        counted(totals.ids, "id"),
    );
    match totals.last {
        Some((_, upper)) if upper.item.created_at < u64::MAX => {
            let _ = writeln!(out, "; all from {} on is skipped too", show_bound(&upper, all));
        }
        _ => out.push('\n'),
    }
    let _ = writeln!(out, "{}", wants::sentence(&totals, sender));
    if message == [PROTOCOL_VERSION] && sender != Sender::Client {
        out.push_str(
            "A relay also answers so to a version of negentropy that it does not speak.\n",
        );
    }
    Ok(())
}

/// The bytes of `hex`, or the error with the position of the wrong digit.
fn decode_hex(hex: &str) -> Result<Vec<u8>, String> {
    hex::decode(hex).map_err(|error| match error {
        HexError::Digit { at } => {
            let digit = hex.get(at..).and_then(|rest| rest.chars().next()).unwrap_or_default();
            format!("byte {}: {digit:?} is no hex digit", at / 2)
        }
        _ => format!("byte {}: the hex ends after one of its two digits", hex.len() / 2),
    })
}

/// NIP-77, Error message. The reason begins with a machine-readable word.
fn explain_error(id: &str, reason: &str, cap: Option<&Value>, out: &mut String) {
    let _ = writeln!(out, "NEG-ERR {id:?}: {reason:?}");
    let (word, _) = reason.split_once(':').unwrap_or((reason, ""));
    let advice = match word {
        "blocked" => "ask with a narrower filter, by since and until, say",
        "closed" => "open it again",
        "rate-limited" => "wait, close other sessions, then open it again",
        "auth-required" => "answer its AUTH challenge (NIP-42), then open it again",
        "restricted" => "it is closed to this client",
        "invalid" => "what it was sent is wrong",
        "error" => "the fault is its own; try again later",
        _ => "the reason begins with no word that says what to do",
    };
    let cap = cap.map(|cap| format!(" and takes at most {cap} items")).unwrap_or_default();
    let _ = writeln!(out, "The relay refused or ended the session{cap}: {advice}.");
}
