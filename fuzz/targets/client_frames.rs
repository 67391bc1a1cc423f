//! Messages of clients: each is accepted within its limits or gets a short JSON answer. A
//! well-formed event is stored in a form that parses to the same event.

use negsync::admission::{Admission, Source};
use negsync::config::{Config, Limits};
use negsync::server::message::{ClientMessage, MessageRefusal, ok, parse};
use negsync::store::{Event, Filter, Viewer};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::sync::OnceLock;

/// Maximum length of the answer to a refused message, with an id of 64 characters that take six
/// bytes each. Quoted parts of the message are shortened.
const ANSWER_BYTES: usize = 64 * 6 + 1_024;

pub fn target(bytes: &[u8]) {
    // Invalid UTF-8 never comes out of a WebSocket.
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let limits = limits();
    match parse(text, limits) {
        Ok(message) => check(text, message, limits),
        Err(refusal) => check_refusal(&refusal),
    }
}

fn limits() -> &'static Limits {
    static LIMITS: OnceLock<Limits> = OnceLock::new();
    LIMITS.get_or_init(Limits::default)
}

fn admission() -> &'static Admission {
    static ADMISSION: OnceLock<Admission> = OnceLock::new();
    ADMISSION.get_or_init(|| Admission::start(Config::default()).expect("no thread is needed"))
}

fn check(text: &str, message: ClientMessage, limits: &Limits) {
    match message {
        ClientMessage::Event(json) | ClientMessage::Auth(json) => check_event(&json),
        ClientMessage::Req { id, filters } | ClientMessage::Count { id, filters } => {
            check_id(&id, limits);
            check_filters(&filters, limits);
        }
        ClientMessage::NegOpen { id, filters, payload } => {
            check_id(&id, limits);
            check_filters(&filters, limits);
            assert!(payload.len() * 2 <= text.len());
        }
        ClientMessage::NegMsg { id, payload } => {
            check_id(&id, limits);
            assert!(payload.len() * 2 <= text.len());
        }
        ClientMessage::Close(id) | ClientMessage::NegClose(id) => check_id(&id, limits),
    }
}

fn check_id(id: &str, limits: &Limits) {
    assert!(!id.is_empty() && id.chars().count() <= limits.subscription_id_chars);
}

fn check_filters(filters: &[Filter], limits: &Limits) {
    assert!((1..=limits.filters).contains(&filters.len()));
    let most = limits.filter_values;
    assert!(filters.iter().all(|filter| filter.value_count() <= most));
}

fn check_refusal(refusal: &MessageRefusal) {
    check_answer(&refusal.answer, &["NOTICE", "CLOSED", "NEG-ERR"]);
    let answer: Vec<Value> = serde_json::from_str(&refusal.answer).expect("an array");
    assert_eq!(answer[0] == "NEG-ERR", refusal.neg_session.is_some());
    if let Some(id) = &refusal.neg_session {
        assert_eq!(answer[1], id.as_str());
    }
    if let Some(id) = &refusal.subscription {
        assert_eq!((&answer[0], &answer[1]), (&"CLOSED".into(), &id.as_str().into()));
    }
}

fn check_answer(answer: &str, verbs: &[&str]) {
    assert!(answer.len() <= ANSWER_BYTES, "an answer of {} bytes: {answer:.200}", answer.len());
    let elements: Vec<Value> = serde_json::from_str(answer).expect("an answer in JSON");
    assert!(verbs.iter().any(|verb| elements[0] == *verb), "{answer}");
    assert!(elements.iter().skip(1).all(|element| element.is_string() || element.is_boolean()));
}

fn check_event(json: &str) {
    let event = match Event::parse(json) {
        Ok(event) => event,
        Err(error) => {
            let id = error.id.unwrap_or_default();
            assert!(id.is_empty() || id.len() == 64);
            return check_answer(&ok(&id, false, &format!("invalid: {}", error.reason)), &["OK"]);
        }
    };
    let stored = Event::parse(event.json()).expect("what is stored can be read");
    assert_eq!(stored.json(), event.json());
    assert_eq!((stored.item(), stored.pubkey()), (event.item(), event.pubkey()));
    assert_eq!((stored.kind(), stored.address()), (event.kind(), event.address()));
    assert_eq!((stored.tag_keys(), stored.expires_at()), (event.tag_keys(), event.expires_at()));
    assert_eq!(stored.deleted_ids(), event.deleted_ids());
    assert_eq!(stored.deleted_addresses(), event.deleted_addresses());
    // Apart from white space, no stored form is much longer than the received one.
    assert!(event.json().len() <= 6 * json.len());
    let address = Ipv4Addr::LOCALHOST.into();
    let client = Source::Client { address, counted_as: address, viewer: Viewer::default() };
    if let Ok(event) = admission().read(json, &client)
        && let Ok(verified) = event.verify()
    {
        assert_eq!(verified.json(), stored.json());
    }
}
