//! HTTP requests, each on a new connection.

use super::client::PATIENCE;
use std::collections::HashMap;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Response {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
}

/// A handshake without its final empty line.
pub const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Sends text on a new connection.
pub async fn send_raw(address: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Reads until the other side closes.
pub async fn read_to_close(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A connection that is closed with unread data is reset.
    let _ = read.expect("nobody closes");
    bytes
}

/// Sends text on a new connection, and reads until the other side closes.
pub async fn answer_to(address: SocketAddr, text: &str) -> String {
    String::from_utf8(read_to_close(send_raw(address, text).await).await).unwrap()
}

/// Sends a request with these headers, each a line without its end; `Host` is the address, unless a
/// header sets it.
pub async fn http(address: SocketAddr, method: &str, path: &str, headers: &[&str]) -> Response {
    ask(address, method, path, headers, "").await
}

/// As [`http`], POST with a body.
pub async fn post(address: SocketAddr, path: &str, headers: &[&str], body: &str) -> Response {
    let length = format!("Content-Length: {}", body.len());
    ask(address, "POST", path, &[headers, &[length.as_str()]].concat(), body).await
}

async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Response {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let lines: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let host = match headers.iter().any(|header| header.starts_with("Host: ")) {
        true => String::new(),
        false => format!("Host: {address}\r\n"),
    };
    let request =
        format!("{method} {path} HTTP/1.1\r\n{host}{lines}Connection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Response { status, headers, body: body.to_owned() }
}
