//! A relay over PostgreSQL that consists of its table: it stores by the statements of nostream or
//! nostr-rs-relay and answers with the shown events. It does not support NIP-77.

use crate::support::events::unix_now;
use crate::support::model;
use futures_util::{SinkExt, StreamExt};
use negsync::store::RelayKind;
use negsync_testserver::{RelayTables, query, run};
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::{Client as Database, NoTls, SimpleQueryMessage};
use tokio_tungstenite::tungstenite::Message;

/// The relay; its tasks end with the test's runtime.
pub struct StoredRelay {
    pub tables: RelayTables,
    pub database_url: String,
    pub address: SocketAddr,
}

impl StoredRelay {
    /// Creates the tables in an empty database, and serves.
    pub async fn start(tables: RelayTables, database_url: String) -> Self {
        let url = database_url.clone();
        tokio::task::spawn_blocking(move || run(&url, tables.schema()).unwrap()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = database_url.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, tables, url.clone()));
            }
        });
        Self { tables, database_url, address }
    }

    /// A running nostream, if `NEGSYNC_NOSTREAM` names its address and `NEGSYNC_NOSTREAM_DATABASE`
    /// its database.
    pub fn real_nostream() -> Option<Self> {
        let address = std::env::var("NEGSYNC_NOSTREAM").ok()?.parse().unwrap();
        let database_url = std::env::var("NEGSYNC_NOSTREAM_DATABASE").unwrap();
        Some(Self { tables: RelayTables::Nostream, database_url, address })
    }

    pub fn kind(&self) -> RelayKind {
        match self.tables {
            RelayTables::Nostream => RelayKind::Nostream,
            RelayTables::NostrRsRelay => RelayKind::NostrRsRelay,
        }
    }

    /// Runs statements in the relay's database, like a manual change.
    pub fn run(&self, statements: &str) {
        tokio::task::block_in_place(|| {
            run(&self.database_url, statements)
                .unwrap_or_else(|error| panic!("{error:?}: {statements}"));
        });
    }

    /// All events that the relay shows at the second `now`.
    pub fn visible(&self, now: u64) -> Vec<Value> {
        let rows = tokio::task::block_in_place(|| {
            query(&self.database_url, &self.tables.shown(now)).unwrap()
        });
        let json = rows.iter().map(|row| row[0].as_deref().unwrap());
        json.map(|json| serde_json::from_str(json).unwrap()).collect()
    }
}

/// Serves one client, with its own connection to the database.
async fn serve(socket: TcpStream, tables: RelayTables, database_url: String) {
    let (database, connection) = tokio_postgres::connect(&database_url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut socket = tokio_tungstenite::accept_async(socket).await.unwrap();
    // NIP-42, like nostream.
    let _ = socket.send(Message::text(json!(["AUTH", "a challenge"]).to_string())).await;
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        for answer in answers(tables, &database, &message).await {
            // Fails if the client has disconnected.
            let _ = socket.send(Message::text(answer.to_string())).await;
        }
    }
}

async fn answers(tables: RelayTables, database: &Database, message: &Value) -> Vec<Value> {
    match message[0].as_str() {
        Some("EVENT") => {
            let event = &message[1];
            for transaction in tables.publish(event) {
                let transaction = format!("BEGIN; {transaction}; COMMIT");
                database.batch_execute(&transaction).await.unwrap();
            }
            vec![json!(["OK", event["id"], true, ""])]
        }
        Some("REQ") => {
            let filters = message.as_array().unwrap().get(2..).unwrap();
            let rows = database.simple_query(&tables.shown(unix_now())).await.unwrap();
            let events: Vec<Value> = rows
                .iter()
                .filter_map(|row| match row {
                    SimpleQueryMessage::Row(row) => row.get(0),
                    _ => None,
                })
                .map(|json| serde_json::from_str(json).unwrap())
                .collect();
            let found = model::answer(filters, &events);
            let events = found.into_iter().map(|event| json!(["EVENT", message[1], event]));
            events.chain([json!(["EOSE", message[1]])]).collect()
        }
        Some("CLOSE") => Vec::new(),
        _ => vec![json!(["NOTICE", format!("unknown: {message}")])],
    }
}
