//! Peers that exchange documents instead of events, over a transport of their own. The time of an
//! item is that of the document's last change. Its id is the SHA-256 of the document's key and that
//! time, because sets are compared by id; of two versions the newer one wins. The transport here is
//! a queue in memory.

use negsync_reconcile::item::Item;
use negsync_reconcile::sessions::{Packet, SessionEnd, SessionLimits, Sessions};
use negsync_reconcile::{InitiatorOptions, SortedItems};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Document {
    changed_s: u64,
    text: String,
}

/// One of the peers.
struct Peer {
    name: &'static str,
    documents: BTreeMap<String, Document>,
    sessions: Sessions<&'static str, SortedItems>,
}

/// A message between peers.
enum Message {
    Sessions(Vec<u8>),
    Documents(Vec<(String, Document)>),
    /// Ids of documents that the sender requests.
    Want(Vec<[u8; 32]>),
}

/// Messages in transit: sender, receiver, message.
type Queue = VecDeque<(&'static str, &'static str, Message)>;

fn id(key: &str, document: &Document) -> [u8; 32] {
    Sha256::digest(format!("{key}\n{}", document.changed_s)).into()
}

impl Peer {
    fn new(name: &'static str, documents: &[(&str, u64, &str)]) -> Self {
        let document = |changed_s, text: &str| Document { changed_s, text: text.to_owned() };
        let documents = documents
            .iter()
            .map(|(key, changed_s, text)| ((*key).to_owned(), document(*changed_s, text)))
            .collect();
        Self { name, documents, sessions: Sessions::new(SessionLimits::default(), 1) }
    }

    fn set(&self) -> SortedItems {
        let item = |(key, document): (&String, &Document)| {
            Item::new(document.changed_s, id(key, document))
        };
        SortedItems::new(self.documents.iter().map(item).collect())
    }

    fn begin(&mut self, with: &'static str, queue: &mut Queue) {
        let set = self.set();
        if let Ok(packet) = self.sessions.open(with, set, InitiatorOptions::default(), 0) {
            queue.push_back((self.name, with, Message::Sessions(packet.to_bytes())));
        }
    }

    fn receive(&mut self, from: &'static str, message: Message, queue: &mut Queue) {
        let mut send = |message| queue.push_back((self.name, from, message));
        match message {
            Message::Sessions(bytes) => {
                let Some(packet) = Packet::from_bytes(&bytes) else { return };
                let set = self.set();
                let received = self.sessions.receive(&from, &packet, 0, || Some(set));
                if let Some(reply) = received.reply {
                    send(Message::Sessions(reply.to_bytes()));
                }
                // Differences are moved as soon as they are known.
                if !received.found.need.is_empty() {
                    send(Message::Want(received.found.need));
                }
                if !received.found.have.is_empty() {
                    send(Message::Documents(self.documents_of(&received.found.have)));
                }
                if received.ended == Some(SessionEnd::Complete) {
                    println!("{} knows how {from} differs", self.name);
                }
            }
            Message::Want(ids) => send(Message::Documents(self.documents_of(&ids))),
            Message::Documents(documents) => {
                for (key, document) in documents {
                    let is_newer = self
                        .documents
                        .get(&key)
                        .is_none_or(|ours| ours.changed_s < document.changed_s);
                    if is_newer {
                        self.documents.insert(key, document);
                    }
                }
            }
        }
    }

    fn documents_of(&self, ids: &[[u8; 32]]) -> Vec<(String, Document)> {
        let wanted = |(key, document): &(&String, &Document)| ids.contains(&id(key, document));
        let found = self.documents.iter().filter(wanted);
        found.map(|(key, document)| (key.clone(), document.clone())).collect()
    }
}

pub fn main() {
    let mut peers = [
        Peer::new("anna", &[("readme", 10, "old"), ("todo", 20, "buy milk")]),
        Peer::new("ben", &[("readme", 30, "new"), ("poem", 40, "roses")]),
        Peer::new("cleo", &[("song", 50, "la la")]),
    ];
    let mut queue = Queue::new();
    // Anna and Ben begin at the same time; then the changes go on to Cleo and back.
    for (who, with) in [(0, "ben"), (1, "anna"), (1, "cleo"), (0, "ben")] {
        peers[who].begin(with, &mut queue);
        while let Some((from, to, message)) = queue.pop_front() {
            if let Some(peer) = peers.iter_mut().find(|peer| peer.name == to) {
                peer.receive(from, message, &mut queue);
            }
        }
    }
    for peer in &peers {
        println!("{}: {:?}", peer.name, peer.documents.keys().collect::<Vec<_>>());
        assert_eq!(peer.documents, peers[0].documents);
        assert_eq!(peer.documents["readme"].text, "new");
    }
    println!("{:?}", peers[0].sessions.statistics());
}
