//! One client's WebSocket: its messages are taken in order, each verb in its own file.

use super::auth::{self, Auth};
use super::client::Client;
use super::outbox::{Outgoing, outbox};
use super::read_ahead::ReadAhead;
use super::sending::{NEVER, Sending};
use super::subscriptions::Subscriptions;
use super::websocket::{self, Socket};
use super::{Shared, count, message, permission, publish, req, stopped};
use crate::clients::limits::Place;
use crate::clients::linger::{LINGER_TIMEOUT, linger};
use crate::clients::neg_sessions::NegSessions;
use crate::clients::presence::Present;
use crate::config::ConnectionsConfig;
use crate::metrics::Share;
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use message::ClientMessage;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// How long the events in flight have to be stored when the relay stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a client until either side ends it, or the relay stops and it takes too long.
pub(super) async fn serve(relay: Arc<Shared>, socket: Socket, place: Place, host: Option<&str>) {
    let mut stopping = relay.service.running.stopping.clone();
    let has_stopped = async {
        stopped(&mut stopping).await;
        tokio::time::sleep(STOP_TIMEOUT + LINGER_TIMEOUT).await;
    };
    tokio::select! {
        () = converse(relay, socket, place, host) => {}
        () = has_stopped => tracing::warn!("a connection did not end in time"),
    }
}

async fn converse(relay: Arc<Shared>, socket: Socket, place: Place, host: Option<&str>) {
    let (sink, mut stream) = socket.split();
    relay.service.metrics.connections_total.inc();
    let mut open = Share::of(&relay.service.metrics.connections);
    open.set(1);
    let auth = Auth::new(&relay.challenges, &relay.config().auth, &relay.private_kinds, host);
    let auth = Arc::new(auth);
    let registry = Arc::clone(&relay.subscriptions);
    let subscriptions = Subscriptions::new(registry, Arc::clone(&auth), &relay.service.metrics);
    let (outbox, waiting) = outbox(relay.config().connections.outbound_bytes.size());
    let sending = Sending::new(waiting, Arc::clone(&subscriptions), &relay, place.address());
    let mut sender = tokio::spawn(sending.run(sink));
    let client = Client {
        relay,
        auth,
        place,
        present: Present::default(),
        outbox,
        subscriptions,
        events_in_flight: Arc::new(Semaphore::new(publish::EVENTS_IN_FLIGHT)),
    };
    let left = tokio::select! {
        left = read(&client, &mut stream) => left,
        // A client that cannot be sent to is not read either.
        _ = &mut sender => return,
    };
    let _place = client.into_place();
    if let Ok(sink) = sender.await
        && left == Left::Told
        && let Ok(mut socket) = stream.reunite(sink)
    {
        linger(socket.get_mut()).await;
    }
}

/// Who has ended a conversation.
#[derive(PartialEq, Eq)]
enum Left {
    /// The client, which has closed or is gone.
    ByItself,
    /// We have told it to close, and it may answer.
    Told,
}

/// Takes messages until the client closes, breaks the protocol, is silent for too long or the
/// relay stops.
async fn read(client: &Client, stream: &mut SplitStream<Socket>) -> Left {
    let mut stopping = client.relay.service.running.stopping.clone();
    let config = client.relay.config();
    let patience = silence(&config.connections);
    let mut neg_sessions = {
        let service = Arc::clone(&client.relay.service);
        NegSessions::new(service, client.address(), client.present.presence())
    };
    let mut messages = ReadAhead::new(stream);
    client.outbox.text(message::auth(client.auth.challenge())).await;
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let next = tokio::select! {
            next = messages.next() => next,
            () = stopped(&mut stopping) => {
                stop(client).await;
                return Left::Told;
            }
            _ = seconds.tick(), if !neg_sessions.is_empty() => {
                for text in neg_sessions.expire() {
                    client.outbox.text(text).await;
                }
                continue;
            }
            () = tokio::time::sleep_until(heard + patience) => {
                let text = "closed: nothing came for too long, not even answers to pings";
                client.outbox.text(message::notice(text)).await;
                let close = Outgoing::Close(CloseCode::Policy, "no answer to pings");
                client.outbox.send(close).await;
                return Left::Told;
            }
        };
        heard = Instant::now();
        match next {
            Some(Ok(Message::Text(text))) => {
                let work = take(client, &mut neg_sessions, text);
                messages.during(&client.present, work).await;
            }
            Some(Ok(Message::Binary(_))) => {
                let text = "invalid: binary messages are not part of the protocol";
                client.outbox.text(message::notice(text)).await;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return refuse(client, &error).await,
            None => return Left::ByItself,
        }
    }
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
            let may = permission::may_sync(&client.relay.config().auth, &viewer, &filters);
            let answer = neg_sessions.open(viewer, may, id, filters, payload).await;
            client.outbox.text(answer).await;
        }
        Ok(ClientMessage::NegMsg { id, payload }) => {
            let answer = neg_sessions.message(id, payload).await;
            client.outbox.text(answer).await;
        }
        Ok(ClientMessage::NegClose(id)) => neg_sessions.close(&id),
        Err(refusal) => {
            neg_sessions.refused(&refusal);
            client.outbox.text(refusal.answer).await;
        }
    }
}

/// How long a client that answers pings can be silent at the most.
fn silence(config: &ConnectionsConfig) -> Duration {
    match config.ping_interval_s.get() {
        0 => NEVER,
        seconds => Duration::from_secs(seconds.saturating_add(config.pong_timeout_s.get())),
    }
}

/// What cannot be read as WebSocket messages is answered as far as the protocol lets us, and ends
/// the connection.
async fn refuse(client: &Client, error: &Error) -> Left {
    let Some(code) = websocket::close_code(error) else { return Left::ByItself };
    let text = match error {
        Error::Capacity(_) => {
            let most = client.relay.config().limits.message_bytes.get();
            format!("invalid: a message of more than {most} bytes")
        }
        Error::Utf8(_) => "invalid: a message that is not UTF-8".to_owned(),
        Error::Protocol(fault) => format!("invalid: {fault}"),
        other => format!("invalid: {other}"),
    };
    client.outbox.text(message::notice(&text)).await;
    client.outbox.send(Outgoing::Close(code, "")).await;
    Left::Told
}

/// Waits for the outcomes of the events in flight, then says goodbye.
async fn stop(client: &Client) {
    let all = publish::EVENTS_IN_FLIGHT as u32;
    let settled = tokio::time::timeout(STOP_TIMEOUT, client.events_in_flight.acquire_many(all));
    if settled.await.is_err() {
        tracing::warn!("a connection closed before all its events were answered");
    }
    client.outbox.send(Outgoing::Close(CloseCode::Away, "the relay is stopping")).await;
}
