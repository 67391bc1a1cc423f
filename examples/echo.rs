//! The relay's WebSocket without the relay: returns every message. `scripts/autobahn` runs the
//! Autobahn cases against it.
//!
//! `echo [ADDR:PORT]` prints where it listens, and ends with its standard input.

// The relay's own handshake, settings and close codes.
#[path = "../src/relay/websocket.rs"]
mod websocket;

use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io::Read;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use websocket::{Longest, UpgradeRefusal};

/// Maximum length of the cases' messages, and the relay's highest configurable limit.
const MESSAGE_BYTES: usize = 64 << 20;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    tokio::select! {
        ended = ended => ended.map_err(std::io::Error::other)?.map(|_| ()),
        error = accept(listener) => error,
    }
}

async fn accept(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream));
    }
}

async fn serve(stream: TcpStream) {
    let service = service_fn(async |request| Ok::<_, Infallible>(respond(request)));
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.with_upgrades().await {
        eprintln!("echo: {error}");
    }
}

fn respond(mut request: Request<Incoming>) -> Response<Empty<Bytes>> {
    if !websocket::is_asked_for(&request) {
        return refuse(StatusCode::BAD_REQUEST);
    }
    let accept = match websocket::accept(&request) {
        Ok(accept) => accept,
        Err(UpgradeRefusal::NoHandshake) => return refuse(StatusCode::BAD_REQUEST),
        Err(UpgradeRefusal::Version) => {
            return websocket::with_version(refuse(StatusCode::UPGRADE_REQUIRED));
        }
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let longest = Longest { received: MESSAGE_BYTES, sent: MESSAGE_BYTES };
            echo(websocket::socket(TokioIo::new(upgraded), longest).await).await;
        }
    });
    websocket::switch(accept)
}

fn refuse(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}

async fn echo(socket: WebSocketStream<TokioIo<Upgraded>>) {
    // As in the relay: one half is read, the other collects data and is flushed at the end.
    let (mut sink, mut stream) = socket.split();
    while let Some(next) = stream.next().await {
        let done = match next {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => sink.send(message).await,
            Ok(_) => sink.flush().await,
            Err(error) => {
                if let Some(code) = websocket::close_code(&error) {
                    let frame = CloseFrame { code, reason: "".into() };
                    let _ = sink.send(Message::Close(Some(frame))).await;
                }
                return;
            }
        };
        if done.is_err() {
            return;
        }
    }
}
