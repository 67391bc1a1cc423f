//! A raw WebSocket client: it sends exactly what the test wrote. An expected message must arrive
//! within [`PATIENCE`]; otherwise the test fails with the expectation.

use super::events::{Author, id_of, unix_now};
use super::model;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

pub const PATIENCE: Duration = Duration::from_secs(10);
/// Events that are sent before their OKs are read.
const PUBLISH_EVENTS: usize = 200;

pub struct Client {
    /// The relay's challenge (NIP-42).
    pub challenge: String,
    /// The hints of the last EOSE (NIP-67); `next` returns it without them.
    pub hints: Vec<String>,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    fences: usize,
}

impl Client {
    /// Connects to one of our relays.
    pub async fn connect(url: &str) -> Self {
        Self::connect_elsewhere(url).await.challenged().await
    }

    /// Reads the challenge with which our relays begin (NIP-42).
    async fn challenged(mut self) -> Self {
        let message = self.next("the challenge of NIP-42").await;
        assert_eq!((&message[0], message.as_array().map(Vec::len)), (&json!("AUTH"), Some(2)));
        self.challenge = message[1].as_str().unwrap().to_owned();
        self
    }

    /// Connects to a relay that sends no challenge.
    pub async fn connect_elsewhere(url: &str) -> Self {
        let (socket, _) =
            tokio::time::timeout(PATIENCE, connect_async_with_config(url, None, true))
                .await
                .expect("no WebSocket within 10 s")
                .unwrap_or_else(|error| panic!("cannot connect to {url}: {error}"));
        Self { challenge: String::new(), hints: Vec::new(), socket, fences: 0 }
    }

    /// Authenticates with the author's key (NIP-42), and returns the OK.
    pub async fn authenticate(&mut self, author: &Author, url: &str) -> (bool, String) {
        let event = author.authentication(unix_now(), url, &self.challenge);
        read_ok(&self.ask(&json!(["AUTH", event])).await, id_of(&event))
    }

    /// Like [`Client::connect`], through a proxy that names the client.
    pub async fn connect_for(url: &str, client: &str) -> Result<Self, u16> {
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("x-forwarded-for", client.parse().unwrap());
        match connect_async_with_config(request, None, true).await {
            Ok((socket, _)) => {
                Ok(Self { challenge: String::new(), hints: Vec::new(), socket, fences: 0 }
                    .challenged()
                    .await)
            }
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("cannot connect to {url}: {error}"),
        }
    }

    /// Like [`Client::connect`], with another `Host`.
    pub async fn connect_to_host(url: &str, host: &str) -> Self {
        let mut request = url.into_client_request().unwrap();
        request.headers_mut().insert("host", host.parse().unwrap());
        let (socket, _) = connect_async_with_config(request, None, true).await.unwrap();
        Self { challenge: String::new(), hints: Vec::new(), socket, fences: 0 }.challenged().await
    }

    pub async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(Message::text(text)).await;
    }

    pub async fn send_frame(&mut self, frame: Message) {
        tokio::time::timeout(PATIENCE, self.socket.send(frame))
            .await
            .expect("the relay takes nothing for 10 s")
            .expect("the relay is gone");
    }

    /// The next frame of any kind; `None` at the end of the stream.
    pub async fn next_frame(&mut self, expected: &str) -> Option<Message> {
        match tokio::time::timeout(PATIENCE, self.socket.next()).await {
            Ok(Some(Ok(frame))) => Some(frame),
            Ok(Some(Err(error))) => panic!("the socket failed ({error}); expected {expected}"),
            Ok(None) => None,
            Err(_) => panic!("nothing for 10 s; expected {expected}"),
        }
    }

    /// The text of the next message; pings may come at any time.
    pub async fn next_text(&mut self, expected: &str) -> String {
        loop {
            match self.next_frame(expected).await {
                Some(Message::Text(text)) => return text.to_string(),
                Some(Message::Ping(_)) => {}
                other => panic!("{other:?}; expected {expected}"),
            }
        }
    }

    pub async fn next(&mut self, expected: &str) -> Value {
        let text = self.next_text(expected).await;
        let mut message: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        if message[0] == "EOSE" {
            let elements = message.as_array_mut().unwrap();
            let hints = elements.drain(2..).map(serde_json::from_value::<Vec<String>>);
            self.hints = hints.flat_map(Result::unwrap).collect();
        }
        message
    }

    pub async fn expect(&mut self, expected: Value) {
        let message = self.next(&expected.to_string()).await;
        assert_eq!(message, expected);
    }

    /// Sends a message and returns the next one.
    pub async fn ask(&mut self, message: &Value) -> Value {
        let text = message.to_string();
        self.ask_text(&text).await
    }

    pub async fn ask_text(&mut self, text: &str) -> Value {
        self.send_text(text).await;
        let shown: String = text.chars().take(300).collect();
        self.next(&format!("an answer to {shown}")).await
    }

    /// Checks that everything sent so far has been answered completely, that nothing else was sent,
    /// and that the connection still accepts a REQ. Events published by others cannot answer that
    /// REQ.
    pub async fn fence(&mut self) {
        self.fences += 1;
        let id = format!("fence-{}", self.fences);
        self.send(&json!(["REQ", id, { "ids": [] }])).await;
        self.expect(json!(["EOSE", id])).await;
        self.send(&json!(["CLOSE", id])).await;
    }

    /// Like [`Client::fence`], but skips pending answers.
    pub async fn skip_to_fence(&mut self) {
        self.fences += 1;
        let id = format!("fence-{}", self.fences);
        self.send(&json!(["REQ", id, { "ids": [] }])).await;
        while self.next("the EOSE of a fence").await != json!(["EOSE", id]) {}
        self.send(&json!(["CLOSE", id])).await;
    }

    /// Publishes one event and returns its OK.
    pub async fn publish(&mut self, event: &Value) -> (bool, String) {
        read_ok(&self.ask(&json!(["EVENT", event])).await, id_of(event))
    }

    /// Publishes an event that must be accepted.
    pub async fn store(&mut self, event: &Value) {
        let (accepted, text) = self.publish(event).await;
        assert!(accepted, "{event} was refused: {text}");
    }

    /// Publishes an event that must be refused as blocked.
    pub async fn expect_blocked(&mut self, event: &Value) {
        let (accepted, text) = self.publish(event).await;
        assert!(!accepted && text.starts_with("blocked: "), "{event}: {text}");
    }

    /// Publishes several events, and returns the OK of each id.
    pub async fn publish_all(&mut self, events: &[Value]) -> HashMap<String, (bool, String)> {
        let mut outcomes = HashMap::new();
        for events in events.chunks(PUBLISH_EVENTS) {
            for event in events {
                self.send(&json!(["EVENT", event])).await;
            }
            for _ in events {
                let message = self.next("an OK").await;
                let id = message[1].as_str().unwrap_or_default().to_owned();
                let outcome = read_ok(&message, &id);
                outcomes.insert(id, outcome);
            }
        }
        assert_eq!(outcomes.keys().cloned().collect::<std::collections::BTreeSet<_>>(), {
            model::ids(events)
        });
        outcomes
    }

    /// The stored events returned for a REQ with these filters, in order of arrival.
    pub async fn query(&mut self, filters: &[Value]) -> Vec<Value> {
        let mut request = vec![json!("REQ"), json!("query")];
        request.extend_from_slice(filters);
        self.send(&Value::Array(request)).await;
        let mut events = Vec::new();
        loop {
            let message = self.next("an EVENT or the EOSE of a query").await;
            match message[0].as_str() {
                Some("EVENT") => {
                    assert_eq!(message[1], "query");
                    events.push(message[2].clone());
                }
                _ => {
                    assert_eq!(message, json!(["EOSE", "query"]));
                    break;
                }
            }
        }
        self.send(&json!(["CLOSE", "query"])).await;
        events
    }

    /// The number returned for a COUNT with these filters.
    pub async fn count(&mut self, filters: &[Value]) -> u64 {
        let mut request = vec![json!("COUNT"), json!("count")];
        request.extend_from_slice(filters);
        let answer = self.ask(&Value::Array(request)).await;
        assert_eq!((&answer[0], &answer[1]), (&json!("COUNT"), &json!("count")), "{answer}");
        answer[2]["count"].as_u64().unwrap()
    }

    /// Reads to the close frame, skipping messages, and returns its code.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            match self.next_frame("a close frame").await {
                Some(Message::Close(Some(frame))) => return frame.code.into(),
                Some(Message::Close(None)) | None => panic!("closed without a code"),
                Some(_) => {}
            }
        }
    }
}

fn read_ok(message: &Value, id: &str) -> (bool, String) {
    assert_eq!((&message[0], &message[1]), (&json!("OK"), &json!(id)), "{message}");
    assert_eq!(message.as_array().map(Vec::len), Some(4), "{message}");
    (message[2].as_bool().unwrap(), message[3].as_str().unwrap().to_owned())
}
