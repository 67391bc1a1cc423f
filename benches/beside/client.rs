//! One WebSocket to a relay.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

pub struct Client {
    socket: WebSocketStream<TcpStream>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (socket, _) =
            tokio_tungstenite::client_async(format!("ws://{address}/"), stream).await?;
        Ok(Self { socket })
    }

    pub async fn send(&mut self, text: String) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message of one of these kinds.
    pub async fn next_of(&mut self, kinds: &[&str]) -> String {
        loop {
            let message = self.socket.next().await.expect("the relay closed").unwrap();
            if let Message::Text(text) = message {
                let is_of = |kind: &&str| {
                    text.strip_prefix("[\"").is_some_and(|rest| rest.starts_with(*kind))
                };
                if kinds.iter().any(is_of) {
                    return text.to_string();
                }
            }
        }
    }

    /// The events returned for a REQ, in order of arrival.
    pub async fn req(&mut self, filter: &str) -> Vec<String> {
        self.send(format!(r#"["REQ","q",{filter}]"#)).await;
        let mut events = Vec::new();
        loop {
            let text = self.next_of(&["EVENT", "EOSE", "CLOSED"]).await;
            assert!(!text.starts_with("[\"CLOSED"), "{text}");
            if text.starts_with("[\"EOSE") {
                return events;
            }
            events.push(text);
        }
    }
}

/// The id of the event in an EVENT message.
pub fn id_of(text: &str) -> String {
    let message: Value = serde_json::from_str(text).unwrap();
    message[2]["id"].as_str().unwrap().to_owned()
}
