//! Invalid NEG messages: answered by NEG-ERR `invalid:` with the fault, without other effects.

use crate::support::client::Client;
use crate::support::negentropy_client::{EMPTY_SET, neg_msg};
use crate::support::{TestRelay, events};
use serde_json::{Value, json};

/// Payloads that no responder can decode, as in the message.
fn bad_payloads() -> Vec<(Value, &'static str)> {
    let list = |count: &str, ids: usize| format!("61000002{count}{}", "11".repeat(32 * ids));
    vec![
        (json!(5), "string"),
        (json!(null), "string"),
        (json!(["6100000200"]), "string"),
        (json!("610000020"), "odd"),
        (json!("6"), "odd"),
        (json!("61000002zz"), "hex"),
        (json!("61 0000200"), "hex"),
        (json!("\u{1f98a}"), "hex"),
        (json!("61\n0000200\n"), "hex"),
        (json!(""), "empty"),
        (json!("00"), "version"),
        (json!("5f"), "version"),
        (json!("7000000200"), "version"),
        // Truncated in a bound, its prefix, a mode, a count, a list, a fingerprint.
        (json!("6100"), "ends inside"),
        (json!("610080"), "more digits"),
        (json!("6101ff"), "ends inside"),
        (json!("61010511"), "ends inside"),
        (json!("610000"), "ends inside"),
        (json!("61000002"), "ends inside"),
        (json!(list("01", 0)), "announces 1 ids"),
        (json!(list("03", 2)), "announces 3 ids"),
        (json!(format!("61000001{}", "00".repeat(15))), "fingerprint"),
        // A list that announces far more ids than it can hold.
        (json!(list("ffffffff7f", 1)), "announces 34359738367 ids"),
        (json!(list("81ffffffffffffffff7f", 1)), "announces 18446744073709551615 ids"),
        // Overlong and too large numbers.
        (json!("61800000000200"), "more digits"),
        (json!("61ffffffffffffffffffff7f000200"), "64 bits"),
        (json!(format!("610121{}0200", "11".repeat(33))), "longer than an id"),
        (json!("61000003"), "mode"),
        (json!("6100007f"), "mode"),
        // A valid range, then an invalid one.
        (json!("61010000000009"), "mode"),
    ]
}

async fn expect_invalid(client: &mut Client, message: &Value, reason: &str) {
    let answer = client.ask(message).await;
    let text = answer[2].as_str().unwrap_or_default();
    assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("n")), "{message}: {answer}");
    assert_eq!(answer.as_array().unwrap().len(), 3, "{answer}");
    assert!(text.starts_with("invalid: ") && text.contains(reason), "{message}: {answer}");
    client.fence().await;
}

async fn open(client: &mut Client, id: &str) {
    let answer = client.ask(&json!(["NEG-OPEN", id, {}, EMPTY_SET])).await;
    neg_msg(&answer, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_cannot_be_read_is_refused_in_neg_open_and_ends_the_session_in_neg_msg() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    client.publish_all(&events::generate(1, 50)).await;
    open(&mut client, "bystander").await;
    for (payload, reason) in bad_payloads() {
        expect_invalid(&mut client, &json!(["NEG-OPEN", "n", {}, payload]), reason).await;
        open(&mut client, "n").await;
        expect_invalid(&mut client, &json!(["NEG-MSG", "n", payload]), reason).await;
        // NIP-77: after NEG-ERR the session is closed.
        let answer = client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await;
        assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("n")), "{answer}");
        assert!(answer[2].as_str().unwrap().starts_with("closed: "), "{answer}");
    }
    let answer = client.ask(&json!(["NEG-MSG", "bystander", EMPTY_SET])).await;
    neg_msg(&answer, "bystander");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_truncation_of_a_message_is_answered() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    client.publish_all(&events::generate(2, 50)).await;
    let mut message = vec![0x61];
    for bucket in 0..3 {
        message.extend([0x80 + 1 + bucket, 0x05, 0x01, 0xaa, 0x01]);
        message.extend([bucket; 16]);
    }
    message.extend([0x00, 0x00, 0x02, 0x02]);
    message.extend([0x22; 64]);
    // A message that ends after a range is valid.
    let whole = [1, 22, 43, 64, message.len()];
    for bytes in 1..=message.len() {
        let payload = faster_hex::hex_string(&message[..bytes]);
        let open = json!(["NEG-OPEN", "n", {}, payload]);
        if whole.contains(&bytes) {
            neg_msg(&client.ask(&open).await, "n");
        } else {
            expect_invalid(&mut client, &open, "byte ").await;
        }
    }
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_the_wrong_shape_are_refused_and_end_the_session_that_they_name() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    for (message, reason) in [
        // Protocol v0 had the size of an id as the fourth element.
        (json!(["NEG-OPEN", "n", {}, 16, "6000000200"]), "v0"),
        (json!(["NEG-OPEN", "n", {}, 32, EMPTY_SET]), "v0"),
        (json!(["NEG-OPEN", "n"]), "NEG-OPEN takes"),
        (json!(["NEG-OPEN", "n", {}]), "NEG-OPEN takes"),
        (json!(["NEG-OPEN", "n", {}, EMPTY_SET, 1, 2]), "NEG-OPEN takes"),
        (json!(["NEG-OPEN", "n", { "kinds": "x" }, EMPTY_SET]), "kinds"),
        (json!(["NEG-MSG", "n"]), "NEG-MSG takes"),
        (json!(["NEG-MSG", "n", EMPTY_SET, 5]), "NEG-MSG takes"),
    ] {
        open(&mut client, "n").await;
        expect_invalid(&mut client, &message, reason).await;
        let answer = client.ask(&json!(["NEG-MSG", "n", EMPTY_SET])).await;
        assert!(answer[2].as_str().unwrap().starts_with("closed: "), "{message}: {answer}");
    }
}
