//! One client's WebSocket: its messages are taken in order, each verb in its own file.

use super::auth::{self, ClientAuth};
use super::client::Client;
use super::message_gate::{GateError, Socket};
use super::outbox::{Outgoing, outbox};
use super::read_ahead::ReadAhead;
use super::sending::{NEVER, Sending};
use super::subscriptions::Subscriptions;
use super::websocket;
use super::{RelayState, access, count, message, publish, req, stopped};
use crate::config::ConnectionsConfig;
use crate::metrics::Share;
use crate::server::departure::Attending;
use crate::server::limits::Place;
use crate::server::lingering_close::{LINGER_TIMEOUT, linger};
use crate::server::neg_sessions::NegSessions;
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use message::ClientMessage;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

/// How long the events in flight have to be stored when the relay stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves a client until either side ends it, or the relay stops and it takes too long.
pub(super) async fn serve(
    relay: Arc<RelayState>,
    socket: Socket,
    place: Arc<Place>,
    host: Option<&str>,
) {
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

async fn converse(relay: Arc<RelayState>, socket: Socket, place: Arc<Place>, host: Option<&str>) {
    let (sink, mut stream) = socket.split();
    relay.service.metrics.connections_total.inc();
    let mut open = Share::of(&relay.service.metrics.connections);
    open.set(1);
    let auth = ClientAuth::new(&relay.challenges, &relay.config().auth, &relay.private_kinds, host);
    let auth = Arc::new(auth);
    let registry = Arc::clone(&relay.subscriptions);
    let subscriptions = Subscriptions::new(registry, Arc::clone(&auth), &relay.service.metrics);
    let (outbox, waiting) = outbox(relay.service.outbound_room());
    let sending = Sending::new(waiting, Arc::clone(&subscriptions), &relay, place.address());
    let mut sender = tokio::spawn(sending.run(sink));
    let (publishing, in_flight) = publish::events_in_flight();
    let mut in_flight = pin!(in_flight.run());
    let client = Client {
        relay,
        auth,
        place,
        attending: Attending::default(),
        outbox,
        subscriptions,
        publishing,
        events_in_flight: Arc::new(Semaphore::new(publish::EVENTS_IN_FLIGHT)),
    };
    let left = tokio::select! {
        left = read(&client, &mut stream) => Some(left),
        // A client that cannot be sent to is not read either.
        _ = &mut sender => None,
        // Not before the client can publish no more.
        () = &mut in_flight => return,
    };
    drop(client);
    // Boxed: while the connection lasts it has no room for how it ends.
    let ending = Box::pin(async {
        let Some(left) = left else { return };
        let sink = match left {
            // What it holds is not kept for a client that takes nothing either.
            EndedBy::Late => match tokio::time::timeout(LINGER_TIMEOUT, &mut sender).await {
                Ok(sink) => sink,
                Err(_) => return sender.abort(),
            },
            EndedBy::ByItself | EndedBy::Told => sender.await,
        };
        if let Ok(sink) = sink
            && left != EndedBy::ByItself
            && let Ok(mut socket) = stream.reunite(sink)
        {
            linger(socket.get_mut().stream_mut()).await;
        }
    });
    // What it has sent is stored, also when it does not wait for the answers.
    tokio::join!(in_flight, ending);
}

/// Who has ended a conversation.
#[derive(PartialEq, Eq)]
enum EndedBy {
    /// The client, which has closed or is gone.
    ByItself,
    /// We have told it to close, and it may answer.
    Told,
    /// As before, as far as it takes anything: it keeps memory that others wait for.
    Late,
}

/// Takes messages until the client closes, breaks the protocol, is silent for too long or the
/// relay stops.
async fn read(client: &Client, stream: &mut SplitStream<Socket>) -> EndedBy {
    let mut stopping = client.relay.service.running.stopping.clone();
    let config = client.relay.config();
    let patience = silence(&config.connections);
    let mut neg_sessions = {
        let service = Arc::clone(&client.relay.service);
        NegSessions::new(service, client.address(), client.attending.departure())
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
                return EndedBy::Told;
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
                return EndedBy::Told;
            }
        };
        heard = Instant::now();
        if is_banned(client) {
            return refuse_banned(client).await;
        }
        match next {
            Some(Ok(Message::Text(text))) => {
                // Boxed: an idle connection has no room for what its messages take.
                let work = Box::pin(take(client, &mut neg_sessions, text));
                messages.during(&client.attending, work).await;
            }
            Some(Ok(Message::Binary(_))) => {
                client.place.pace(&client.relay.config().rates).await;
                let text = "invalid: binary messages are not part of the protocol";
                client.outbox.text(message::notice(text)).await;
            }
            Some(Ok(Message::Ping(_))) => {
                client.place.pace(&client.relay.config().rates).await;
                // Nothing more is read until the pong has its turn: RFC 6455, section 5.5.2.
                client.outbox.send(Outgoing::Flush).await;
            }
            Some(Ok(_)) => client.place.pace(&client.relay.config().rates).await,
            Some(Err(error)) => return refuse(client, &error).await,
            None => return EndedBy::ByItself,
        }
    }
}

/// Whether the operator has banned the address since the connection began. One that says nothing is
/// found by its answer to a ping.
fn is_banned(client: &Client) -> bool {
    client.relay.admission.moderation().current().blocks(client.place.client())
}

async fn refuse_banned(client: &Client) -> EndedBy {
    client.outbox.text(message::notice("blocked: your address is banned")).await;
    client.outbox.send(Outgoing::Close(CloseCode::Policy, "banned")).await;
    EndedBy::Told
}

/// Whether the sets are of the store that another start would find.
fn is_in_place(client: &Client) -> Result<(), &'static str> {
    let in_place = client.relay.index.store().check_in_place();
    in_place.map_err(|_| "error: the store's file was moved, removed or replaced")
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
            let may = access::may_sync(&client.relay.config().auth, &viewer, &filters)
                .and_then(|()| is_in_place(client));
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
            if let Some(id) = &refusal.subscription {
                req::close(client, id);
            }
            client.outbox.text(refusal.answer).await;
        }
    }
}

/// How long a client that answers pings can be silent at the most.
fn silence(config: &ConnectionsConfig) -> Duration {
    match config.ping_interval_s {
        0 => NEVER,
        seconds => Duration::from_secs(seconds.saturating_add(config.pong_timeout_s)),
    }
}

/// What cannot be read as WebSocket messages is answered as far as the protocol lets us, and ends
/// the connection.
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
            format!("invalid: a message of more than {most} bytes")
        }
        Error::Utf8(_) => "invalid: a message that is not UTF-8".to_owned(),
        Error::Protocol(fault) => format!("invalid: {fault}"),
        other => format!("invalid: {other}"),
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

/// Waits for the outcomes of the events in flight, then says goodbye.
async fn stop(client: &Client) {
    let all = publish::EVENTS_IN_FLIGHT as u32;
    let settled = tokio::time::timeout(STOP_TIMEOUT, client.events_in_flight.acquire_many(all));
    if settled.await.is_err() {
        tracing::warn!("a connection closed before all its events were answered");
    }
    client.outbox.send(Outgoing::Close(CloseCode::Away, "the relay is stopping")).await;
}
