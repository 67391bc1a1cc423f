//! Clients, each from a given address: all of `127.0.0.0/8` is this machine.

use futures_util::{SinkExt, StreamExt};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};

/// The address of the well-behaved client.
pub const GOOD: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Timeout for an answer, after which the siege counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers that a well-behaved client must never get.
const REFUSALS: [&str; 3] = [r#"["NOTICE""#, r#"["CLOSED""#, r#"["NEG-ERR""#];

/// One of many addresses other than [`GOOD`].
pub fn stranger(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1 + (number / 200) as u8, 1 + (number % 200) as u8)
}

pub async fn tcp(from: Ipv4Addr, to: SocketAddr, receive_bytes: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    if let Some(bytes) = receive_bytes {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let stream = socket.connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A WebSocket client.
pub struct Client {
    socket: WebSocketStream<TcpStream>,
}

impl Client {
    pub async fn connect(from: Ipv4Addr, to: SocketAddr) -> Result<Self, Error> {
        Self::over(tcp(from, to, None).await, to).await
    }

    /// A client whose sockets buffer little.
    pub async fn connect_small(from: Ipv4Addr, to: SocketAddr) -> Result<Self, Error> {
        Self::over(tcp(from, to, Some(4_096)).await, to).await
    }

    async fn over(stream: TcpStream, to: SocketAddr) -> Result<Self, Error> {
        let (socket, _) = tokio_tungstenite::client_async(format!("ws://{to}"), stream).await?;
        let mut client = Self { socket };
        // The challenge of NIP-42.
        client.next().await;
        Ok(client)
    }

    pub async fn send(&mut self, text: String) -> Result<(), Error> {
        self.socket.send(Message::text(text)).await
    }

    /// The underlying stream, for writing frames byte by byte.
    pub fn into_stream(self) -> TcpStream {
        self.socket.into_inner()
    }

    /// The next message; `None` once the relay has closed.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            match self.socket.next().await? {
                Ok(Message::Text(text)) => return Some(text.to_string()),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// The time from a message to the answer that begins with `last`.
    pub async fn ask(&mut self, text: String, last: &str) -> Duration {
        let start = Instant::now();
        self.send(text).await.unwrap();
        let answered = async {
            while let Some(answer) = self.next().await {
                let is_refused = REFUSALS.iter().any(|refusal| answer.starts_with(refusal));
                assert!(!is_refused, "{answer}");
                if answer.starts_with(last) {
                    return;
                }
            }
            panic!("the relay closed a client that behaves");
        };
        tokio::time::timeout(PATIENCE, answered).await.expect("no answer within a minute");
        start.elapsed()
    }
}

/// The value of a metric.
pub async fn metric(to: SocketAddr, name: &str) -> f64 {
    let mut stream = tcp(GOOD, to, None).await;
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// The initiator's message that asks for the fingerprints of a whole set.
pub fn neg_open(id: &str, filter: &str) -> String {
    format!(r#"["NEG-OPEN","{id}",{filter},"61000001{}"]"#, "00".repeat(16))
}
