//! The sets over a store of any engine that publishes its contents and each change to a listener.

use negsync_index::{Index, Sets};
use negsync_reconcile::{Item, RangeSet};
use negsync_store::{
    Change, Clock, Deadline, Event, EventSource, EventStore, Filter, Listener, PrivateKinds, Step,
    Store, StoreError, StoreOptions, Viewer, Work,
};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const PRIVATE: u16 = 1_059;

/// An unsigned event of the kind and the second.
fn event(number: u64, kind: u16) -> Event {
    let zeros = "0".repeat(128);
    let json = format!(
        r#"{{"id":"{number:064x}","pubkey":"{}","created_at":{number},"kind":{kind},"tags":[],"content":"","sig":"{zeros}"}}"#,
        &zeros[..64],
    );
    Event::parse(&json).unwrap()
}

/// Stores events, each given as its number and its kind.
fn publish(store: &dyn EventStore, events: &[(u64, u16)]) {
    let events = events.iter().map(|(number, kind)| event(*number, *kind).trust()).collect();
    store.publish(events).unwrap();
}

/// An engine like one on a server: it publishes all public items, and then every change.
fn open(path: &Path, listener: Box<dyn Listener>) -> Result<Arc<dyn EventStore>, StoreError> {
    let listener: Arc<dyn Listener> = Arc::from(listener);
    let hears = Arc::clone(&listener);
    let changed = move |change: Arc<Change>| hears.changed(change);
    let store = Store::open(path, StoreOptions::default(), Box::new(changed))?;
    let public = Filter { without_kinds: vec![PRIVATE], ..Filter::default() };
    let mut items = Vec::new();
    store.reader().items(&public, |item| {
        items.push(item);
        ControlFlow::Continue(())
    })?;
    listener.begun(items);
    Ok(Arc::new(store))
}

fn shown(index: &Index, viewer: &Viewer) -> Vec<Item> {
    let set = index.snapshot_for(viewer, &[Filter::default()], usize::MAX).unwrap();
    let mut items = Vec::new();
    set.for_each(0..set.len(), &mut |item| items.push(item));
    items
}

fn items(events: &[(u64, u16)]) -> Vec<Item> {
    events.iter().map(|(number, kind)| event(*number, *kind).item()).collect()
}

#[test]
fn the_sets_are_those_of_the_store_at_the_start_and_after_each_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let private = PrivateKinds::new([PRIVATE]);
    let kind = |number: u64| if number.is_multiple_of(3) { PRIVATE } else { 1 };
    let mut all: Vec<(u64, u16)> = (1..200).map(|number| (number, kind(number))).collect();
    let before = Store::open(&path, StoreOptions::default(), Box::new(|_| {})).unwrap();
    publish(&before, &all);
    before.close();

    let index = Index::over(1 << 20, &private, |listener| open(&path, listener)).unwrap();
    let stranger = Viewer::new(private.clone(), []);
    let operator = Viewer::new(private.clone(), []).seeing_all(true);
    let check = |all: &[(u64, u16)]| {
        assert_eq!(shown(&index, &operator), items(all));
        let public: Vec<(u64, u16)> = all.iter().filter(|it| it.1 != PRIVATE).copied().collect();
        assert_eq!(shown(&index, &stranger), items(&public));
        assert!(items(all).iter().all(|item| index.contains(item)));
    };
    assert!(index.sets().statistics().is_loaded);
    check(&all);

    let mut heard = index.subscribe();
    let more = [(300, 1), (301, PRIVATE)];
    publish(index.store().as_ref(), &more);
    all.extend(more);
    check(&all);
    let mut added = Vec::new();
    while let Some(change) = heard.try_recv().unwrap() {
        added.extend(change.steps.iter().filter_map(|step| match step {
            Step::Added(event) => Some(event.item().created_at),
            _ => None,
        }));
    }
    assert_eq!(added, [300, 301]);

    let gone = Filter { until: Some(100), ..Filter::default() };
    index.store().remove(&gone).unwrap();
    all.retain(|(number, _)| *number > 100);
    check(&all);
    index.close();
}

/// A source whose `catch_up` waits for a server; counts the calls.
struct OnServer {
    store: Store,
    asked: Arc<AtomicUsize>,
}

impl EventSource for OnServer {
    fn with_deadline(&self, deadline: Deadline) -> Arc<dyn EventSource> {
        Arc::new(Self { store: self.store.with_deadline(deadline), asked: Arc::clone(&self.asked) })
    }

    fn deadline(&self) -> &Deadline {
        EventSource::deadline(&self.store)
    }

    fn clock(&self) -> &Clock {
        self.store.clock()
    }

    fn catch_up(&self) -> Result<(), StoreError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.store.catch_up()
    }

    fn waits_for_server(&self) -> bool {
        true
    }

    fn read_snapshot(&self, work: &mut Work<'_>) -> Result<(), StoreError> {
        self.store.read_snapshot(work)
    }

    fn read_at_commit(
        &self,
        beside: &mut dyn FnMut(),
        work: &mut Work<'_>,
    ) -> Result<(), StoreError> {
        self.store.read_at_commit(beside, work)
    }

    fn events(
        &self,
        ids: &[[u8; 32]],
        visit: &mut dyn FnMut(&Item, &str),
    ) -> Result<(), StoreError> {
        self.store.events(ids, visit)
    }
}

#[test]
fn a_store_that_asks_a_server_is_not_asked_where_nobody_may_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let none = PrivateKinds::default();
    let stranger = Viewer::new(none.clone(), []);
    let all = [Filter::default()];
    let kept = |sets: &Sets| sets.kept_for(&stranger, &all, usize::MAX).unwrap().is_some();
    let asked = Arc::<AtomicUsize>::default();
    let on_server = Sets::attach_with(1 << 20, none.clone(), |listener| {
        listener.begun(Vec::new());
        let store = Store::open(&path, StoreOptions::default(), Box::new(|_| {}))?;
        Ok(Arc::new(OnServer { store, asked: Arc::clone(&asked) }))
    });
    let on_server = on_server.unwrap();
    assert!(!kept(&on_server));
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    assert!(on_server.snapshot(&all, usize::MAX).unwrap().is_empty());
    assert!(asked.load(Ordering::Relaxed) > 0);
    drop(on_server);
    let index = Index::open(&path, StoreOptions::default(), 1 << 20).unwrap();
    assert!(index.snapshot(&all, usize::MAX).unwrap().is_empty());
    assert!(kept(index.sets()));
    index.close();
}
