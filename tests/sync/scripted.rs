//! A relay that follows a script: its support of NIP-77, the length of its answers, and its
//! hang-ups. It checks nothing, so that it can have events that no relay should.

use futures_util::{SinkExt, StreamExt};
use negsync::item::Item;
use negsync::reconcile::{Responder, SortedItems};
use negsync::store::{Event, Filter};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// The answer to a NEG-OPEN of a relay that does not support it, or not correctly.
#[derive(Clone, Copy, Debug)]
pub enum Unknown {
    Notice,
    Closed,
    NegErr,
    Silence,
    /// For sets of any size.
    TooLarge,
    /// Always a different fingerprint.
    Fingerprint,
}

/// Whether a connection ends instead of sending an event: gets the index of the connection, the
/// index of the event on it, and the event's id.
pub type Cuts = Arc<dyn Fn(usize, usize, &[u8; 32]) -> bool + Send + Sync>;

/// The result of COUNT, given the number of matching events.
pub type Counts = Arc<dyn Fn(usize) -> Value + Send + Sync>;

/// The behaviour of the relay.
#[derive(Clone)]
pub struct Script {
    /// `None`: a relay with NIP-77.
    pub without_negentropy: Option<Unknown>,
    pub frame_limit_bytes: usize,
    /// Maximum number of events returned for any REQ.
    pub events_per_req: usize,
    /// The connection is cut after each multiple of this number of messages.
    pub cut_every: Option<usize>,
    pub cuts: Option<Cuts>,
    /// An EVENT is answered with OK true but not kept.
    pub forgets: bool,
    /// The refusal of a REQ by ids.
    pub refuses_ids: Option<String>,
    /// The number of times that each event of a REQ is sent.
    pub repeats: usize,
    /// Sent with every REQ.
    pub unasked: Option<String>,
    /// NIP-42: everything is refused without authentication by this public key.
    pub only_for: Option<String>,
    /// NIP-45, which the NIP-11 document then lists.
    pub counts: Option<Counts>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            without_negentropy: None,
            frame_limit_bytes: 0,
            events_per_req: usize::MAX,
            cut_every: None,
            cuts: None,
            forgets: false,
            refuses_ids: None,
            repeats: 1,
            unasked: None,
            only_for: None,
            counts: None,
        }
    }
}

pub struct Scripted {
    pub address: SocketAddr,
    counted: Arc<AtomicUsize>,
    events: Arc<Mutex<BTreeMap<Item, String>>>,
}

struct Shared {
    script: Script,
    events: Arc<Mutex<BTreeMap<Item, String>>>,
    sent: AtomicUsize,
    connections: AtomicUsize,
    counted: Arc<AtomicUsize>,
}

impl Scripted {
    pub async fn start(events: &[String], script: Script) -> Self {
        let held: BTreeMap<Item, String> =
            events.iter().map(|json| (item(json), json.clone())).collect();
        let events = Arc::new(Mutex::new(held));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sent, connections) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let counted = Arc::new(AtomicUsize::new(0));
        let shared = Arc::new(Shared {
            script,
            events: Arc::clone(&events),
            sent,
            connections,
            counted: Arc::clone(&counted),
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let Ok(stream) = tell_document(&shared, stream).await else { return };
                    // A request for the NIP-11 document is not an upgrade: it ends here.
                    if let Ok(socket) = tokio_tungstenite::accept_async(stream).await {
                        serve(&shared, socket).await;
                    }
                });
            }
        });
        Self { address, counted, events }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Adds an event.
    pub fn add(&self, json: &str) {
        self.events.lock().unwrap().insert(item(json), json.to_owned());
    }

    /// The number of COUNT requests.
    pub fn counted(&self) -> usize {
        self.counted.load(Ordering::Relaxed)
    }

    pub fn ids(&self) -> BTreeSet<[u8; 32]> {
        self.events.lock().unwrap().keys().map(|item| item.id).collect()
    }
}

/// The item of an event, which may be invalid otherwise.
pub fn item(json: &str) -> Item {
    let event: Value = serde_json::from_str(json).unwrap();
    let mut id = [0; 32];
    faster_hex::hex_decode(event["id"].as_str().unwrap().as_bytes(), &mut id).unwrap();
    Item::new(event["created_at"].as_u64().unwrap(), id)
}

/// Answers a request for the NIP-11 document, if there is one; otherwise leaves the stream
/// unchanged.
async fn tell_document(shared: &Shared, mut stream: TcpStream) -> std::io::Result<TcpStream> {
    let mut head = [0; 2_048];
    let length = stream.peek(&mut head).await?;
    let asks = String::from_utf8_lossy(&head[..length]).contains("application/nostr+json");
    if shared.script.counts.is_some() && asks {
        let document = json!({ "supported_nips": [1, 11, 45] }).to_string();
        let length = document.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{document}");
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        return Err(std::io::ErrorKind::ConnectionAborted.into());
    }
    Ok(stream)
}

/// Serves until the client disconnects or the script ends it; the socket is then dropped.
async fn serve(shared: &Shared, mut socket: WebSocketStream<TcpStream>) {
    let mut sessions: HashMap<String, Responder<SortedItems>> = HashMap::new();
    let mut is_known = shared.script.only_for.is_none();
    let connection = shared.connections.fetch_add(1, Ordering::Relaxed);
    let mut brought = 0;
    if !is_known && socket.send(Message::text(r#"["AUTH","riddle"]"#)).await.is_err() {
        return;
    }
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        let answers = if message[0] == "AUTH" {
            is_known = shared.proves(&message[1]);
            vec![json!(["OK", message[1]["id"], is_known, ""]).to_string()]
        } else if is_known {
            shared.answer(&message, &mut sessions)
        } else {
            vec![auth_required(&message)]
        };
        for answer in answers {
            let sent = shared.sent.fetch_add(1, Ordering::Relaxed) + 1;
            if shared.cuts(connection, brought, &answer) {
                // Earlier messages still arrive.
                let _ = socket.get_mut().shutdown().await;
                while let Some(Ok(_)) = socket.next().await {}
                return;
            }
            brought += usize::from(answer.starts_with(r#"["EVENT""#));
            if shared.script.cut_every.is_some_and(|every| sent.is_multiple_of(every)) {
                return;
            }
            if socket.send(Message::text(answer)).await.is_err() {
                return;
            }
        }
    }
}

/// The refusal of each verb without authentication.
fn auth_required(message: &Value) -> String {
    let text = "auth-required: who are you?";
    match message[0].as_str().unwrap() {
        "NEG-OPEN" | "NEG-MSG" => json!(["NEG-ERR", message[1], text]),
        "EVENT" => json!(["OK", message[1]["id"], false, text]),
        _ => json!(["CLOSED", message[1], text]),
    }
    .to_string()
}

impl Shared {
    /// NIP-42: whether the event is signed by the required key.
    fn proves(&self, event: &Value) -> bool {
        let has = |name: &str, value: &str| {
            event["tags"].as_array().unwrap().iter().any(|tag| {
                tag[0] == name && tag[1].as_str().is_some_and(|text| text.starts_with(value))
            })
        };
        let verified = Event::parse(&event.to_string()).unwrap().verify().is_ok();
        let right = self.script.only_for.as_deref() == event["pubkey"].as_str();
        verified
            && right
            && event["kind"] == 22_242
            && has("challenge", "riddle")
            && has("relay", "ws://")
    }

    fn answer(
        &self,
        message: &Value,
        sessions: &mut HashMap<String, Responder<SortedItems>>,
    ) -> Vec<String> {
        let id = message[1].as_str().unwrap_or_default().to_owned();
        match message[0].as_str().unwrap() {
            "EVENT" => {
                let json = message[1].to_string();
                if !self.script.forgets {
                    self.events.lock().unwrap().insert(item(&json), json);
                }
                vec![json!(["OK", message[1]["id"], true, ""]).to_string()]
            }
            "REQ" => match &self.script.refuses_ids {
                Some(text) if message[2]["ids"].is_array() => {
                    vec![json!(["CLOSED", id, text]).to_string()]
                }
                _ => self.stored(&id, &message[2]),
            },
            "COUNT" => match &self.script.counts {
                Some(counts) => {
                    self.counted.fetch_add(1, Ordering::Relaxed);
                    let told = counts(self.matching(&message[2]).len());
                    vec![json!(["COUNT", id, told]).to_string()]
                }
                None => vec![],
            },
            "NEG-OPEN" => match self.script.without_negentropy {
                Some(Unknown::Notice) => {
                    vec![json!(["NOTICE", "bad msg: unknown cmd"]).to_string()]
                }
                Some(Unknown::Closed) => vec![json!(["CLOSED", id, "error: what?"]).to_string()],
                Some(Unknown::NegErr) => vec![json!(["NEG-ERR", id, "disabled"]).to_string()],
                Some(Unknown::Silence) => vec![],
                Some(Unknown::TooLarge) => {
                    let text = "blocked: too many query results";
                    vec![json!(["NEG-ERR", id, text, 1]).to_string()]
                }
                Some(Unknown::Fingerprint) => self.fingerprint(&id),
                None => {
                    let events = self.matching(&message[2]);
                    let set = SortedItems::new(events.into_iter().map(|(item, _)| item).collect());
                    let responder = Responder::new(set, self.script.frame_limit_bytes).unwrap();
                    sessions.insert(id.clone(), responder);
                    negentropy(sessions, &id, &message[3])
                }
            },
            "NEG-MSG" => match self.script.without_negentropy {
                Some(Unknown::Fingerprint) => self.fingerprint(&id),
                _ => negentropy(sessions, &id, &message[2]),
            },
            _ => vec![],
        }
    }

    fn cuts(&self, connection: usize, brought: usize, answer: &str) -> bool {
        let Some(cuts) = &self.script.cuts else { return false };
        let answer: Value = serde_json::from_str(answer).unwrap();
        answer[0] == "EVENT" && cuts(connection, brought, &item(&answer[2].to_string()).id)
    }

    /// One range up to infinity, of a set that does not exist.
    fn fingerprint(&self, id: &str) -> Vec<String> {
        let fingerprint = self.sent.load(Ordering::Relaxed);
        vec![json!(["NEG-MSG", id, format!("61000001{fingerprint:032x}")]).to_string()]
    }

    fn matching(&self, filter: &Value) -> Vec<(Item, String)> {
        let filter = Filter::from_json(filter).unwrap();
        let events = self.events.lock().unwrap();
        let matching = events.iter().filter(|(item, json)| match &filter.ids {
            Some(ids) => ids.contains(&item.id),
            None => Event::parse(json).is_ok_and(|event| filter.matches(&event)),
        });
        matching.map(|(item, json)| (*item, json.clone())).collect()
    }

    fn stored(&self, id: &str, filter: &Value) -> Vec<String> {
        let limit = filter["limit"].as_u64().map_or(usize::MAX, |limit| limit as usize);
        let events = self.matching(filter);
        let newest = events.iter().rev().take(limit.min(self.script.events_per_req));
        let all = self.script.unasked.iter().chain(newest.map(|(_, json)| json));
        let all = all.flat_map(|json| std::iter::repeat_n(json, self.script.repeats));
        let mut answers: Vec<String> =
            all.map(|json| format!(r#"["EVENT",{},{json}]"#, json!(id))).collect();
        answers.push(json!(["EOSE", id]).to_string());
        answers
    }
}

fn negentropy(
    sessions: &mut HashMap<String, Responder<SortedItems>>,
    id: &str,
    payload: &Value,
) -> Vec<String> {
    let payload = faster_hex::hex_decode_vec(payload.as_str().unwrap().as_bytes()).unwrap();
    let answer = sessions.get_mut(id).unwrap().answer(&payload).unwrap();
    vec![json!(["NEG-MSG", id, faster_hex::hex_string(&answer)]).to_string()]
}
