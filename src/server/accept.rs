//! Accepts connections and serves their HTTP requests, until each becomes a WebSocket or its time
//! is up.

use super::Service;
use super::limits::{HalfOpen, Handshake};
use super::shutdown::Stop;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Maximum length of the head of a request. A longer one is answered with 431.
const HEAD_BYTES: usize = 64 << 10;
/// Time for sending a response when serving stops or the connection's time is up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// When serving stops: time since its acceptance for a connection to send its request. A restart
/// still answers clients that have just connected.
const NEWCOMER_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of unsent bytes in the system's buffer of a connection. Further bytes wait in
/// this process, where they are counted, and nothing is read from the store for them.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 << 10;
/// Pause when the system cannot accept connections (for example out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Marks a response whose body continues as long as the client listens: the handshake timeout does
/// not apply to it.
#[derive(Clone, Copy)]
pub(crate) struct Streaming;

/// Accepts on every socket until serving stops. `respond` answers a request from an address.
pub(crate) fn accept<R, F, B>(
    stop: &mut Stop,
    sockets: Vec<TcpListener>,
    service: &Arc<Service>,
    respond: R,
) where
    R: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    // The connections of all sockets share the permits.
    let half_open = Arc::new(HalfOpen::default());
    for listener in sockets {
        let (half_open, service) = (Arc::clone(&half_open), Arc::clone(service));
        stop.accepts(accept_on(listener, half_open, service, respond.clone()));
    }
}

async fn accept_on<R, F, B>(
    listener: TcpListener,
    half_open: Arc<HalfOpen>,
    service: Arc<Service>,
    respond: R,
) where
    R: Fn(Request<Incoming>, IpAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let stopping = service.running.stopping.clone();
    let mut is_refused = false;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                is_refused = false;
                let most = service.config().connections.half_open;
                let handshake = half_open.enter(most);
                let respond = respond.clone();
                tokio::spawn(serve(stream, peer.ip(), handshake, Arc::clone(&service), respond));
            }
            Err(error) => {
                // Logged once; retried until it succeeds.
                if !std::mem::replace(&mut is_refused, true) {
                    tracing::warn!(%error, "no connection can be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves HTTP until the connection becomes a WebSocket, or until the handshake timeout.
async fn serve<R, F, B>(
    stream: TcpStream,
    peer: IpAddr,
    mut handshake: Handshake,
    service: Arc<Service>,
    respond: R,
) where
    R: Fn(Request<Incoming>, IpAddr) -> F,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    if let Err(error) = set_up(&stream) {
        tracing::debug!(%error, "socket options not set");
    }
    let stopping = service.running.stopping.clone();
    let patience = Duration::from_secs(service.config().connections.handshake_timeout_s);
    let newcomer = Instant::now() + patience.min(NEWCOMER_TIMEOUT);
    let (asked, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (ask, begin) = (Arc::clone(&asked), Arc::clone(&begun));
    let answer = service_fn(move |request| {
        ask.notify_one();
        let (response, begin) = (respond(request, peer), Arc::clone(&begin));
        async move {
            let response = response.await;
            if response.extensions().get::<Streaming>().is_some() {
                begin.notify_one();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = begun.notified() => {
            // No longer half-open. The sender of the body ends it when serving stops.
            drop(handshake);
            served.await
        }
        () = handshake.pushed_out() => return,
        _ = tokio::time::timeout(patience, stopping.cancelled()) => {
            tokio::select! {
                ended = served.as_mut() => ended,
                () = before(newcomer, asked.notified()) => {
                    served.as_mut().graceful_shutdown();
                    tokio::time::timeout(CLOSE_TIMEOUT, served).await.unwrap_or(Ok(()))
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended before its request was answered");
    }
}

/// Waits for `event`, but not longer than `deadline`.
async fn before(deadline: Instant, event: impl Future<Output = ()>) {
    let _ = tokio::time::timeout_at(deadline, event).await;
}

fn set_up(stream: &TcpStream) -> io::Result<()> {
    // Answers are small and the client waits for them: never delay them to fill a packet.
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}
