//! Adds NIP-77 to an existing relay: the lines that do it are marked. The relay's events may be
//! stored in any way; a session needs only their times and ids.

use futures_util::{SinkExt, StreamExt};
use negsync::item::Item;
use negsync::reconcile::{Responder, SortedItems};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

const EVENTS: &str = include_str!("three-events.jsonl");

/// The existing loop.
async fn serve(
    stream: TcpStream,
    events: Arc<Vec<Value>>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    // NIP-77: the sessions of this connection.
    let mut sessions: HashMap<String, Responder<SortedItems>> = HashMap::new();
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text)?;
        let id = message[1].as_str().unwrap_or_default().to_owned();
        let answer = match message[0].as_str() {
            Some("REQ") => {
                for event in events.iter() {
                    socket.send(Message::text(json!(["EVENT", id, event]).to_string())).await?;
                }
                json!(["EOSE", id])
            }
            // NIP-77: a set, a responder over it, and an answer to each message.
            Some("NEG-OPEN") => {
                let set = SortedItems::new(events.iter().filter_map(item).collect());
                sessions.insert(id.clone(), Responder::new(set, 500_000)?);
                negentropy(&mut sessions, &id, &message[3])
            }
            Some("NEG-MSG") => negentropy(&mut sessions, &id, &message[2]),
            Some("NEG-CLOSE") => {
                sessions.remove(&id);
                continue;
            }
            _ => continue,
        };
        socket.send(Message::text(answer.to_string())).await?;
    }
    Ok(())
}

/// NIP-77: one message of a session.
fn negentropy(
    sessions: &mut HashMap<String, Responder<SortedItems>>,
    id: &str,
    message: &Value,
) -> Value {
    let bytes = faster_hex::hex_decode_vec(message.as_str().unwrap_or_default().as_bytes());
    match (sessions.get_mut(id), bytes) {
        (None, _) => json!(["NEG-ERR", id, "closed: no such session"]),
        (_, Err(_)) => json!(["NEG-ERR", id, "invalid: not hex"]),
        (Some(session), Ok(bytes)) => match session.answer(&bytes) {
            Ok(answer) => json!(["NEG-MSG", id, faster_hex::hex_string(&answer)]),
            Err(error) => json!(["NEG-ERR", id, format!("invalid: {error}")]),
        },
    }
}

fn item(event: &Value) -> Option<Item> {
    let mut id = [0; 32];
    faster_hex::hex_decode(event["id"].as_str()?.as_bytes(), &mut id).ok()?;
    Some(Item::new(event["created_at"].as_u64()?, id))
}

#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("ws://{}", listener.local_addr()?);
    tokio::spawn(async move {
        let events: Vec<Value> = EVENTS.lines().flat_map(serde_json::from_str).collect();
        let events = Arc::new(events);
        while let Ok((stream, _)) = listener.accept().await {
            let events = Arc::clone(&events);
            tokio::spawn(async move {
                if let Err(error) = serve(stream, events).await {
                    println!("a connection ended: {error}");
                }
            });
        }
    });
    println!("{url} reconciles");

    // A client without events reconciles with it and then requests the missing events.
    use negsync::index::Index;
    use negsync::sync::{Direction, Local, Options, sync};
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("client.sqlite");
    let index = Index::open(&path, Default::default(), 0)?;
    let options = Options::default().direction(Direction::Down);
    let report = sync(&Local::new(index)?, &url, &options, |_| {}).await?;
    println!("found {} in {} round trips", report.need, report.round_trips);
    assert!(report.equal && report.stored == 3);
    Ok(())
}
