use super::state::WAITING_EVENTS;
use super::*;
use crate::index::IndexMetrics;
use crate::store::StoreMetrics;

fn event(number: usize) -> Arc<Event> {
    let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
    let json = format!(
        r#"{{"id":"{id}","pubkey":"{}","created_at":1,"kind":1,"tags":[],"content":"","sig":"{zeros}"}}"#,
        &zeros[..64]
    );
    Arc::new(Event::parse(&json).unwrap())
}

fn connection(registry: &Arc<Registry>) -> Arc<Subscriptions> {
    let metrics = Metrics::new(&StoreMetrics::default(), &IndexMetrics::default());
    Subscriptions::new(
        Arc::clone(registry),
        Arc::new(ClientAuth::stranger()),
        SubscribedShare::default(),
        &metrics,
    )
}

/// Delivers an event to the subscription with the id, or leaves the matching to the connection.
fn deliver(connection: &Subscriptions, commit: u64, number: usize, id: Option<&str>) -> bool {
    let matched = match id {
        Some(id) => Matched::By(vec![Arc::clone(&connection.lock().by_id[id].subscription)]),
        None => Matched::Unknown,
    };
    connection.deliver(commit, &event(number), matched)
}

/// The events that would be sent now, by number.
fn sent(connection: &Subscriptions) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        let Some(next) = connection.lock().next_live() else { return texts };
        let Ok(live) = next else { return vec!["too slow".to_owned()] };
        match &live.to {
            Some(to) => texts.extend(connection.text(&live.event, to)),
            None => texts.extend(connection.texts(&live)),
        }
    }
}

fn text(number: usize) -> String {
    message::event(r#""s""#, event(number).json())
}

/// A stream with an unreported gap is worse than one that ends.
#[test]
fn a_subscription_that_cannot_keep_what_waits_for_eose_ends_and_says_so() {
    let connection = connection(&Arc::default());
    for (count, is_whole) in [(WAITING_EVENTS, true), (WAITING_EVENTS + 1, false)] {
        let generation =
            connection.begin("s", vec![Filter::default()], 0, &Limits::default()).unwrap();
        for number in 0..count {
            assert!(!deliver(&connection, 0, number, Some("s")));
        }
        let messages = connection.go_live("s", generation, Vec::new(), 1);
        if is_whole {
            assert_eq!(messages.len(), count);
            assert!(deliver(&connection, 1, count, Some("s")));
            assert_eq!(sent(&connection), [text(count)]);
        } else {
            assert_eq!(messages.len(), 1);
            assert!(messages[0].starts_with(r#"["CLOSED","s","error: "#), "{}", messages[0]);
            assert!(connection.lock().by_id.is_empty());
        }
    }
}

/// Also if the connection matches the event itself, later than others.
#[test]
fn a_stored_event_comes_no_second_time_until_no_commit_can_bring_it() {
    for id in [Some("s"), None] {
        let registry = Arc::default();
        let connection = connection(&registry);
        let generation =
            connection.begin("s", vec![Filter::default()], 0, &Limits::default()).unwrap();
        deliver(&connection, 6, 5, Some("s"));
        deliver(&connection, 6, 6, Some("s"));
        let stored = [5, 7, 8].map(|number| event(number).item().id).to_vec();
        assert_eq!(connection.go_live("s", generation, stored, 8), [text(6)]);
        deliver(&connection, 7, 7, id);
        deliver(&connection, 7, 70, id);
        registry.end_commit(7);
        deliver(&connection, 8, 8, id);
        registry.end_commit(8);
        assert_eq!(sent(&connection), [text(70)], "{id:?}");
        registry.end_commit(9);
        let state = connection.lock();
        let SubscriptionStage::Live { sent, .. } = &state.by_id["s"].stage else {
            panic!("not live")
        };
        assert!(sent.is_empty() && !state.is_remembering);
        assert!(lock(&registry.remembering).is_empty());
    }
}

#[test]
fn what_was_ended_or_replaced_gets_nothing_more() {
    let registry = Arc::<Registry>::default();
    let connection = connection(&registry);
    let begin = || {
        let generation =
            connection.begin("s", vec![Filter::default()], 0, &Limits::default()).unwrap();
        connection.go_live("s", generation, Vec::new(), 0);
    };
    begin();
    assert!(deliver(&connection, 1, 1, Some("s")));
    begin();
    assert!(sent(&connection).is_empty());
    assert!(deliver(&connection, 2, 2, Some("s")));
    assert_eq!(sent(&connection), [text(2)]);
    let limits = Limits { subscriptions: 1, ..Limits::default() };
    // A refused REQ ends an open subscription with its id and frees its slot.
    let many = vec![Filter { kinds: Some(vec![1; 200_000]), ..Filter::default() }];
    assert!(connection.begin("s", many, 0, &limits).is_err());
    assert!(connection.begin("t", vec![Filter::default()], 0, &limits).is_ok());
    assert!(connection.begin("u", vec![Filter::default()], 0, &limits).is_err());
    connection.end("t");
    assert_eq!(registry.filters().owners().count(), 0);
}

/// A commit acknowledged before the REQ may be dispatched after it.
#[test]
fn events_of_commits_before_a_subscription_do_not_come_live() {
    for id in [Some("s"), None] {
        let connection = connection(&Arc::default());
        let all = vec![Filter::default()];
        let generation = connection.begin("s", all, 3, &Limits::default()).unwrap();
        deliver(&connection, 2, 2, Some("s"));
        assert!(connection.go_live("s", generation, Vec::new(), 3).is_empty());
        deliver(&connection, 2, 20, id);
        deliver(&connection, 3, 3, id);
        assert_eq!(sent(&connection), [text(3)], "{id:?}");
    }
}
