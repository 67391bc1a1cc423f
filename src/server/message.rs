//! The messages of clients and the answers (NIP-01, NIP-42, NIP-45, NIP-77): JSON arrays, parsed
//! strictly. A malformed message gets an answer and never ends the connection.

use super::usage;
use crate::config::Limits;
use crate::hex::{self, HexError};
use crate::prefix::Prefix;
use crate::store::{Event, Filter, FilterError, LeftOut};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt::Display;

/// A well-formed message.
#[derive(Debug)]
pub enum ClientMessage {
    /// NIP-01: publish an event; its JSON is parsed later, on a pool.
    Event(Box<str>),
    /// NIP-42: authenticate; the event's JSON is parsed later.
    Auth(Box<str>),
    /// NIP-01: stored events first, then live ones.
    Req {
        /// The subscription id.
        id: String,
        /// The filters; an event may match any of them.
        filters: Vec<Filter>,
    },
    /// NIP-01: end a subscription.
    Close(String),
    /// NIP-45: count the matching events.
    Count {
        /// The query id.
        id: String,
        /// The filters; an event may match any of them.
        filters: Vec<Filter>,
    },
    /// NIP-77: start to reconcile.
    NegOpen {
        /// The session id, in a namespace separate from subscriptions.
        id: String,
        /// The filters; an event may match any of them.
        filters: Vec<Filter>,
        /// The initiator's first message.
        payload: Vec<u8>,
    },
    /// NIP-77: continue to reconcile.
    NegMsg {
        /// The session's id.
        id: String,
        /// The initiator's message.
        payload: Vec<u8>,
    },
    /// NIP-77: end a session.
    NegClose(String),
}

impl ClientMessage {
    /// The verb at the start of the message.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Event(_) => "EVENT",
            Self::Auth(_) => "AUTH",
            Self::Req { .. } => "REQ",
            Self::Close(_) => "CLOSE",
            Self::Count { .. } => "COUNT",
            Self::NegOpen { .. } => "NEG-OPEN",
            Self::NegMsg { .. } => "NEG-MSG",
            Self::NegClose(_) => "NEG-CLOSE",
        }
    }
}

/// The answer to a message that is refused.
#[derive(Debug)]
#[non_exhaustive]
pub struct MessageRefusal {
    /// The answer.
    pub answer: String,
    /// The verb of the message; empty if the answer is a NOTICE.
    pub verb: &'static str,
    /// The subscription id, if the answer is a CLOSED, which ends an open subscription with this id
    /// (NIP-01).
    pub subscription: Option<String>,
    /// The NEG session id, if the answer ends an open session with this id.
    pub neg_session: Option<String>,
    /// The machine-readable prefix of the answer.
    pub prefix: Prefix,
}

impl MessageRefusal {
    /// A NOTICE about a message without a readable id.
    pub(crate) fn notice(prefix: Prefix, reason: impl Display) -> Self {
        let answer = notice(&prefix.before(reason));
        Self { answer, verb: "", subscription: None, neg_session: None, prefix }
    }
}

/// Parses a message.
///
/// # Errors
/// The answer to a message that is malformed or exceeds a limit.
pub fn parse(text: &str, limits: &Limits) -> Result<ClientMessage, MessageRefusal> {
    let elements: Vec<&RawValue> =
        serde_json::from_str(text).map_err(|error| refuse_unread(text, &error))?;
    let Some((verb, rest)) = elements.split_first() else {
        let example = usage::example("REQ");
        let text = format!("an empty array; a message begins with its verb: type {example}");
        return Err(refuse_notice(&text));
    };
    let verb: String = serde_json::from_str(verb.get()).map_err(|_| {
        let example = usage::example("REQ");
        refuse_notice(&format!("a message begins with its verb, a string: type {example}"))
    })?;
    match verb.as_str() {
        "EVENT" => match rest {
            [event] => Ok(ClientMessage::Event(event.get().into())),
            _ => Err(refuse_notice(&takes_one_event("EVENT"))),
        },
        "AUTH" => match rest {
            [text] if is_string(text) => {
                let example = usage::example("AUTH");
                let text = "AUTH takes a signed event whose tags name the challenge";
                Err(refuse_notice(&format!("{text}; type {example}")))
            }
            [event] => Ok(ClientMessage::Auth(event.get().into())),
            _ => Err(refuse_notice(&takes_one_event("AUTH"))),
        },
        "REQ" => {
            let (id, filters) = query("REQ", rest, limits)?;
            Ok(ClientMessage::Req { id, filters })
        }
        "COUNT" => {
            let (id, filters) = query("COUNT", rest, limits)?;
            Ok(ClientMessage::Count { id, filters })
        }
        "CLOSE" => only_id("CLOSE", rest, limits).map(ClientMessage::Close),
        "NEG-OPEN" => neg_open(rest, limits),
        "NEG-MSG" => neg_msg(rest, limits),
        "NEG-CLOSE" => only_id("NEG-CLOSE", rest, limits).map(ClientMessage::NegClose),
        _ => {
            let strings = rest.iter().filter_map(|raw| serde_json::from_str(raw.get()).ok());
            Err(refuse_notice(&usage::for_verb(&verb, strings)))
        }
    }
}

/// `["NOTICE", text]`
pub fn notice(text: &str) -> String {
    json!(["NOTICE", text]).to_string()
}

/// `["OK", id, accepted, text]`
pub fn ok(id: &str, accepted: bool, text: &str) -> String {
    json!(["OK", id, accepted, text]).to_string()
}

/// The answer to a refused event: an OK with the id that it claims, or a NOTICE if it has none.
pub fn not_taken(id: Option<&str>, text: &str) -> String {
    id.map_or_else(|| notice(text), |id| ok(id, false, text))
}

/// `["AUTH", challenge]`
pub fn auth(challenge: &str) -> String {
    json!(["AUTH", challenge]).to_string()
}

/// `["EOSE", id, [hint]]` (NIP-67), without a hint if it is unknown whether more events match.
pub fn eose(id: &str, left_out: LeftOut) -> String {
    match left_out {
        LeftOut::Nothing => json!(["EOSE", id, ["finish"]]),
        LeftOut::Some => json!(["EOSE", id, ["more"]]),
        LeftOut::Unknown => json!(["EOSE", id]),
    }
    .to_string()
}

/// `["CLOSED", id, text]`
pub fn closed(id: &str, text: &str) -> String {
    json!(["CLOSED", id, text]).to_string()
}

/// `["COUNT", id, {"count": n}]`
pub fn count(id: &str, count: usize) -> String {
    json!(["COUNT", id, { "count": count }]).to_string()
}

/// `["EVENT", id, event]` with the stored JSON of the event. `id_json` is the subscription id as a
/// JSON string.
pub fn event(id_json: &str, event: &str) -> String {
    let mut text = String::new();
    write_event(&mut text, id_json, event);
    text
}

/// Like [`event`], appended to `text`.
pub fn write_event(text: &mut String, id_json: &str, event: &str) {
    text.reserve(11 + id_json.len() + event.len());
    for part in [r#"["EVENT","#, id_json, ",", event, "]"] {
        text.push_str(part);
    }
}

/// NIP-77, Error message.
pub fn neg_err(id: &str, text: &str) -> String {
    json!(["NEG-ERR", id, text]).to_string()
}

/// NIP-77, Error message for a set that is too large: the fourth element is the maximum number of
/// items.
pub fn neg_err_too_large(id: &str, limit: usize) -> String {
    json!(["NEG-ERR", id, Prefix::Blocked.before("too many query results"), limit]).to_string()
}

/// NIP-77, Subsequent messages: encodes the payload as hex directly into the text.
pub fn neg_msg_text(id: &str, payload: &[u8]) -> String {
    let id = json!(id).to_string();
    let mut text = String::with_capacity(16 + id.len() + payload.len() * 2);
    text.push_str(r#"["NEG-MSG","#);
    text.push_str(&id);
    text.push_str(r#",""#);
    hex::append(payload, &mut text);
    text.push_str(r#""]"#);
    text
}

/// The answer to a well-formed message of a client that exceeds the rate limit.
pub fn rate_limited(message: ClientMessage, reason: &str) -> MessageRefusal {
    let (prefix, verb) = (Prefix::RateLimited, message.verb());
    match message {
        ClientMessage::Event(json) | ClientMessage::Auth(json) => {
            let id = Event::claimed_id(&json);
            let answer = not_taken(id.as_deref(), &prefix.before(reason));
            MessageRefusal { answer, verb, subscription: None, neg_session: None, prefix }
        }
        ClientMessage::Req { id, .. }
        | ClientMessage::Count { id, .. }
        | ClientMessage::Close(id)
        | ClientMessage::NegOpen { id, .. }
        | ClientMessage::NegMsg { id, .. }
        | ClientMessage::NegClose(id) => {
            refuse(verb, id, MessageFault { prefix, text: reason.to_owned() })
        }
    }
}

/// The answer to text that is not JSON, or not an array.
fn refuse_unread(text: &str, error: &serde_json::Error) -> MessageRefusal {
    let hint = usage::for_text(text, error.is_eof());
    match error.classify() {
        // The error would quote the value in full.
        Category::Data => refuse_notice(&format!("JSON, but not an array; {hint}")),
        _ => refuse_notice(&format!("not a JSON array: {error}; {hint}")),
    }
}

fn takes_one_event(verb: &str) -> String {
    format!("{verb} takes one event; type {}", usage::example(verb))
}

fn is_string(element: &RawValue) -> bool {
    element.get().starts_with('"')
}

fn is_object(element: &RawValue) -> bool {
    element.get().starts_with('{')
}

fn refuse_notice(reason: &str) -> MessageRefusal {
    MessageRefusal::notice(Prefix::Invalid, reason)
}

/// The fault of a message with a readable id.
struct MessageFault {
    prefix: Prefix,
    text: String,
}

impl From<&str> for MessageFault {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<String> for MessageFault {
    fn from(text: String) -> Self {
        Self { prefix: Prefix::Invalid, text }
    }
}

impl From<FilterError> for MessageFault {
    fn from(error: FilterError) -> Self {
        let prefix = match error {
            FilterError::Unknown { .. } => Prefix::Unsupported,
            _ => Prefix::Invalid,
        };
        let text = match error.to_string() {
            // The text names the whole filter already.
            text if text.starts_with("filter: ") => text,
            text => format!("filter: {text}"),
        };
        Self { prefix, text }
    }
}

/// The answer to a message with this verb and id, and the subscription or session that it ends.
fn refuse(verb: &'static str, id: String, reason: impl Into<MessageFault>) -> MessageRefusal {
    let MessageFault { prefix, text } = reason.into();
    let text = prefix.before(text);
    let (answer, subscription, neg_session) = match verb {
        // NIP-77, Error message: the session is closed.
        "NEG-OPEN" | "NEG-MSG" | "NEG-CLOSE" => (neg_err(&id, &text), None, Some(id)),
        "REQ" => (closed(&id, &text), Some(id), None),
        _ => (closed(&id, &text), None, None),
    };
    MessageRefusal { answer, verb, subscription, neg_session, prefix }
}

/// Parses the id after the verb. If the id is too long, the answer has its beginning; without any
/// id the client could not match the answer to a message.
fn read_id(
    verb: &'static str,
    element: Option<&&RawValue>,
    limits: &Limits,
) -> Result<String, MessageRefusal> {
    let most = limits.subscription_id_chars;
    let example = usage::example(verb);
    let expected =
        format!("{verb} takes an id: a string of 1 to {most} characters; type {example}");
    let Some(id) = element.and_then(|raw| serde_json::from_str::<String>(raw.get()).ok()) else {
        return Err(refuse_notice(&expected));
    };
    match id.char_indices().nth(most) {
        None if !id.is_empty() => Ok(id),
        // An id above the maximum length cannot be open.
        _ if verb == "CLOSE" => Err(refuse_notice(&expected)),
        None => Err(refuse(verb, id, expected)),
        Some((end, _)) => {
            let beginning = id.get(..end).unwrap_or_default().to_owned();
            Err(refuse(verb, beginning, expected))
        }
    }
}

fn only_id(
    verb: &'static str,
    rest: &[&RawValue],
    limits: &Limits,
) -> Result<String, MessageRefusal> {
    read_id(verb, rest.first(), limits)
}

/// REQ and COUNT: an id and filters.
fn query(
    verb: &'static str,
    rest: &[&RawValue],
    limits: &Limits,
) -> Result<(String, Vec<Filter>), MessageRefusal> {
    let id = read_id(verb, rest.first(), limits)?;
    let raw = rest.get(1..).unwrap_or_default();
    let filters: Result<Vec<Filter>, MessageFault> = if raw.is_empty() || raw.len() > limits.filters
    {
        let example = usage::example(verb);
        Err(format!("{verb} takes 1 to {} filters; type {example}", limits.filters).into())
    } else {
        let several = usage::several_filters(verb);
        raw.iter().map(|raw| parse_filter(raw.get(), several, limits)).collect()
    };
    match filters {
        Ok(filters) => Ok((id, filters)),
        Err(reason) => Err(refuse(verb, id, reason)),
    }
}

/// `several` says how more than one filter is written.
fn parse_filter(text: &str, several: &str, limits: &Limits) -> Result<Filter, MessageFault> {
    let filter = Filter::parse(text).map_err(|error| {
        let mut fault = MessageFault::from(error);
        if let Some(hint) = usage::for_filter(text, several) {
            fault.text.push_str(hint);
        }
        fault
    })?;
    let most = limits.filter_values;
    match filter.value_count() {
        count if count > most => Err(format!("filter: {count} values, maximum {most}").into()),
        _ => Ok(filter),
    }
}

/// NIP-77, Initial message: id, filter, payload. An array of filters means their union.
fn neg_open(rest: &[&RawValue], limits: &Limits) -> Result<ClientMessage, MessageRefusal> {
    let id = read_id("NEG-OPEN", rest.first(), limits)?;
    let (filter, payload) = match rest {
        [_, filter, payload] if !(is_string(filter) && is_object(payload)) => (filter, payload),
        _ => {
            let elements: Vec<&str> = rest.iter().map(|raw| raw.get()).collect();
            return Err(refuse("NEG-OPEN", id, usage::for_neg_open(&elements)));
        }
    };
    let several = usage::several_filters("NEG-OPEN");
    let filters = match serde_json::from_str::<Vec<&RawValue>>(filter.get()) {
        Ok(list) if list.is_empty() || list.len() > limits.filters => {
            Err(format!("NEG-OPEN takes 1 to {} filters", limits.filters).into())
        }
        Ok(list) => list.iter().map(|raw| parse_filter(raw.get(), several, limits)).collect(),
        Err(_) => parse_filter(filter.get(), several, limits).map(|filter| vec![filter]),
    };
    match (filters, read_payload(payload)) {
        (Ok(filters), Ok(payload)) => Ok(ClientMessage::NegOpen { id, filters, payload }),
        (Err(reason), _) => Err(refuse("NEG-OPEN", id, reason)),
        (_, Err(reason)) => Err(refuse("NEG-OPEN", id, reason)),
    }
}

fn neg_msg(rest: &[&RawValue], limits: &Limits) -> Result<ClientMessage, MessageRefusal> {
    let id = read_id("NEG-MSG", rest.first(), limits)?;
    let payload = match rest {
        [_, payload] => read_payload(payload),
        _ => {
            let example = usage::example("NEG-MSG");
            Err(format!("NEG-MSG takes an id and a message in hex; type {example}"))
        }
    };
    match payload {
        Ok(payload) => Ok(ClientMessage::NegMsg { id, payload }),
        Err(reason) => Err(refuse("NEG-MSG", id, reason)),
    }
}

/// A string that is copied only if it contains escapes.
#[derive(serde::Deserialize)]
struct Text<'text>(#[serde(borrow)] Cow<'text, str>);

fn read_payload(raw: &RawValue) -> Result<Vec<u8>, String> {
    let Text(hex) = serde_json::from_str(raw.get())
        .map_err(|_| "the message must be a string of hex digits, such as \"6100000200\"")?;
    hex::decode(&hex).map_err(|error| match error {
        HexError::Digit { at } => {
            let wrong = hex.get(at..).and_then(|rest| rest.chars().next()).unwrap_or_default();
            format!("the message has {wrong:?} at character {at}, which is not a hex digit")
        }
        _ => {
            let digits = hex.len();
            format!("the message has {digits} hex digits, an odd number; each byte has two")
        }
    })
}

/// A subscription id as a JSON string.
pub fn json_string(text: &str) -> String {
    Value::from(text).to_string()
}
