//! For random sets, filters and frame limits, the `negentropy` crate's initiator finds exactly the
//! difference over the socket, compared with a naive computation.

use super::subscriptions::random_filter;
use crate::support::negentropy_client::{Difference, reconcile};
use crate::support::{Author, TestRelay, corpora, events, model};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const ROUNDS: u64 = 80;

/// A random part of the relay's events, and some others.
fn local(rng: &mut StdRng, stored: &[Value], strangers: &[Value]) -> Vec<Value> {
    let [of_stored, of_strangers] = [[0, 1, 50, 99, 100], [0, 1, 10, 50, 100]]
        .map(|shares: [u32; 5]| shares[rng.random_range(0..shares.len())]);
    let mut local = Vec::new();
    for (events, share) in [(stored, of_stored), (strangers, of_strangers)] {
        local.extend(events.iter().filter(|_| rng.random_ratio(share, 100)).cloned());
    }
    local
}

#[tokio::test(flavor = "multi_thread")]
async fn have_and_need_are_the_true_difference() {
    for corpus in corpora(50, 700) {
        let mut relay = TestRelay::start().await;
        relay.client().await.publish_all(&corpus.events).await;
        let stored = model::public(&model::kept(&corpus.events, events::unix_now()));
        // Regular events of the same authors and times, which the relay does not have.
        let strangers: Vec<Value> = (0..300)
            .map(|number| {
                let author = Author::new(number as u8 % 5 + 1);
                let at = model::created_at(&stored[number % stored.len()]);
                author.event(1, at, json!([["t", "nostr"]]), &format!("stranger {number}"))
            })
            .collect();
        let all: Vec<Value> = [&stored[..], &strangers].concat();
        for frame_limit_bytes in [0, 4_096, 10_000, 500_000] {
            relay = relay
                .restart_with(|config| config.negentropy.frame_limit_bytes = frame_limit_bytes)
                .await;
            let mut client = relay.client().await;
            for seed in 0..ROUNDS {
                let rng = &mut StdRng::seed_from_u64(seed * 7 + frame_limit_bytes);
                let filter = match rng.random_range(0..10) {
                    0..4 => json!({}),
                    4..8 => random_filter(rng, &all),
                    _ => json!([random_filter(rng, &all), random_filter(rng, &all)]),
                };
                let filters = filter.as_array().cloned().unwrap_or_else(|| vec![filter.clone()]);
                let theirs = model::ids(model::answer(&filters, &stored));
                let local = local(rng, &stored, &strangers);
                let ours: Vec<&Value> = local
                    .iter()
                    .filter(|event| filters.iter().any(|filter| model::matches(filter, event)))
                    .collect();
                let our_ids = model::ids(ours.iter().copied());
                let own_limit = [0, 4_096, 60_000][rng.random_range(0..3)];
                let found = reconcile(&mut client, &filter, ours, own_limit).await.unwrap();
                let expected = Difference {
                    have: our_ids.difference(&theirs).cloned().collect(),
                    need: theirs.difference(&our_ids).cloned().collect(),
                };
                assert_eq!(
                    found, expected,
                    "{}, seed {seed}, frames {own_limit} out and {frame_limit_bytes} in, {filter}",
                    corpus.name
                );
            }
        }
    }
}
