//! The initiator of the `negentropy` crate over the raw client.

use super::client::Client;
use super::events::id_of;
use super::model::{self, created_at};
use negentropy::{Id, Negentropy, NegentropyStorageVector};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// `NEG-OPEN`'s payload of an empty set: "everything, and I hold nothing".
pub const EMPTY_SET: &str = "6100000200";

/// Ids that only we have, and ids that only the relay has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub have: BTreeSet<String>,
    pub need: BTreeSet<String>,
}

/// One session, driven a message at a time.
pub struct Session {
    id: String,
    engine: Negentropy<'static, NegentropyStorageVector>,
    have: Vec<Id>,
    need: Vec<Id>,
    next: Option<Vec<u8>>,
}

impl Session {
    /// Sends NEG-OPEN and takes its answer.
    ///
    /// # Errors
    /// The relay's NEG-ERR.
    pub async fn open<'events>(
        client: &mut Client,
        id: &str,
        filter: &Value,
        local: impl IntoIterator<Item = &'events Value>,
        frame_limit_bytes: u64,
    ) -> Result<Self, Value> {
        let mut engine = Negentropy::owned(storage(local), frame_limit_bytes).unwrap();
        let opening = faster_hex::hex_string(&engine.initiate().unwrap());
        let id = id.to_owned();
        let mut session = Self { id, engine, have: Vec::new(), need: Vec::new(), next: None };
        let answer = client.ask(&json!(["NEG-OPEN", session.id, filter, opening])).await;
        session.take(answer)?;
        Ok(session)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn is_done(&self) -> bool {
        self.next.is_none()
    }

    /// Continues to the end, then closes the session.
    ///
    /// # Errors
    /// The relay's NEG-ERR.
    pub async fn finish(mut self, client: &mut Client) -> Result<Difference, Value> {
        while let Some(next) = self.next.take() {
            let answer =
                client.ask(&json!(["NEG-MSG", self.id, faster_hex::hex_string(&next)])).await;
            self.take(answer)?;
        }
        client.send(&json!(["NEG-CLOSE", self.id])).await;
        // If a frame of ours was cut, the crate finds some ids again: compare sets, not lists.
        let hex = |ids: &[Id]| -> BTreeSet<String> {
            ids.iter().map(|id| faster_hex::hex_string(id.as_bytes())).collect()
        };
        Ok(Difference { have: hex(&self.have), need: hex(&self.need) })
    }

    fn take(&mut self, answer: Value) -> Result<(), Value> {
        if answer[0] == "NEG-ERR" {
            return Err(answer);
        }
        let message = neg_msg(&answer, &self.id);
        self.next = self
            .engine
            .reconcile_with_ids(&message, &mut self.have, &mut self.need)
            .unwrap_or_else(|error| panic!("{error} in {answer}"));
        Ok(())
    }
}

/// Reconciles `local` with the relay's set for the filter.
///
/// # Errors
/// The relay's NEG-ERR.
pub async fn reconcile<'events>(
    client: &mut Client,
    filter: &Value,
    local: impl IntoIterator<Item = &'events Value>,
    frame_limit_bytes: u64,
) -> Result<Difference, Value> {
    Session::open(client, "sync", filter, local, frame_limit_bytes).await?.finish(client).await
}

/// The relay's ids for the filter.
pub async fn neg_ids(client: &mut Client, filter: &Value) -> BTreeSet<String> {
    let difference = reconcile(client, filter, [], 0).await.unwrap();
    assert!(difference.have.is_empty());
    difference.need
}

/// Checks by NEG, REQ and COUNT that exactly these events are stored.
pub async fn expect_all(client: &mut Client, stored: &[&Value]) {
    let expected = model::ids(stored.iter().copied());
    assert_eq!(neg_ids(client, &json!({})).await, expected);
    assert_eq!(model::ids(&client.query(&[json!({})]).await), expected);
    assert_eq!(client.count(&[json!({})]).await, expected.len() as u64);
}

/// The bytes of a NEG-MSG, which must have exactly three elements and lower-case hex.
pub fn neg_msg(message: &Value, id: &str) -> Vec<u8> {
    let elements = message.as_array().unwrap();
    assert_eq!((elements.len(), &message[0], &message[1]), (3, &json!("NEG-MSG"), &json!(id)));
    let hex = message[2].as_str().unwrap();
    assert_eq!(hex, hex.to_ascii_lowercase());
    faster_hex::hex_decode_vec(hex.as_bytes()).unwrap()
}

pub fn storage<'events>(
    events: impl IntoIterator<Item = &'events Value>,
) -> NegentropyStorageVector {
    let mut storage = NegentropyStorageVector::new();
    for event in events {
        let mut id = [0; 32];
        faster_hex::hex_decode(id_of(event).as_bytes(), &mut id).unwrap();
        storage.insert(created_at(event), Id::from_byte_array(id)).unwrap();
    }
    storage.seal().unwrap();
    storage
}
