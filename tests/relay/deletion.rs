//! Deletion requests (NIP-09): by `e` and `a`, for the author's own events only, and permanent.

use crate::support::negentropy_client::expect_all;
use crate::support::{Author, TestRelay, events, id_of, model};
use serde_json::{Value, json};

const AT: u64 = events::EPOCH;

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_event_is_gone_and_does_not_come_back() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let [gone, other, stays] = ["gone", "gone too", "stays"].map(|text| author.note(AT, text));
    let deletion = author.deletion(AT + 1, json!([["e", id_of(&gone)], ["e", id_of(&other)]]));
    for event in [&gone, &other, &stays, &deletion] {
        client.store(event).await;
    }
    expect_all(&mut client, &[&stays, &deletion]).await;
    client.expect_blocked(&gone).await;
    let relay = relay.restart_with(|_| {}).await;
    let mut client = relay.client().await;
    client.expect_blocked(&gone).await;
    client.expect_blocked(&other).await;
    expect_all(&mut client, &[&stays, &deletion]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_comes_first_keeps_the_event_out() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    // For `e` the time of the deletion does not matter, because the event is named.
    let note = author.note(AT + 100, "late");
    let article = author.event(30_023, AT, json!([["d", "x"]]), "late");
    let by_id = author.deletion(AT, json!([["e", id_of(&note)]]));
    let by_address = author.deletion(AT, json!([["a", author.address(30_023, "x")]]));
    client.store(&by_id).await;
    client.store(&by_address).await;
    client.expect_blocked(&note).await;
    client.expect_blocked(&article).await;
    expect_all(&mut client, &[&by_id, &by_address]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_deleted_up_to_the_time_of_the_request() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    for (kind, d) in [(30_023, "x"), (30_024, ""), (30_025, "a:b:c"), (0, ""), (10_002, "")] {
        let tags = json!([["d", d]]);
        let [old, same, new] =
            [10, 20, 21].map(|second| author.event(kind, AT + second, tags.clone(), ""));
        let deletion =
            author.deletion(AT + 20, json!([["a", author.address(kind, d)], ["k", "x"]]));
        let filter = json!({ "kinds": [kind] });
        client.store(&old).await;
        client.store(&deletion).await;
        assert_eq!(client.query(std::slice::from_ref(&filter)).await, Vec::<Value>::new());
        client.expect_blocked(&old).await;
        client.expect_blocked(&same).await;
        client.store(&new).await;
        assert_eq!(client.query(std::slice::from_ref(&filter)).await, std::slice::from_ref(&new));
        // An older request does not accept the event again, and does not shorten the first.
        let older = author.deletion(AT + 5, json!([["a", author.address(kind, d)]]));
        client.store(&older).await;
        assert_eq!(client.query(&[filter]).await, [new]);
        client.expect_blocked(&same).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_deletes_the_events_of_others() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let (author, stranger) = (Author::new(1), Author::new(2));
    let note = author.note(AT, "mine");
    let later = author.note(AT, "mine, later");
    let article = author.event(30_023, AT, json!([["d", "x"]]), "");
    let attack = stranger.deletion(
        AT + 9,
        json!([["e", id_of(&note)], ["e", id_of(&later)], ["a", author.address(30_023, "x")]]),
    );
    client.store(&note).await;
    client.store(&attack).await;
    client.store(&article).await;
    client.store(&later).await;
    expect_all(&mut client, &[&note, &later, &article, &attack]).await;
    // The author's own request still works.
    let deletion = author.deletion(AT, json!([["e", id_of(&later)]]));
    client.store(&deletion).await;
    expect_all(&mut client, &[&note, &article, &attack, &deletion]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_request_cannot_be_deleted() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let note = author.note(AT, "x");
    let deletion = author.deletion(AT, json!([["e", id_of(&note)]]));
    let second = author.deletion(AT, json!([["e", id_of(&deletion)]]));
    client.store(&deletion).await;
    client.store(&second).await;
    client.expect_blocked(&note).await;
    expect_all(&mut client, &[&deletion, &second]).await;
    // In the other order too.
    let third = author.deletion(AT + 1, json!([["e", "00".repeat(32)]]));
    let fourth = author.deletion(AT + 1, json!([["e", id_of(&third)]]));
    client.store(&fourth).await;
    client.store(&third).await;
    expect_all(&mut client, &[&deletion, &second, &third, &fourth]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_name_nothing_are_stored_and_harmless() {
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    let author = Author::new(1);
    let note = author.note(AT, "x");
    client.store(&note).await;
    let key = author.key();
    let deletion = author.deletion(
        AT + 1,
        json!([
            ["e"],
            ["e", "x"],
            ["a"],
            ["a", "x"],
            ["a", "::"],
            ["a", format!("1:{key}:")],
            ["a", format!("99999999:{key}:x")],
            ["a", format!("30023:{key}")],
            ["p", key]
        ]),
    );
    client.store(&deletion).await;
    expect_all(&mut client, &[&note, &deletion]).await;
}

/// NIP-09 removes only the named events; NIP-01 determines which version is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_deleted_by_its_id_leaves_older_ones_alone() {
    let author = Author::new(1);
    for (kind, seconds) in [(0, [1, 2, 3]), (30_023, [1, 2, 3]), (30_023, [1, 1, 1])] {
        let mut versions = [0, 1, 2].map(|number| {
            let content = format!("version {number}");
            author.event(kind, AT + seconds[number], json!([["d", "x"]]), &content)
        });
        // Within a second the lower id is the newer version.
        versions.sort_by_key(|event| {
            (model::created_at(event), std::cmp::Reverse(id_of(event).to_owned()))
        });
        let [old, middle, new] = &versions;
        let deletion = author.deletion(AT + 9, json!([["e", id_of(middle)]]));
        let without_new = [old, middle, &deletion];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let relay = TestRelay::start().await;
            let mut client = relay.client().await;
            for place in order {
                client.publish(without_new[place]).await;
            }
            client.expect_blocked(middle).await;
            // If the middle version had replaced or kept out the old one, it is stored again when
            // it is sent.
            client.publish(old).await;
            expect_all(&mut client, &[old, &deletion]).await;
            // Sending the deleted version again has no effect.
            client.expect_blocked(middle).await;
            expect_all(&mut client, &[old, &deletion]).await;
            client.store(new).await;
            expect_all(&mut client, &[new, &deletion]).await;
        }
    }
}

/// NIP-59: a gift wrap is signed by a single-use key; it belongs to its addressees.
#[tokio::test(flavor = "multi_thread")]
async fn recipients_of_a_gift_wrap_may_delete_it() {
    let (throwaway, recipient, stranger) = (Author::new(90), Author::new(1), Author::new(2));
    let tags = json!([["p", recipient.key()], ["p", "x"]]);
    let [wrap, late] = ["one", "two"].map(|text| throwaway.event(1_059, AT, tags.clone(), text));
    // A note that mentions a key does not belong to that key.
    let note = throwaway.event(1, AT, tags.clone(), "note");
    let named = json!([["e", id_of(&wrap)], ["e", id_of(&late)], ["e", id_of(&note)]]);
    let relay = TestRelay::start_with(|config| config.auth.private_kinds.clear()).await;
    let mut client = relay.client().await;
    client.store(&wrap).await;
    client.store(&note).await;
    let attack = stranger.deletion(AT + 1, named.clone());
    client.store(&attack).await;
    expect_all(&mut client, &[&wrap, &note, &attack]).await;
    let deletion = recipient.deletion(AT + 2, named);
    client.store(&deletion).await;
    expect_all(&mut client, &[&note, &attack, &deletion]).await;
    let relay = relay.restart_with(|_| {}).await;
    let mut client = relay.client().await;
    for gone in [&wrap, &late] {
        client.expect_blocked(gone).await;
    }
    expect_all(&mut client, &[&note, &attack, &deletion]).await;
}

/// A request keeps its targets out only as long as it is stored.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_named_may_come_back_once_the_request_is_gone() {
    let author = Author::new(1);
    let relay = TestRelay::start().await;
    let mut client = relay.client().await;
    // Both are newer than the request to vanish, which removes the deletion request too.
    let note = author.note(AT + 10, "note");
    let article = author.event(30_023, AT + 10, json!([["d", "x"]]), "article");
    let deletion = author.deletion(AT, json!([["e", id_of(&note)], ["e", id_of(&article)]]));
    client.store(&deletion).await;
    client.expect_blocked(&note).await;
    client.expect_blocked(&article).await;
    let vanish = author.event(62, AT + 1, json!([["relay", "ALL_RELAYS"]]), "");
    client.store(&vanish).await;
    client.store(&note).await;
    client.store(&article).await;
    expect_all(&mut client, &[&vanish, &note, &article]).await;
}
