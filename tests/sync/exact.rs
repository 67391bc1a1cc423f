//! `--exact`: id lists instead of fingerprints, over the socket.

use super::support::*;
use crate::support::process::negsync;
use negsync::reconcile::message::{Decoder, Payload};
use negsync::sync::{DiffOptions, Options, Speaker, Trace, diff};
use serde_json::Value;
use std::sync::{Arc, Mutex};

/// Our messages in NEG-OPEN and NEG-MSG.
type Questions = Arc<Mutex<Vec<Vec<u8>>>>;

fn listening() -> (Trace, Questions) {
    let questions = Questions::default();
    let heard = Arc::clone(&questions);
    let trace = Trace::new(move |speaker, text| {
        let message: Value = serde_json::from_str(text).unwrap_or_default();
        let hex = match (speaker, message[0].as_str()) {
            (Speaker::Us, Some("NEG-OPEN")) => message[3].as_str(),
            (Speaker::Us, Some("NEG-MSG")) => message[2].as_str(),
            _ => None,
        };
        let bytes = hex.map(|hex| {
            let mut bytes = vec![0; hex.len() / 2];
            faster_hex::hex_decode(hex.as_bytes(), &mut bytes).unwrap();
            bytes
        });
        heard.lock().unwrap().extend(bytes);
    });
    (trace, questions)
}

fn fingerprints(questions: &Questions) -> usize {
    let questions = questions.lock().unwrap();
    let ranges = questions.iter().flat_map(|bytes| Decoder::new(bytes).unwrap());
    ranges.filter(|range| matches!(range.unwrap().payload, Payload::Fingerprint(_))).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_sync_asks_for_lists_alone_and_ends_equal() {
    let shared = notes(190, 2_000);
    for exact in [false, true] {
        let store = TestStore::new(&[shared.clone(), notes(191, 30)].concat());
        let relay = TestRelay::holding(&[shared.clone(), notes(192, 40)].concat()).await;
        let (trace, questions) = listening();
        let by_day = DiffOptions::default().exact(exact).trace(trace.clone());
        let found = diff(&store.local, &relay.url(), &by_day, |_| {}).await.unwrap();
        assert_eq!((found.have, found.need, found.error), (30, 40, None));
        let options = Options::default().exact(exact).trace(trace);
        let (report, _) = sync_with(&store, &relay.url(), &options).await;
        assert!(report.equal, "{report:?}");
        assert_same(&store.ids(), &relay.ids(), &format!("{report:?}"));
        assert_eq!(fingerprints(&questions) == 0, exact, "{exact}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_flag_of_both_commands_works() {
    let relay = TestRelay::holding(&notes(193, 20)).await;
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.sqlite").display().to_string();
    let url = relay.url();
    let ended = tokio::task::spawn_blocking(move || {
        ["sync", "diff"].map(|command| negsync(&[command, &url, "--exact", "--store", &store], ""))
    });
    let [synced, compared] = ended.await.unwrap();
    assert_eq!((synced.status.code(), compared.status.code()), (Some(0), Some(0)));
    assert!(synced.stdout.contains("20 needed, 20 stored"), "{synced:?}");
}
