use negsync_reconcile::Item;
use negsync_store::{Change, Listener, Step};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A set kept by the calls of a store's listener. Clones share it.
#[derive(Clone, Default)]
pub struct HeardSet(Arc<HeardParts>);

#[derive(Default)]
struct HeardParts {
    items: Mutex<BTreeSet<Item>>,
    begun: AtomicUsize,
    passed: Mutex<Vec<Item>>,
    fails: AtomicBool,
    is_exact: bool,
}

impl HeardSet {
    /// Panics if an item is added twice, or removed without being there. A feed that reports
    /// several commits at a time may do the latter.
    pub fn exact() -> Self {
        Self(Arc::new(HeardParts { is_exact: true, ..HeardParts::default() }))
    }

    /// The current items.
    pub fn items(&self) -> BTreeSet<Item> {
        self.0.items.lock().unwrap().clone()
    }

    /// The number of times that all items were read.
    pub fn begun(&self) -> usize {
        self.0.begun.load(Ordering::Relaxed)
    }

    /// The ephemeral events so far.
    pub fn passed(&self) -> Vec<Item> {
        self.0.passed.lock().unwrap().clone()
    }

    /// Waits until an item is added.
    pub fn wait_for(&self, item: &Item) {
        while !self.holds(item) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Makes the next call of the listener panic, without applying the change.
    pub fn fail_next(&self) {
        self.0.fails.store(true, Ordering::Relaxed);
    }

    /// Whether the next call is still to panic.
    pub fn is_to_fail(&self) -> bool {
        self.0.fails.load(Ordering::Relaxed)
    }
}

impl Listener for HeardSet {
    fn begun(&self, items: Vec<Item>) {
        *self.0.items.lock().unwrap() = items.into_iter().collect();
        self.0.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn changed(&self, change: Arc<Change>) {
        assert!(!self.0.fails.swap(false, Ordering::Relaxed), "the listener fails");
        let mut items = self.0.items.lock().unwrap();
        for step in &change.steps {
            match step {
                Step::Added(event) => {
                    let is_new = items.insert(event.item());
                    assert!(is_new || !self.0.is_exact, "added twice");
                }
                Step::Removed(item) => {
                    let was_held = items.remove(item);
                    assert!(was_held || !self.0.is_exact, "removed twice");
                }
                Step::Passed(event) => self.0.passed.lock().unwrap().push(event.item()),
            }
        }
    }

    fn holds(&self, item: &Item) -> bool {
        self.0.items.lock().unwrap().contains(item)
    }

    fn held(&self, from: u64, to: u64, visit: &mut dyn FnMut(Item)) {
        let range = Item::new(from, [0; 32])..=Item::new(to, [255; 32]);
        self.0.items.lock().unwrap().range(range).for_each(|item| visit(*item));
    }
}
