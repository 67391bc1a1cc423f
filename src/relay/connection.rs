//! One client's WebSocket: its messages are handled in order, each verb in its own file.

use super::auth::{self, ClientAuth};
use super::client::Client;
use super::message_gate::{GateError, Socket};
use super::outbox::{Outgoing, outbox};
use super::read_ahead::ReadAhead;
use super::sending::{NEVER, Sending};
use super::subscriptions::Subscriptions;
use super::websocket;
use super::{RelayState, count, message, publish, req};
use crate::config::ConnectionsConfig;
use crate::metrics::Share;
use crate::prefix::Prefix;
use crate::server::departure::Attending;
use crate::server::limits::Place;
use crate::server::lingering_close::{LINGER_TIMEOUT, linger};
use crate::server::neg_sessions::NegSessions;
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use message::ClientMessage;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// Timeout for events in flight when the relay stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// A longer message is not inspected before its turn.
const CLOSE_BYTES: usize = 1_024;
/// Interval of the check for idle NEG sessions.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(1);

/// Serves a client until either side closes, or the relay stops and the client takes too long.
///
/// Rare work is boxed, and futures are not passed by value: a task reserves memory for everything
/// it may do as long as the connection lasts.
pub(super) fn serve(
    relay: Arc<RelayState>,
    socket: Socket,
    place: Arc<Place>,
    host: Option<&str>,
) -> impl Future<Output = ()> + Send + use<> {
    let stopping = relay.service.running.stopping.clone();
    let mut conversation = Box::pin(converse(relay, socket, place, host));
    async move {
        let has_stopped = async {
            stopping.cancelled().await;
            Box::pin(tokio::time::sleep(STOP_TIMEOUT + LINGER_TIMEOUT)).await;
        };
        tokio::select! {
            () = &mut conversation => {}
            () = has_stopped => tracing::warn!("a connection did not end in time"),
        }
    }
}

fn converse(
    relay: Arc<RelayState>,
    socket: Socket,
    place: Arc<Place>,
    host: Option<&str>,
) -> impl Future<Output = ()> + Send + use<> {
    let (mut sink, mut stream) = socket.split();
    relay.service.metrics.connections_total.inc();
    let mut open = Share::of(&relay.service.metrics.connections);
    open.set(1);
    let auth = ClientAuth::new(&relay.challenges, &relay.config().auth, &relay.private_kinds, host);
    let auth = Arc::new(auth);
    let registry = Arc::clone(&relay.subscriptions);
    let subscriptions =
        Subscriptions::new(registry, Arc::clone(&auth), place.subscribed(), &relay.service.metrics);
    let (outbox, waiting) = outbox(relay.service.outbound_room());
    let mut sending =
        Sending::new(waiting, Arc::clone(&subscriptions), Arc::clone(&relay), Arc::clone(&place));
    let mut sent = Box::pin(async move {
        sending.run(&mut sink).await;
        sink
    });
    let (publishing, mut in_flight) = publish::events_in_flight();
    let client = Box::new(Client {
        relay,
        auth,
        place,
        attending: Attending::default(),
        outbox,
        subscriptions,
        publishing,
        events_in_flight: Arc::new(Semaphore::new(publish::EVENTS_IN_FLIGHT)),
    });
    async move {
        let _open = open;
        let mut in_flight = pin!(in_flight.run());
        let left = tokio::select! {
            left = read(&client, &mut stream) => Some(left),
            // A client that does not accept data is not read either.
            _ = &mut sent => None,
            // Not before the client can no longer publish.
            () = &mut in_flight => return,
        };
        drop(client);
        // Boxed, so that the memory is used only at the end of the connection.
        Box::pin(async {
            let ending = async {
                let Some(left) = left else { return };
                let sink = match left {
                    // The connection's memory is not held for a client that does not read.
                    EndedBy::Late => match tokio::time::timeout(LINGER_TIMEOUT, sent).await {
                        Ok(sink) => sink,
                        Err(_) => return,
                    },
                    EndedBy::ByItself | EndedBy::Told => sent.await,
                };
                if left != EndedBy::ByItself
                    && let Ok(mut socket) = stream.reunite(sink)
                {
                    linger(socket.get_mut().stream_mut()).await;
                }
            };
            // Events that were received are stored, even if the client does not wait for the
            // answers.
            tokio::join!(in_flight, ending);
        })
        .await;
    }
}

/// The reason for the end of a conversation.
#[derive(PartialEq, Eq)]
enum EndedBy {
    /// The client has closed or is gone.
    ByItself,
    /// A close frame was sent, and the client may answer.
    Told,
    /// The same, but only while the client reads: it holds memory that others wait for.
    Late,
}

/// The next event of a connection.
enum Next {
    /// A message or an error from the client; `None` at the end of the stream.
    Heard(Option<Result<Message, Error>>),
    /// The interval of session checks, or the idle timeout.
    Time,
    Stop,
}

/// Handles messages until the client closes, violates the protocol, exceeds the idle timeout, or
/// the relay stops.
async fn read(client: &Client, stream: &mut SplitStream<Socket>) -> EndedBy {
    let stopping = &client.relay.service.running.stopping;
    // Does not wake the task: `serve` polls it in the same task.
    let is_stopping =
        || poll_fn(|_| if stopping.is_cancelled() { Poll::Ready(()) } else { Poll::Pending });
    let patience = silence(&client.relay.config().connections);
    let mut neg_sessions = {
        let service = Arc::clone(&client.relay.service);
        NegSessions::new(service, client.address(), client.attending.departure())
    };
    let mut messages = ReadAhead::new(stream);
    Box::pin(client.outbox.text(message::auth(client.auth.challenge()))).await;
    let mut heard = Instant::now();
    // Reset when it expires, not with each message.
    let mut timer = pin!(tokio::time::sleep_until(heard + patience));
    loop {
        let next = tokio::select! {
            biased;
            () = is_stopping() => Next::Stop,
            next = messages.next() => Next::Heard(next),
            () = &mut timer => Next::Time,
        };
        // The whole handling is boxed: an idle connection reserves no memory for it.
        let left = match next {
            Next::Heard(Some(Ok(_))) if is_banned(client) => {
                Some(Box::pin(refuse_banned(client)).await)
            }
            Next::Heard(Some(Ok(Message::Text(text)))) => {
                heard = Instant::now();
                let work = Box::pin(take(client, &mut neg_sessions, text));
                let see = |message: &Message| close_early(client, message);
                messages.during(&client.attending, see, work).await;
                None
            }
            Next::Heard(next) => {
                heard = Instant::now();
                Box::pin(take_other(client, next)).await
            }
            Next::Time if Instant::now() < heard + patience => {
                Box::pin(expire(client, &mut neg_sessions)).await;
                timer.as_mut().reset(heard + patience);
                None
            }
            Next::Time => Some(Box::pin(leave_silent(client)).await),
            Next::Stop => Some(Box::pin(stop(client)).await),
        };
        if let Some(left) = left {
            return left;
        }
        if !neg_sessions.is_empty() {
            let look = Instant::now() + SESSIONS_INTERVAL;
            if look < timer.deadline() {
                timer.as_mut().reset(look);
            }
        }
    }
}

/// Ends a subscription at once when a CLOSE is read ahead: its remaining stored events are not
/// sent. The CLOSE is handled again in its turn, because a REQ with the same id may precede it.
fn close_early(client: &Client, message: &Message) {
    if let Message::Text(text) = message
        && text.len() <= CLOSE_BYTES
        && let Ok(ClientMessage::Close(id)) = message::parse(text, &client.relay.config().limits)
    {
        req::close(client, &id);
    }
}

/// Whether the operator has banned the address since the connection began. For a silent client this
/// is checked when it answers a ping.
fn is_banned(client: &Client) -> bool {
    client.relay.admission.moderation().current().blocks(client.place.client())
}

async fn refuse_banned(client: &Client) -> EndedBy {
    client.outbox.text(message::notice(&Prefix::Blocked.before("your address is banned"))).await;
    client.outbox.send(Outgoing::Close(CloseCode::Policy, "banned")).await;
    EndedBy::Told
}

/// Handles a frame other than text. Returns whether it ends the connection.
async fn take_other(client: &Client, next: Option<Result<Message, Error>>) -> Option<EndedBy> {
    match next {
        Some(Ok(Message::Binary(_))) => {
            client.place.pace(&client.relay.config().rates).await;
            let text = Prefix::Invalid.before("binary messages are not part of the protocol");
            client.outbox.text(message::notice(&text)).await;
        }
        Some(Ok(Message::Ping(_))) => {
            client.place.pace(&client.relay.config().rates).await;
            // No further frame is read until the pong is queued: RFC 6455, section 5.5.2.
            client.outbox.send(Outgoing::Flush).await;
        }
        Some(Ok(_)) => client.place.pace(&client.relay.config().rates).await,
        Some(Err(error)) => return Some(refuse(client, &error).await),
        None => return Some(EndedBy::ByItself),
    }
    None
}

/// Ends idle NEG sessions.
async fn expire(client: &Client, neg_sessions: &mut NegSessions) {
    for text in neg_sessions.expire() {
        client.outbox.text(text).await;
    }
}

async fn leave_silent(client: &Client) -> EndedBy {
    let text = Prefix::Closed.before("nothing came for too long, not even answers to pings");
    client.outbox.text(message::notice(&text)).await;
    let close = Outgoing::Close(CloseCode::Policy, "no answer to pings");
    client.outbox.send(close).await;
    EndedBy::Told
}

/// Whether the store's files are those that another start would open.
fn is_in_place(client: &Client) -> Result<(), String> {
    let in_place = client.relay.index.store().check_in_place();
    in_place.map_err(|_| Prefix::Error.before("the store's file was moved, removed or replaced"))
}

async fn take(client: &Client, neg_sessions: &mut NegSessions, text: Utf8Bytes) {
    match client.relay.service.read(&client.place, text).await {
        Ok(ClientMessage::Event(json)) => publish::publish(client, json).await,
        Ok(ClientMessage::Auth(json)) => {
            let answer = auth::answer(&client.auth, &client.relay, &client.origin(), &json).await;
            client.outbox.text(answer).await;
        }
        Ok(ClientMessage::Req { id, filters }) => req::req(client, id, filters).await,
        Ok(ClientMessage::Close(id)) => req::close(client, &id),
        Ok(ClientMessage::Count { id, filters }) => count::count(client, id, filters).await,
        Ok(ClientMessage::NegOpen { id, filters, payload }) => {
            let viewer = client.auth.viewer();
            let may = client
                .relay
                .admission
                .may_sync(&viewer, &filters)
                .and_then(|()| Ok(is_in_place(client)?));
            let answer = neg_sessions.open(viewer, may, id, filters, payload).await;
            client.outbox.text(answer).await;
        }
        Ok(ClientMessage::NegMsg { id, payload }) => {
            let may = client.relay.admission.may_continue_sync(&client.auth.viewer());
            let answer = neg_sessions.message(may, id, payload).await;
            client.outbox.text(answer).await;
        }
        Ok(ClientMessage::NegClose(id)) => neg_sessions.close(&id),
        Err(refusal) => {
            neg_sessions.refused(&refusal);
            if let Some(id) = &refusal.subscription {
                req::close(client, id);
            }
            client.outbox.text(refusal.answer).await;
        }
    }
}

/// Maximum silence of a client that answers pings.
fn silence(config: &ConnectionsConfig) -> Duration {
    match config.ping_interval_s {
        0 => NEVER,
        seconds => Duration::from_secs(seconds.saturating_add(config.pong_timeout_s)),
    }
}

/// Answers a violation of the WebSocket protocol as far as possible, and ends the connection.
async fn refuse(client: &Client, error: &Error) -> EndedBy {
    if let Error::Io(error) = error
        && let Some(error) = error.get_ref().and_then(|it| it.downcast_ref::<GateError>())
    {
        return refuse_late(client, *error).await;
    }
    let Some(code) = websocket::close_code(error) else { return EndedBy::ByItself };
    let text = match error {
        Error::Capacity(_) => {
            let most = client.relay.config().limits.message_bytes;
            Prefix::Invalid.before(format_args!("a message of more than {most} bytes"))
        }
        Error::Utf8(_) => Prefix::Invalid.before("a message that is not UTF-8"),
        Error::Protocol(fault) => Prefix::Invalid.before(fault),
        other => Prefix::Invalid.before(other),
    };
    client.outbox.text(message::notice(&text)).await;
    client.outbox.send(Outgoing::Close(code, "")).await;
    EndedBy::Told
}

/// Ends the connection of a client whose message was not complete in time.
async fn refuse_late(client: &Client, error: GateError) -> EndedBy {
    let code = match error {
        GateError::Late(_) => CloseCode::Policy,
        GateError::NoRoom => CloseCode::Again,
    };
    let said = async {
        client.outbox.text(message::notice(&error.to_string())).await;
        client.outbox.send(Outgoing::Close(code, "message timeout")).await;
    };
    let _ = tokio::time::timeout(LINGER_TIMEOUT, said).await;
    EndedBy::Late
}

/// Waits for the outcomes of the events in flight, then closes.
async fn stop(client: &Client) -> EndedBy {
    let all = publish::EVENTS_IN_FLIGHT as u32;
    let settled = tokio::time::timeout(STOP_TIMEOUT, client.events_in_flight.acquire_many(all));
    if settled.await.is_err() {
        tracing::warn!("a connection closed before all its events were answered");
    }
    client.outbox.send(Outgoing::Close(CloseCode::Away, "the relay is stopping")).await;
    EndedBy::Told
}
