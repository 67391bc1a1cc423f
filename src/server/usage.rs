//! Hints for people who write messages by hand; appended to refusals.

/// The verbs of clients, each with an example message.
const EXAMPLES: [(&str, &str); 8] = [
    ("REQ", r#"["REQ","my-id",{"kinds":[1],"limit":10}]"#),
    ("CLOSE", r#"["CLOSE","my-id"]"#),
    ("COUNT", r#"["COUNT","my-id",{"kinds":[1]}]"#),
    ("EVENT", r#"["EVENT",{"id":"...","pubkey":"...",...,"sig":"..."}]"#),
    ("AUTH", r#"["AUTH",{"id":"...","pubkey":"...","kind":22242,...}]"#),
    ("NEG-OPEN", r#"["NEG-OPEN","my-id",{"kinds":[1]},"6100000200"]"#),
    ("NEG-MSG", r#"["NEG-MSG","my-id","61..."]"#),
    ("NEG-CLOSE", r#"["NEG-CLOSE","my-id"]"#),
];

/// Verbs that only relays send.
const SAID_BY_RELAYS: [&str; 5] = ["OK", "EOSE", "CLOSED", "NOTICE", "NEG-ERR"];
/// Typographic quotation marks that word processors and web pages use in place of `"`.
const CURLY: [char; 6] = ['“', '”', '„', '‘', '’', '«'];
/// Maximum number of characters of an unknown verb that are shown.
const SHOWN_CHARS: usize = 40;

/// An example message of the verb.
pub(super) fn example(verb: &str) -> &'static str {
    EXAMPLES.iter().find(|(known, _)| *known == verb).map_or(EXAMPLES[0].1, |(_, example)| example)
}

/// A hint for text that is not JSON, or not an array. `is_cut` says that it ends too early.
pub(super) fn for_text(text: &str, is_cut: bool) -> String {
    let text = text.trim();
    if text.contains(CURLY) {
        return "the quotation marks have to be straight (\")".to_owned();
    }
    if text.contains('\'') && !text.contains('"') {
        return "the quotation marks have to be double (\")".to_owned();
    }
    if is_cut && text.starts_with('[') {
        return "a message is one array, and goes out as one: type it on one line, up to its ]"
            .to_owned();
    }
    if text.starts_with('{') && text.contains("\"sig\"") {
        return format!("type {}", example("EVENT"));
    }
    // A verb without brackets, or with text before it.
    let first =
        text.split(|c: char| !c.is_ascii_alphabetic() && c != '-').find(|word| !word.is_empty());
    format!("type {}", example(&first.unwrap_or_default().to_ascii_uppercase()))
}

/// How more than one filter is written in a message of this verb.
pub(super) fn several_filters(verb: &str) -> &'static str {
    match verb {
        "NEG-OPEN" => "; several filters go into one array: [{\"kinds\":[1]},{\"kinds\":[7]}]",
        _ => "; several filters follow each other: {\"kinds\":[1]},{\"kinds\":[7]}",
    }
}

/// A hint for a refused filter that is not an object; it follows the error. `several` is the text
/// of [`several_filters`].
pub(super) fn for_filter<'hint>(filter: &str, several: &'hint str) -> Option<&'hint str> {
    match filter.as_bytes().first() {
        Some(b'{') => None,
        Some(b'"') => Some(", without quotation marks around it"),
        _ => Some(several),
    }
}

/// The refusal of a NEG-OPEN whose elements after the verb, an id first, have the wrong number or
/// order.
pub(super) fn for_neg_open(elements: &[&str]) -> String {
    let is_object = |element: &&str| element.starts_with('{');
    let is_string = |element: &&str| element.starts_with('"');
    let takes = match elements {
        [_, payload, filter] if is_string(payload) && is_object(filter) => {
            "the filter comes before the message"
        }
        [_, filters @ .., _] if filters.len() > 1 && filters.iter().all(is_object) => {
            return format!(
                "NEG-OPEN takes one filter, or several in one array; type {}",
                r#"["NEG-OPEN","my-id",[{"kinds":[1]},{"kinds":[7]}],"6100000200"]"#
            );
        }
        [_, _, _, _] => {
            "five elements are negentropy v0; v1 has no number between filter and message"
        }
        _ => "NEG-OPEN takes an id, a filter and a message in hex",
    };
    format!("{takes}; type {}", example("NEG-OPEN"))
}

/// A hint for an array that begins with the unknown `verb`. `rest` are the strings after it.
pub(super) fn for_verb(verb: &str, rest: impl Iterator<Item = String>) -> String {
    let shown: String = verb.chars().take(SHOWN_CHARS).collect();
    let capitals = verb.trim().replace('_', "-").to_ascii_uppercase();
    let is_verb = |word: &str| EXAMPLES.iter().any(|(known, _)| *known == word);
    if SAID_BY_RELAYS.contains(&capitals.as_str()) {
        return format!("{capitals} is a message of relays, not of clients");
    }
    if is_verb(&capitals) {
        return format!("unknown verb {shown:?}; type {}", example(&capitals));
    }
    if let Some(behind) = rest.map(|word| word.to_ascii_uppercase()).find(|word| is_verb(word)) {
        return format!("unknown verb {shown:?}; the verb comes first: {}", example(&behind));
    }
    let verbs = EXAMPLES.map(|(verb, _)| verb).join(", ");
    format!("unknown verb {shown:?}; there are {verbs}, in capitals")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::server::message::parse;

    /// The examples are well-formed messages.
    #[test]
    fn the_examples_can_be_read() {
        for (verb, example) in EXAMPLES {
            if !example.contains("...") {
                let message = parse(example, &Limits::default());
                assert_eq!(message.map(|message| message.verb()).ok(), Some(verb), "{example}");
            }
            assert!(super::example(verb).starts_with(&format!("[\"{verb}\"")), "{example}");
        }
    }
}
