//! The rules of the store together: the same events are left for any order of arrival.

use crate::support::negentropy_client::neg_ids;
use crate::support::{TestRelay, corpora, events, model};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn the_same_events_are_left_in_whatever_order_they_come() {
    for corpus in corpora(20, 300) {
        let kept = model::ids(&model::kept(&corpus.events, events::unix_now()));
        for seed in 0..4 {
            let mut shuffled = corpus.events.clone();
            shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
            // All stored events must be visible.
            let relay = TestRelay::start_with(|config| config.auth.private_kinds.clear()).await;
            let mut client = relay.client().await;
            client.publish_all(&shuffled).await;
            let context = format!("{}, order {seed}", corpus.name);
            assert_eq!(neg_ids(&mut client, &json!({})).await, kept, "{context}");
            assert_eq!(model::ids(&client.query(&[json!({})]).await), kept, "{context}");
            // Sending all of them again changes nothing.
            client.publish_all(&shuffled).await;
            assert_eq!(neg_ids(&mut client, &json!({})).await, kept, "{context}, again");
        }
    }
}
