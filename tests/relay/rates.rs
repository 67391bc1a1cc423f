//! Rate limits by address, and the answers above the limit.

use crate::support::client::{Client, PATIENCE};
use crate::support::negentropy_client::EMPTY_SET;
use crate::support::{Author, TestRelay, events};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// Sends until a message is refused, and returns the refusal. One message per second is accepted.
async fn until_refused(client: &mut Client, message: impl Fn(usize) -> Value) -> (usize, Value) {
    for number in 0..100 {
        let answer = client.ask(&message(number)).await;
        if answer.to_string().contains("rate-limited: ") {
            return (number, answer);
        }
    }
    panic!("a hundred messages were taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_verb_has_a_rate_that_is_the_addresses_own() {
    let relay = TestRelay::start_with(|config| {
        let rates = &mut config.rates;
        for per_s in [&mut rates.events_per_s, &mut rates.queries_per_s, &mut rates.neg_per_s] {
            *per_s = 1;
        }
        for burst in [&mut rates.events_burst, &mut rates.queries_burst, &mut rates.neg_burst] {
            *burst = 3;
        }
        config.connections.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    })
    .await;
    let client =
        async |address: &str| Client::connect_for(&relay.url(), address).await.ok().unwrap();
    let (mut hasty, mut other) = (client("192.0.2.1").await, client("192.0.2.2").await);
    let author = Author::new(1);
    let note = |number: usize| author.note(events::EPOCH + number as u64, "x");

    let event = |number| json!(["EVENT", note(number)]);
    let (taken, answer) = until_refused(&mut hasty, event).await;
    assert!(taken >= 3, "{taken}");
    let expected = json!(["OK", note(taken)["id"], false]);
    assert_eq!(answer.as_array().unwrap()[..3], expected.as_array().unwrap()[..]);
    assert!(answer[3].as_str().unwrap().starts_with("rate-limited: "), "{answer}");

    let (_, answer) = until_refused(&mut hasty, |_| json!(["COUNT", "c", {}])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("c")));
    let (_, answer) = until_refused(&mut hasty, |_| json!(["REQ", "r", { "limit": 0 }])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("CLOSED"), &json!("r")));

    let open = |number: usize| json!(["NEG-OPEN", format!("n{number}"), {}, EMPTY_SET]);
    let (_, answer) = until_refused(&mut hasty, open).await;
    assert_eq!((&answer[0], answer.as_array().unwrap().len()), (&json!("NEG-ERR"), 3));
    // NIP-77, Error message: the session is closed.
    let (_, answer) = until_refused(&mut hasty, |_| json!(["NEG-MSG", "n0", EMPTY_SET])).await;
    assert_eq!((&answer[0], &answer[1]), (&json!("NEG-ERR"), &json!("n0")));

    // Reconnecting does not help, and other addresses have their own limits.
    drop(hasty);
    let mut hasty = client("192.0.2.1").await;
    assert!(until_refused(&mut hasty, event).await.0 < 3);
    assert!(other.publish(&note(1_000)).await.0);
    assert_eq!(other.ask(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await[0], "NEG-MSG");
    assert_eq!(other.ask(&json!(["REQ", "r", { "limit": 0 }])).await, json!(["EOSE", "r"]));
}

/// Frames that are never refused count towards the rate too: above it, they are read more slowly.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_refused_is_read_at_a_rate() {
    let relay = TestRelay::start_with(|config| {
        config.rates.other_per_s = 10;
        config.rates.other_burst = 1;
    })
    .await;
    let text = |text: &str| Message::text(text.to_owned());
    let frames = [
        text(r#"["CLOSE","x"]"#),
        text(r#"["NEG-CLOSE","x"]"#),
        text("[not JSON"),
        Message::Ping(Vec::new().into()),
        Message::Pong(Vec::new().into()),
        Message::Binary(Vec::new().into()),
    ];
    let mut client = relay.client().await;
    for frame in frames {
        let began = Instant::now();
        for _ in 0..10 {
            client.send_frame(frame.clone()).await;
        }
        client.send(&json!(["COUNT", "last", {}])).await;
        loop {
            if let Some(Message::Text(text)) = client.next_frame("a COUNT").await
                && text.starts_with(r#"["COUNT""#)
            {
                break;
            }
        }
        // One at once, the others a tenth of a second apart.
        assert!(began.elapsed() > Duration::from_millis(850), "{frame:?}: {:?}", began.elapsed());
    }
}

/// HTTP requests count towards the rate too, on separate connections or on one.
#[tokio::test(flavor = "multi_thread")]
async fn http_requests_are_answered_at_a_rate() {
    let relay = TestRelay::start_with(|config| {
        config.rates.other_per_s = 10;
        config.rates.other_burst = 1;
    })
    .await;
    for path in ["/", "/health", "/nothing"] {
        let (began, mut answers) = (Instant::now(), String::new());
        let mut stream = TcpStream::connect(relay.relay.address()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n");
        stream.write_all(request.repeat(10).as_bytes()).await.unwrap();
        while answers.matches("HTTP/1.1 ").count() < 10 {
            let mut bytes = [0; 4096];
            let count = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await;
            let count = count.expect("no answer within 10 s").unwrap();
            assert!(count > 0, "closed after {answers}");
            answers += std::str::from_utf8(&bytes[..count]).unwrap();
        }
        // One at once, the others a tenth of a second apart.
        assert!(began.elapsed() > Duration::from_millis(850), "{path}: {:?}", began.elapsed());
    }
}
