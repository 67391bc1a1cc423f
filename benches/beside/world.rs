//! The events of both relays, and the expected answers.

use negsync::index::Tree;
use negsync::item::Item;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::Path;

const AUTHORS: u64 = 2_000;
const START: u64 = 1_700_000_000;
/// Average number of replies in a thread.
const REPLIES: usize = 20;

/// The fields of an event that answers depend on.
pub struct Made {
    pub item: Item,
    pub author: u64,
    pub kind: u16,
    pub thread: u64,
}

pub struct World {
    pub events: Vec<Made>,
}

impl World {
    /// `count` events: a profile for each author, then notes, reposts and reactions.
    pub fn new(count: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(5);
        let threads = (count / REPLIES).max(1) as u64;
        let made = |n: usize| {
            let mut id = [0; 32];
            rng.fill_bytes(&mut id);
            let (author, kind) = match n as u64 {
                author @ 0..AUTHORS => (author, 0),
                _ => {
                    let kind = [1, 1, 1, 1, 1, 1, 6, 7, 7, 7][rng.random_range(0..10)];
                    (rng.random_range(0..AUTHORS), kind)
                }
            };
            let thread = rng.random_range(0..threads);
            Made { item: Item::new(START + n as u64, id), author, kind, thread }
        };
        Self { events: (0..count).map(made).collect() }
    }

    /// One JSON object a line.
    pub fn write(&self, path: &Path) {
        let mut file = BufWriter::new(std::fs::File::create(path).unwrap());
        for made in &self.events {
            writeln!(
                file,
                r#"{{"id":"{}","pubkey":"{:064x}","created_at":{},"kind":{},"tags":[["e","{:064x}"]],"content":"{}","sig":"{}"}}"#,
                hex(&made.item.id),
                made.author,
                made.item.created_at,
                made.kind,
                made.thread,
                "something worth saying to the world ".repeat(3),
                "0".repeat(128)
            )
            .unwrap();
        }
        file.flush().unwrap();
    }

    /// The set of all events.
    pub fn tree(&self) -> Tree {
        Tree::from_unsorted(self.events.iter().map(|made| made.item).collect())
    }

    /// The ids of the newest `most` events that `is_of` selects.
    pub fn newest(&self, most: usize, is_of: impl Fn(&Made) -> bool) -> HashSet<String> {
        let mut items: Vec<Item> =
            self.events.iter().filter(|made| is_of(made)).map(|made| made.item).collect();
        items.sort_by_key(|item| (Reverse(item.created_at), item.id));
        items.iter().take(most).map(|item| hex(&item.id)).collect()
    }

    /// Some authors, without duplicates.
    pub fn some_authors(rng: &mut StdRng, count: usize) -> Vec<u64> {
        let mut authors = HashSet::new();
        while authors.len() < count {
            authors.insert(rng.random_range(0..AUTHORS));
        }
        authors.into_iter().collect()
    }

    /// A thread with replies.
    pub fn some_thread(&self, rng: &mut StdRng) -> u64 {
        self.events[rng.random_range(0..self.events.len())].thread
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
