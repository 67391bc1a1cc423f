//! Accepts connections and has their requests answered, until a WebSocket has come of each or its
//! time is up.

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

/// How long an answer has to be taken when serving stops or the connection's time is up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long after it was accepted a connection is waited for whose request has not come when serving
/// stops: a restart answers whoever has just connected.
const NEWCOMER_TIMEOUT: Duration = Duration::from_secs(5);
/// What the system may hold of a connection that could not be sent yet. What waits beyond that waits
/// here, where it is counted, and nothing is read from the store for it.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 << 10;
/// How long to wait when the system has no connection to give (out of descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An extension of a response whose body goes on for as long as someone listens: the time that a
/// handshake may take does not end it.
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
    // Those of all sockets share the permits.
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
                // Said once: it is tried again and again until there is one to be had.
                if !std::mem::replace(&mut is_refused, true) {
                    tracing::warn!(%error, "no connection can be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves HTTP until a WebSocket has come of it, or for as long as a handshake may take.
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
        tracing::debug!(%error, "a connection cannot be set up as it should be");
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
        .serve_connection(TokioIo::new(stream), answer)
        .with_upgrades();
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = begun.notified() => {
            // No longer half open. Whoever sends the body ends it when serving stops.
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

/// Waits for `event`, until `deadline` at the latest.
async fn before(deadline: Instant, event: impl Future<Output = ()>) {
    let _ = tokio::time::timeout_at(deadline, event).await;
}

fn set_up(stream: &TcpStream) -> io::Result<()> {
    // Answers are small and awaited: never hold them back to fill a packet.
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)?;
    Ok(())
}
