//! Every refused message gets an answer, and has no other effect on the connection.

use crate::support::client::Client;
use crate::support::process::RelayProcess;
use crate::support::{Author, TestRelay, events, id_of};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

async fn expect_notice(client: &mut Client, answer: &Value, sent: &str) {
    let shown: String = sent.chars().take(100).collect();
    let text = answer[1].as_str().unwrap_or_default();
    assert!(answer[0] == "NOTICE" && text.starts_with("invalid: "), "{shown}: {answer}");
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_is_answered_with_a_notice() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let deep = "[".repeat(100_000);
    let deep_event = format!(r#"["EVENT",{{"id":{deep}"#);
    let long_id = json!(["CLOSE", "x".repeat(65)]).to_string();
    for sent in [
        "",
        "hello",
        "{}",
        "42",
        "null",
        "\"REQ\"",
        "[",
        "[]",
        "[1]",
        "[null]",
        r#"["REQ","x",{}] trailing"#,
        r#"["NOPE"]"#,
        r#"["req","x",{}]"#,
        r#"["AUTH",{}]"#,
        r#"["EVENT"]"#,
        r#"["EVENT",{},{}]"#,
        r#"["EVENT",5]"#,
        r#"["EVENT","x"]"#,
        r#"["EVENT",{}]"#,
        r#"["EVENT",{"id":"ab"}]"#,
        r#"["REQ"]"#,
        r#"["REQ",5,{}]"#,
        r#"["REQ",null,{}]"#,
        r#"["COUNT"]"#,
        r#"["CLOSE"]"#,
        r#"["CLOSE",{}]"#,
        r#"["NEG-OPEN"]"#,
        r#"["NEG-OPEN",7,{},"6100000200"]"#,
        r#"["NEG-MSG"]"#,
        r#"["NEG-CLOSE"]"#,
        &deep,
        &deep_event,
        &long_id,
    ] {
        let answer = client.ask_text(sent).await;
        expect_notice(&mut client, &answer, sent).await;
    }
    client.send_frame(Message::binary(vec![0xff; 10])).await;
    let answer = client.next("a NOTICE about a binary message").await;
    expect_notice(&mut client, &answer, "a binary message").await;
}

/// Typical mistakes of people who write their first messages in wscat.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_says_what_to_type() {
    const REQ: &str = r#"["REQ","my-id",{"kinds":[1],"limit":10}]"#;
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    for (typed, hint) in [
        ("hello", REQ),
        ("", REQ),
        ("REQ", REQ),
        (r#"REQ x {"kinds":[1]}"#, REQ),
        (r#"> ["REQ","x",{}]"#, REQ),
        (r#"{"REQ":"x"}"#, REQ),
        ("count", r#"["COUNT","my-id",{"kinds":[1]}]"#),
        (r#"["REQ","x",{"kinds":[1]"#, "on one line"),
        (r#"["REQ","#, "on one line"),
        (r#"["REQ",x,{}]"#, REQ),
        ("[“REQ”,“x”,{}]", "straight"),
        ("['REQ','x',{}]", "double"),
        ("[]", REQ),
        ("[REQ]", REQ),
        (r#"["req","x",{}]"#, REQ),
        (r#"["NEG_OPEN","x",{},"61"]"#, r#"["NEG-OPEN","my-id","#),
        (r#"["x","REQ",{}]"#, "the verb comes first"),
        (r#"["EOSE","x"]"#, "a message of relays"),
        (r#"["PING"]"#, "there are REQ, CLOSE, COUNT, EVENT, AUTH, NEG-OPEN, NEG-MSG, NEG-CLOSE"),
        (r#"["REQ"]"#, REQ),
        (r#"["REQ",{"kinds":[1]}]"#, REQ),
        (r#"["REQ","x"]"#, REQ),
        (r#"["REQ","x",[{"kinds":[1]}]]"#, r#"such as {"kinds":[1]}; several filters follow"#),
        (r#"["REQ","x","{}"]"#, "without quotation marks"),
        (r#"["REQ","x",{"kind":[1]}]"#, "it is kinds, with an array"),
        (r#"["REQ","x",{"author":"ab"}]"#, "it is authors"),
        (r#"["REQ","x",{"t":["nostr"]}]"#, "it is #t"),
        (r#"["REQ","x",{"authors":["npub1xyz"]}]"#, "64 hex digits each, not npub"),
        (r#"["COUNT","x"]"#, r#"["COUNT","my-id","#),
        (r#"["CLOSE"]"#, r#"["CLOSE","my-id"]"#),
        (r#"["EVENT"]"#, r#"["EVENT",{"id":"#),
        (r#"{"id":"","sig":""}"#, r#"["EVENT",{"id":"#),
        (r#"["AUTH"]"#, r#"["AUTH",{"id":"#),
        (r#"["AUTH","challenge"]"#, "a signed event whose tags name the challenge"),
        (r#"["NEG-OPEN","x",{}]"#, r#"["NEG-OPEN","my-id",{"kinds":[1]},"6100000200"]"#),
        (r#"["NEG-OPEN","x",{},{},"61"]"#, r#"type ["NEG-OPEN","my-id",[{"kinds":[1]},{"#),
        (r#"["NEG-OPEN","x",{},16,"61"]"#, "v1 has no number between filter and message"),
        (r#"["NEG-OPEN","x","61",{}]"#, "the filter comes before the message"),
        (r#"["NEG-OPEN","x","{}","61"]"#, "without quotation marks"),
        (r#"["NEG-OPEN","x",1,"61"]"#, "several filters go into one array"),
        (r#"["NEG-OPEN","x",{},61]"#, r#"a string of hex digits, such as "6100000200""#),
        (r#"["NEG-OPEN","x",{},"610"]"#, "3 hex digits, an odd number"),
        (r#"["NEG-OPEN","x",{},"0x61"]"#, "'x' at character 1"),
        (r#"["NEG-MSG","x","6é"]"#, "'é' at character 1"),
        (r#"["NEG-MSG","x"]"#, r#"["NEG-MSG","my-id","61..."]"#),
        (r#"["NEG-CLOSE"]"#, r#"["NEG-CLOSE","my-id"]"#),
    ] {
        let answer = client.ask_text(typed).await;
        let text = answer.as_array().and_then(|it| it.last()).and_then(Value::as_str);
        let is_said = text.is_some_and(|text| text.contains(hint));
        assert!(is_said, "{typed}: no {hint:?} in {answer}");
    }
}

/// Found by a fuzz target: text instead of an array, and an unknown key of a filter, were quoted in
/// full.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_quotes_little_of_what_it_refuses() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let long = "x".repeat(1 << 20);
    for sent in [
        json!(long),
        json!({ "long": long }),
        json!([long]),
        json!(["REQ", long]),
        json!(["REQ", "s", { long.clone(): [] }]),
        json!(["REQ", "s", { "ids": [long] }]),
        json!(["NEG-OPEN", "n", { long.clone(): 1 }, "6100000200"]),
        json!(["NEG-MSG", "n", long]),
        json!(["EVENT", long]),
        json!(["EVENT", { "id": long }]),
        json!(["EVENT", { long.clone(): 1 }]),
    ] {
        client.send(&sent).await;
        let answer = client.next_text("a refusal").await;
        let has_prefix = answer.contains("invalid: ") || answer.contains("unsupported: ");
        assert!(answer.len() <= 300 && has_prefix, "{answer:.1000}");
    }
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_is_refused_under_its_id_with_the_field() {
    let relay = TestRelay::start_with(|config| {
        config.limits.event_tags = 3;
        config.limits.event_bytes = 2_000;
    })
    .await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let good = author.event(1, events::EPOCH, json!([["t", "x"]]), "hello");
    let other = author.note(events::EPOCH, "other");
    let ahead = author.note(events::unix_now() + 2_000, "tomorrow");
    let tags = author.event(1, events::EPOCH, json!([["t"], ["t"], ["t"], ["t"]]), "");
    let long = author.note(events::EPOCH, &"x".repeat(2_000));
    let with = |field: &str, value: Value| {
        let mut event = good.clone();
        event[field] = value;
        event
    };
    let without = |field: &str| {
        let mut event = good.clone();
        event.as_object_mut().unwrap().remove(field);
        event
    };
    for (event, field) in [
        (without("pubkey"), "pubkey"),
        (without("created_at"), "created_at"),
        (without("kind"), "kind"),
        (without("tags"), "tags"),
        (without("content"), "content"),
        (without("sig"), "sig"),
        (with("pubkey", json!("ab")), "pubkey"),
        (with("pubkey", json!("zz".repeat(32))), "pubkey"),
        (with("pubkey", json!(7)), "pubkey"),
        (with("created_at", json!(-1)), "created_at"),
        (with("created_at", json!(1.5)), "created_at"),
        (with("created_at", json!("1700000000")), "created_at"),
        (with("created_at", json!(u64::MAX)), "created_at"),
        (with("kind", json!(65_536)), "kind"),
        (with("kind", json!(-1)), "kind"),
        (with("kind", json!("1")), "kind"),
        (with("tags", json!({})), "tags"),
        (with("tags", json!([5])), "tags"),
        (with("tags", json!([["t", 5]])), "tags"),
        (with("content", json!(null)), "content"),
        (with("content", json!(["x"])), "content"),
        (with("sig", json!("ab")), "sig"),
        (with("sig", json!("zz".repeat(64))), "sig"),
        (with("sig", other["sig"].clone()), "sig"),
        (with("sig", json!("00".repeat(64))), "sig"),
        // After any other change the id is no longer the hash.
        (with("content", json!("goodbye")), "id"),
        (with("kind", json!(7)), "id"),
        (with("id", json!("00".repeat(32))), "id"),
        (with("pubkey", json!(Author::new(2).key())), "id"),
        (with("pubkey", json!("ff".repeat(32))), ""),
        (ahead, "created_at"),
        (tags, "tags"),
        (long, "event"),
    ] {
        let id = id_of(&event).to_owned();
        let (accepted, text) = client.publish(&event).await;
        assert!(!accepted && text.starts_with(&format!("invalid: {field}")), "{event}: {text}");
        client.fence().await;
        assert_eq!(client.count(&[json!({ "ids": [id] })]).await, 0);
    }
    client.store(&good).await;
}

/// Filters that every verb refuses, each with the faulty key.
fn bad_filters() -> Vec<(Value, &'static str)> {
    let many: Vec<u32> = (0..10_001).collect();
    vec![
        (json!(5), "filter"),
        (json!("x"), "filter"),
        (json!(null), "filter"),
        (json!({ "ids": "x" }), "ids"),
        (json!({ "ids": ["abcd"] }), "ids"),
        (json!({ "ids": ["zz".repeat(32)] }), "ids"),
        (json!({ "ids": [5] }), "ids"),
        (json!({ "authors": [""] }), "authors"),
        (json!({ "authors": {} }), "authors"),
        (json!({ "kinds": 1 }), "kinds"),
        (json!({ "kinds": ["1"] }), "kinds"),
        (json!({ "kinds": [-1] }), "kinds"),
        (json!({ "kinds": [65_536] }), "kinds"),
        (json!({ "since": -1 }), "since"),
        (json!({ "since": "now" }), "since"),
        (json!({ "until": 1.5 }), "until"),
        (json!({ "limit": -1 }), "limit"),
        (json!({ "limit": "all" }), "limit"),
        (json!({ "#t": "x" }), "#t"),
        (json!({ "#t": [1] }), "#t"),
        (json!({ "#topic": ["x"] }), "#topic"),
        (json!({ "search": "x" }), "search"),
        (json!({ "#t": many.iter().map(u32::to_string).collect::<Vec<_>>() }), "filter"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_filter_closes_the_request_or_the_session() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    for (filter, key) in bad_filters() {
        for (verb, answer_verb) in [("REQ", "CLOSED"), ("COUNT", "CLOSED"), ("NEG-OPEN", "NEG-ERR")]
        {
            let mut message = json!([verb, "x", filter]);
            if verb == "NEG-OPEN" {
                message.as_array_mut().unwrap().push(json!("6100000200"));
            }
            let answer = client.ask(&message).await;
            let text = answer[2].as_str().unwrap_or_default();
            assert_eq!((&answer[0], &answer[1]), (&json!(answer_verb), &json!("x")), "{answer}");
            assert_eq!(answer.as_array().unwrap().len(), 3, "{answer}");
            // NIP-01 has a separate prefix for requests in a filter that the relay does not
            // support.
            let prefix = match key {
                "#topic" | "search" => "unsupported: ",
                _ => "invalid: ",
            };
            assert!(text.starts_with(prefix) && text.contains(key), "{key}: {answer}");
            assert!(!text.contains("filter: filter"), "said twice: {answer}");
            client.fence().await;
        }
    }
    // A valid filter beside it makes no difference.
    let answer = client.ask(&json!(["REQ", "x", {}, { "kinds": "x" }])).await;
    assert_eq!(answer[0], "CLOSED");
    let too_many = vec![json!({}); 33];
    for filters in [json!([]), json!(too_many), json!([{}, { "limit": -1 }]), json!([[]])] {
        let answer = client.ask(&json!(["NEG-OPEN", "x", filters, "6100000200"])).await;
        assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("x")), "{answer}");
        client.fence().await;
    }
    let answer = client.ask(&json!(["REQ", "x"])).await;
    assert!(answer[0] == "CLOSED" && answer[1] == "x", "{answer}");
    let mut message = vec![json!("REQ"), json!("x")];
    message.extend(too_many);
    let answer = client.ask(&Value::Array(message)).await;
    assert!(answer[0] == "CLOSED" && answer[1] == "x", "{answer}");
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_answered_then_closed_with_1009() {
    const LIMIT: usize = 20_000;
    let relay = TestRelay::start_with(|config| {
        config.limits.message_bytes = LIMIT;
    })
    .await;
    let mut bystander = relay.client().await;
    let padded = |bytes: usize| {
        let message = r#"["REQ","x",{"limit":0}]"#;
        format!("{message}{}", " ".repeat(bytes - message.len()))
    };
    let mut client = relay.client().await;
    assert_eq!(client.ask_text(&padded(LIMIT)).await, json!(["EOSE", "x"]));
    // Far more than fits in the buffers, so that a reset would lose the answer.
    for bytes in [LIMIT + 1, 4_000_000] {
        let mut client = relay.client().await;
        let answer = client.ask_text(&padded(bytes)).await;
        assert_eq!(answer[0], "NOTICE");
        assert!(answer[1].as_str().unwrap().starts_with("invalid: "), "{answer}");
        assert_eq!(client.close_code().await, 1009);
    }
    // The same in fragments below the limit.
    let mut client = relay.client().await;
    let piece = |opcode, last| {
        let mut header = FrameHeader { opcode: OpCode::Data(opcode), ..FrameHeader::default() };
        header.is_final = last;
        header.mask = Some([0; 4]);
        Message::Frame(Frame::from_payload(header, " ".repeat(LIMIT / 2 + 1).into()))
    };
    client.send_frame(piece(Data::Text, false)).await;
    client.send_frame(piece(Data::Continue, true)).await;
    assert_eq!(client.next("a NOTICE").await[0], "NOTICE");
    assert_eq!(client.close_code().await, 1009);
    bystander.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_not_utf_8_is_answered_then_closed_with_1007() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let mut header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    header.mask = Some([0; 4]);
    let frame = Frame::from_payload(header, vec![b'[', 0xff, b']'].into());
    client.send_frame(Message::Frame(frame)).await;
    assert_eq!(client.next("a NOTICE").await[0], "NOTICE");
    assert_eq!(client.close_code().await, 1007);
}

/// Valid messages of every verb, to be damaged.
fn good_messages() -> Vec<String> {
    let author = Author::new(1);
    let event = author.event(30_023, events::EPOCH, json!([["d", "x"], ["t", "y"]]), "\u{1f98a}");
    let filter = json!({ "ids": [id_of(&event)], "authors": [author.key()], "kinds": [1, 30_023],
        "#t": ["y"], "since": 1, "until": 4_000_000_000u64, "limit": 10 });
    // Two buckets with fingerprints, then a list of one id.
    let payload =
        format!("61{}01{}{}02{}01{}", "0100", "00".repeat(16), "0000", "01", "11".repeat(32));
    [
        json!(["EVENT", event]),
        json!(["REQ", "r", filter, {}]),
        json!(["COUNT", "c", filter]),
        json!(["CLOSE", "r"]),
        json!(["NEG-OPEN", "n", [filter, {}], payload]),
        json!(["NEG-MSG", "n", payload]),
        json!(["NEG-CLOSE", "n"]),
    ]
    .map(|message| message.to_string())
    .to_vec()
}

/// One to four random edits, most of them within the JSON.
fn damage(rng: &mut StdRng, message: &str) -> String {
    const SCRAPS: [&str; 16] = [
        "\"",
        "[",
        "]",
        "{",
        "}",
        ",",
        "0",
        "f",
        "-",
        "1e999",
        "null",
        "\\u0000",
        "\\ud800",
        "99999999999999999999",
        "\u{1f98a}",
        "",
    ];
    let mut text: Vec<char> = message.chars().collect();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..=text.len());
        let cut = rng.random_range(0..3).min(text.len() - at);
        let scrap = SCRAPS[rng.random_range(0..SCRAPS.len())];
        text.splice(at..at + cut, scrap.chars());
    }
    text.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_damaged_message_panics_the_process() {
    let seed = 7;
    let directory = tempfile::tempdir().unwrap();
    let relay = RelayProcess::start(&directory.path().join("events.sqlite"));
    let mut client = relay.client().await;
    let mut rng = StdRng::seed_from_u64(seed);
    let good = good_messages();
    for round in 0..3_000 {
        let chosen = rng.random_range(0..good.len());
        let message = damage(&mut rng, &good[chosen]);
        client.send_text(&message).await;
        if round % 50 == 0 {
            client.skip_to_fence().await;
        }
    }
    client.skip_to_fence().await;
    relay.signal("TERM");
    let (status, log) = relay.ended();
    assert!(status.success() && !log.contains("panic"), "seed {seed}: {status} {log}");
}
