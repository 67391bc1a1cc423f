//! Valid but unusual JSON: every text is parsed as the value it represents, and an event is valid
//! exactly if it is for the `nostr` crate.

use crate::support::negentropy_client::{EMPTY_SET, neg_msg};
use crate::support::{Author, TestRelay, events, id_of};
use negsync::store::Event;
use nostr::{JsonUtil, Keys, Kind, SecretKey, Tag, Tags, Timestamp, UnsignedEvent};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// Text with characters that JSON writers handle differently.
fn text(rng: &mut StdRng) -> String {
    const ODD: &str = "\"\\/'<&\u{7f}\u{80}\u{9f}\u{a0}\u{ad}\u{2028}\u{2029}\u{feff}\u{fffd}\
        \u{d7ff}\u{e000}\u{ffff}\u{10ffff}\u{1f98a}\u{1f468}\u{200d}e\u{301}\u{e9}";
    let odd: Vec<char> = ODD.chars().collect();
    (0..rng.random_range(0..12))
        .map(|_| match rng.random_range(0..3) {
            0 => char::from(rng.random_range(0..32_u8)),
            1 => odd[rng.random_range(0..odd.len())],
            _ => char::from(rng.random_range(b' '..=b'~')),
        })
        .collect()
}

fn signed(rng: &mut StdRng) -> nostr::Event {
    let keys = Keys::new(SecretKey::from_slice(&[7; 32]).unwrap());
    let tags = (0..rng.random_range(0..4)).map(|_| {
        let mut tag = vec![["t", "d", "-", "title", ""][rng.random_range(0..5)].to_owned()];
        tag.extend((0..rng.random_range(0..3)).map(|_| text(rng)));
        Tag::parse(tag).unwrap()
    });
    let tags = Tags::from_list(tags.collect());
    let at = [0, 1, events::EPOCH, i64::MAX as u64][rng.random_range(0..4)];
    let kind = [0, 1, 5, 30_023, u16::MAX][rng.random_range(0..5)];
    let (at, kind) = (Timestamp::from_secs(at), Kind::from_u16(kind));
    let unsigned = UnsignedEvent::new(keys.public_key(), at, kind, tags, text(rng));
    unsigned.sign_with_keys(&keys).unwrap()
}

/// The JSON with every character of every string as an escape.
fn escaped(value: &Value) -> String {
    let quote = |text: &str| {
        let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        format!("\"{units}\"")
    };
    match value {
        Value::String(text) => quote(text),
        Value::Array(list) => {
            format!("[{}]", list.iter().map(escaped).collect::<Vec<_>>().join(","))
        }
        Value::Object(object) => {
            let fields: Vec<String> = object
                .iter()
                .map(|(key, value)| format!("{}:{}", quote(key), escaped(value)))
                .collect();
            format!("{{{}}}", fields.join(" ,\t"))
        }
        other => other.to_string(),
    }
}

/// Ways to write the event, and ways to make it invalid.
fn forms(rng: &mut StdRng, event: &nostr::Event) -> Vec<(&'static str, String)> {
    let json = event.as_json();
    let value: Value = serde_json::from_str(&json).unwrap();
    let with = |field: &str, new: Value| {
        let mut value = value.clone();
        value[field] = new;
        value.to_string()
    };
    let upper = |field: &str| with(field, json!(value[field].as_str().unwrap().to_uppercase()));
    let content = value["content"].as_str().unwrap();
    let at = &value["created_at"];
    vec![
        ("as it is", json.clone()),
        ("fields in another order", value.to_string()),
        ("white space", serde_json::to_string_pretty(&value).unwrap()),
        ("escapes", escaped(&value)),
        ("a field more", with("seen_on", json!([{ "relay": [1, null] }]))),
        ("upper-case id", upper("id")),
        ("upper-case key", upper("pubkey")),
        ("upper-case signature", upper("sig")),
        ("a field twice", json.replacen("{", r#"{"kind":1,"#, 1)),
        ("a fraction", json.replacen(&format!(":{at},"), &format!(":{at}.0,"), 1)),
        ("an exponent", json.replacen(&format!(":{at},"), &format!(":{at}e0,"), 1)),
        ("a byte order mark", format!("\u{feff}{json}")),
        ("more behind it", format!("{json}{json}")),
        ("other content", with("content", json!(format!("{content}{}", text(rng))))),
        ("a tag more", with("tags", json!([["t", text(rng)]]))),
        ("other kind", with("kind", json!(rng.random::<u16>()))),
    ]
}

#[test]
fn an_event_is_one_exactly_where_it_is_one_for_the_nostr_crate() {
    for seed in 0..300 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let event = signed(rng);
        for (form, text) in forms(rng, &event) {
            let theirs = nostr::Event::from_json(&text)
                .ok()
                .filter(|event| event.verify().is_ok())
                .map(|event| event.as_json());
            let ours = Event::parse(&text)
                .and_then(Event::verify)
                .ok()
                .map(|event| event.json().to_owned());
            assert_eq!(ours, theirs, "seed {seed}, {form}: {text}");
        }
    }
}

/// An array of the seven values in order was accepted as an object.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_an_object() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let note = Author::new(1).note(events::EPOCH, "x");
    let fields = ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"];
    let values: Vec<&Value> = fields.iter().map(|field| &note[field]).collect();
    let answer = client.ask(&json!(["EVENT", values])).await;
    assert_eq!(answer, json!(["NOTICE", "invalid: event: must be a JSON object"]));
    client.fence().await;
    assert_eq!(client.count(&[json!({})]).await, 0);
}

/// Text that no JSON parser can convert may come with a readable id.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_is_answered_under_its_id_even_when_the_rest_is_no_json_value() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let note = Author::new(1).note(events::EPOCH, "x");
    let (id, text) = (id_of(&note), note.to_string());
    let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
    for (found, put) in [
        (r#""x""#, r#""\ud800""#.to_owned()),
        (r#""x""#, r#""\udc00\ud800x""#.to_owned()),
        (r#""kind":1"#, r#""kind":1e999"#.to_owned()),
        (r#""tags":[]"#, format!(r#""tags":{deep}"#)),
    ] {
        let spoiled = text.replace(found, &put);
        assert_ne!(spoiled, text);
        let answer = client.ask_text(&format!(r#"["EVENT",{spoiled}]"#)).await;
        assert_eq!((&answer[0], &answer[1], &answer[2]), (&json!("OK"), &json!(id), &json!(false)));
        assert!(answer[3].as_str().unwrap().starts_with("invalid: "), "{answer}");
        client.fence().await;
    }
}

/// NUL is an ordinary character, in a searched tag and in an address.
#[tokio::test(flavor = "multi_thread")]
async fn nul_is_a_character_like_others() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let at = events::EPOCH;
    let long = format!("{}\0", "x".repeat(40));
    let mut kept = Vec::new();
    for d in ["a", "a\0", "a\0b", "\0", &long, &long[..40]] {
        let tags = json!([["d", d]]);
        client.store(&author.event(30_023, at, tags.clone(), "old\0")).await;
        let new = author.event(30_023, at + 1, tags, "new\0");
        client.store(&new).await;
        kept.push((d, new));
    }
    assert_eq!(client.count(&[json!({})]).await, kept.len() as u64);
    for (d, event) in &kept {
        assert_eq!(client.query(&[json!({ "#d": [d] })]).await, std::slice::from_ref(event));
    }
    for (d, _) in &kept {
        let deletion = author.deletion(at + 1, json!([["a", author.address(30_023, d)]]));
        client.store(&deletion).await;
    }
    assert_eq!(client.count(&[json!({ "kinds": [30_023] })]).await, 0);
}

/// A payload is a JSON string: escapes in it represent digits.
#[tokio::test(flavor = "multi_thread")]
async fn a_payload_may_be_written_with_escapes() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let opening = format!(r#"["NEG-OPEN","\u006e",{{}},{}]"#, escaped(&json!(EMPTY_SET)));
    neg_msg(&client.ask_text(&opening).await, "n");
    let next = format!(r#"["\u004eEG-MSG","n",{}]"#, escaped(&json!(EMPTY_SET)));
    neg_msg(&client.ask_text(&next).await, "n");
}
