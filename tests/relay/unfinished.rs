//! Messages that clients begin and do not complete: they have a deadline, and a bound on their
//! memory.

use crate::support::TestRelay;
use crate::support::client::PATIENCE;
use crate::support::frames::{NO_MASK, frame, head};
use futures_util::StreamExt;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

const TEXT: u8 = 1;
const CONTINUATION: u8 = 0;
const PING: u8 = 9;
const LAST: u8 = 0x80;

/// A client that writes its frames byte by byte.
struct RawClient {
    socket: WebSocketStream<TcpStream>,
}

impl RawClient {
    async fn connect(relay: &TestRelay) -> Self {
        let stream = TcpStream::connect(relay.relay.address()).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async(relay.url(), stream).await.unwrap();
        let mut client = Self { socket };
        assert!(client.next_text().await.starts_with(r#"["AUTH""#));
        client
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).await.unwrap();
    }

    async fn next(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        match next.expect("nothing for 10 s")? {
            Ok(message) => Some(message),
            Err(Error::Protocol(_) | Error::Io(_)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    async fn next_text(&mut self) -> String {
        loop {
            match self.next().await {
                Some(Message::Text(text)) => return text.to_string(),
                Some(Message::Pong(_) | Message::Ping(_)) => {}
                other => panic!("{other:?} instead of a text"),
            }
        }
    }
}

/// A COUNT of this many bytes.
fn long_count(id: &str, bytes: usize) -> Vec<u8> {
    let mut text = json!(["COUNT", id, { "limit": 0 }]).to_string();
    text.extend(std::iter::repeat_n(' ', bytes - text.len()));
    text.into_bytes()
}

/// 240 connections took 984 MB, without end if they sent pings.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_begun_has_to_end_in_time_whatever_else_is_sent() {
    let relay = TestRelay::start_with(|config| {
        config.connections.message_timeout_s = 1;
    })
    .await;
    let begun = [
        // A head, a part of a head, a first fragment, a ping that claims to be long.
        head(LAST | TEXT, 4 << 20, NO_MASK),
        head(LAST | TEXT, 4 << 20, NO_MASK)[..5].to_vec(),
        frame(TEXT, b"[\"COUNT", NO_MASK),
        head(LAST | PING, 1 << 20, NO_MASK),
    ];
    for (number, begin) in begun.iter().enumerate() {
        let mut client = RawClient::connect(&relay).await;
        // Complete messages have no deadline.
        client.write(&frame(LAST | TEXT, &long_count("whole", 100_000), NO_MASK)).await;
        assert!(client.next_text().await.starts_with(r#"["COUNT","whole""#));
        client.write(begin).await;
        let pings = async {
            // Control frames may come between fragments.
            let mut ping = tokio::time::interval(std::time::Duration::from_millis(100));
            loop {
                ping.tick().await;
                match number {
                    2 => client.write(&frame(LAST | PING, b"x", NO_MASK)).await,
                    _ => return client.next_text().await,
                }
                if let Some(Message::Text(text)) = client.next().await {
                    return text.to_string();
                }
            }
        };
        let said = tokio::time::timeout(PATIENCE, pings).await.expect("no deadline");
        assert!(said.starts_with(r#"["NOTICE","closed: message timeout"#), "{said}");
        let close = loop {
            match client.next().await {
                Some(Message::Close(Some(close))) => break close,
                Some(_) => {}
                None => panic!("closed without a word"),
            }
        };
        assert_eq!(close.code, CloseCode::Policy);
    }
    let mut other = relay.client().await;
    other.fence().await;
}

/// A message without room waits, whole or in fragments; a short one needs no room.
#[tokio::test(flavor = "multi_thread")]
async fn long_messages_of_an_address_wait_for_each_other() {
    let relay = TestRelay::start_with(|config| {
        config.connections.incoming_bytes_per_address = 1 << 20;
    })
    .await;
    let long = |id: &str| long_count(id, 700_000);
    let mut holding = RawClient::connect(&relay).await;
    let whole = frame(LAST | TEXT, &long("holding"), NO_MASK);
    holding.write(&whole[..100]).await;
    let mut short = relay.client().await;
    short.fence().await;

    let (mut waiting, mut in_parts) =
        (RawClient::connect(&relay).await, RawClient::connect(&relay).await);
    let text = long("in parts");
    let parts = [
        frame(TEXT, &text[..10], NO_MASK),
        frame(CONTINUATION, &text[10..400_000], NO_MASK),
        frame(LAST | PING, b"", NO_MASK),
        frame(LAST | CONTINUATION, &text[400_000..], NO_MASK),
    ];
    let write_all = async {
        let bytes =
            [frame(LAST | TEXT, b"[]", NO_MASK), frame(LAST | TEXT, &long("waiting"), NO_MASK)]
                .concat();
        let parts = parts.concat();
        tokio::join!(waiting.write(&bytes), in_parts.write(&parts));
        // Earlier messages are answered at once.
        let first = waiting.next_text().await;
        assert!(first.starts_with(r#"["NOTICE","invalid: an empty array"#), "{first}");
        tokio::join!(waiting.next_text(), in_parts.next_text())
    };
    let mut write_all = std::pin::pin!(write_all);
    // They make no progress while other messages are answered many times.
    for _ in 0..200 {
        tokio::select! {
            biased;
            answers = &mut write_all => panic!("{answers:?} beside a message that has the room"),
            () = short.fence() => {}
        }
    }
    holding.write(&whole[100..]).await;
    assert!(holding.next_text().await.starts_with(r#"["COUNT","holding""#));
    let (waited, joined) = write_all.await;
    assert!(waited.starts_with(r#"["COUNT","waiting""#), "{waited}");
    assert!(joined.starts_with(r#"["COUNT","in parts""#), "{joined}");
}

/// Consecutive messages without a pause do not count as one that never ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_messages_has_no_deadline() {
    let relay = TestRelay::start_with(|config| {
        config.connections.message_timeout_s = 1;
    })
    .await;
    let mut client = RawClient::connect(&relay).await;
    let message = frame(LAST | TEXT, &long_count("x", 20_000), NO_MASK);
    let stream = message.repeat(10);
    let began = std::time::Instant::now();
    // Each write ends within a message.
    client.write(&stream[..1_000]).await;
    while began.elapsed().as_secs_f64() < 2.5 {
        client.write(&stream[1_000..]).await;
        client.write(&stream[..1_000]).await;
        for _ in 0..10 {
            assert!(client.next_text().await.starts_with(r#"["COUNT","x""#));
        }
    }
}
