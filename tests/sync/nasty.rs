//! A peer with many kinds of misbehaviour.

use super::scripted::{Script, Scripted, Unknown, item};
use super::support::*;
use negsync::sync::{Direction, Method, Options, Proof, Reason, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An event with the signature of another one.
fn forged(created_at: u64) -> String {
    let author = Author::new(3);
    let (one, other) = (note(&author, created_at, "one"), note(&author, created_at, "other"));
    let sig = |json: &str| json.split(r#""sig":""#).nth(1).unwrap()[..128].to_owned();
    one.replace(&sig(&one), &sig(&other))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nasty_peer_gives_the_right_set_and_is_told_apart() {
    let (shared, ours, theirs) = (notes(70, 800), notes(71, 60), notes(72, 900));
    let store = TestStore::new(&[shared.clone(), ours.clone()].concat());
    let bad = forged(START + 5);
    let huge = note(&Author::new(4), START + 6, &"x".repeat(1 << 20));
    let monstrous = note(&Author::new(4), START + 7, &"x".repeat(17 << 20));
    let held =
        [shared, theirs.clone(), vec![bad.clone(), huge.clone(), monstrous.clone()]].concat();
    let script = Script {
        frame_limit_bytes: 4_096,
        events_per_req: 40,
        cut_every: Some(701),
        unasked: Some(note(&Author::new(5), START + 8, "nobody asked")),
        ..Script::default()
    };
    let peer = Scripted::start(&held, script).await;
    let mut expected = store.ids();
    expected.extend(theirs.iter().map(|json| id(json)));
    let options = Options::default().attempts(20);
    let (report, notes) = sync_with(&store, &peer.url(), &options).await;
    assert_same(&store.ids(), &expected, &format!("{report:?} {notes:?}"));
    assert!(report.complete && !report.equal, "{report:?} {notes:?}");
    assert_eq!(report.refused.get(&Reason::Invalid), Some(&1), "{report:?}");
    assert_eq!(report.refused.get(&Reason::OverLimits), Some(&1), "{report:?}");
    assert_eq!(report.refused.get(&Reason::Unreadable), Some(&1), "{report:?}");
    assert!(report.refused.get(&Reason::NotAskedFor) > Some(&0), "{report:?}");
    assert!(report.reconnects > 1, "{report:?}");
    assert!(peer.ids().is_superset(&ours.iter().map(|json| id(json)).collect()));

    let (again, notes) = sync_with(&store, &peer.url(), &options).await;
    assert!(again.complete, "{again:?} {notes:?}");
    assert_eq!((again.stored, again.uploaded, again.need), (0, 0, 0), "{again:?}");
    assert_eq!(again.differs.values().sum::<u64>(), 3, "{again:?}");
    let differing = [&bad, &huge, &monstrous].map(|json| item(json).id);
    assert!(differing.iter().all(|id| !store.ids().contains(id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lists_what_it_does_not_send_leaves_the_sync_incomplete() {
    let events = notes(75, 50);
    let store = TestStore::new(&[]);
    let script = Script { events_per_req: 0, ..Script::default() };
    let peer = Scripted::start(&events, script).await;
    let report = sync_all(&store, &peer.url()).await;
    assert!(!report.complete && !report.equal, "{report:?}");
    assert_eq!(report.refused.get(&Reason::NotSent), Some(&50), "{report:?}");
    assert_eq!(report.differs.get(&Reason::NotSent), Some(&50), "{report:?}");
}

async fn without_negentropy(how: Unknown) {
    let (shared, ours, theirs) = (notes(80, 400), notes(81, 100), notes(82, 300));
    // More events of one second than fit on a page.
    let crowd: Vec<String> =
        (0..60).map(|n| note(&Author::new(6), START + 50, &format!("crowd {n}"))).collect();
    let store = TestStore::new(&[shared.clone(), ours].concat());
    let script = Script { without_negentropy: Some(how), events_per_req: 100, ..Script::default() };
    let peer = Scripted::start(&[shared, theirs, crowd].concat(), script).await;
    let (report, notes) = sync_with(&store, &peer.url(), &Options::default()).await;
    assert_same(&store.ids(), &peer.ids(), &format!("{how:?} {report:?}"));
    assert!(report.complete && report.equal, "{how:?} {report:?}");
    assert_eq!((report.need, report.have), (360, 100), "{how:?} {report:?}");
    assert_eq!(report.method, Method::Req, "{how:?}");
    assert!(notes.iter().any(|note| note.contains("does not reconcile")), "{how:?} {notes:?}");
    let (again, _) = sync_with(&store, &peer.url(), &Options::default()).await;
    let verdict = (again.verdict, again.proof);
    assert_eq!(verdict, (Verdict::CaughtUp, Some(Proof::ReadSince)), "{how:?} {again:?}");
    assert_eq!((again.stored, again.uploaded), (0, 0), "{how:?} {again:?}");
    assert!(again.bytes_down * 20 < report.bytes_down, "{how:?} {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_with_a_notice_is_read() {
    without_negentropy(Unknown::Notice).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_with_closed_is_read() {
    without_negentropy(Unknown::Closed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_with_neg_err_is_read() {
    without_negentropy(Unknown::NegErr).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_is_read() {
    without_negentropy(Unknown::Silence).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_for_which_every_set_is_too_large_is_read() {
    without_negentropy(Unknown::TooLarge).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_answers_lead_nowhere_is_read() {
    let (ours, theirs) = (notes(86, 60), notes(87, 70));
    let store = TestStore::new(&ours);
    let how = Some(Unknown::Fingerprint);
    let script = Script { without_negentropy: how, ..Script::default() };
    let peer = Scripted::start(&theirs, script).await;
    let (report, notes) = sync_with(&store, &peer.url(), &Options::default()).await;
    assert_same(&store.ids(), &peer.ids(), &format!("{report:?}"));
    assert!(report.complete && report.equal, "{report:?}");
    assert!(report.round_trips < 1_000, "{report:?}");
    assert!(notes.iter().any(|note| note.contains("settled nothing")), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_the_same_over_and_over_is_left() {
    let events = notes(88, 1);
    let store = TestStore::new(&[]);
    // Practically without end.
    let script = Script { repeats: 150_000, ..Script::default() };
    let peer = Scripted::start(&events, script).await;
    let (report, notes) = sync_with(&store, &peer.url(), &Options::default()).await;
    assert_same(&store.ids(), &peer.ids(), &format!("{report:?}"));
    assert!(report.complete && report.equal, "{report:?}");
    assert!(report.duplicates < 150_000, "{report:?}");
    assert!(notes.iter().any(|note| note.contains("not requested")), "{notes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_compared_is_not_stored_from_a_peer_that_is_read() {
    let (ours, theirs) = (notes(90, 30), notes(91, 40));
    let store = TestStore::new(&ours);
    let script = Script { without_negentropy: Some(Unknown::Notice), ..Script::default() };
    let peer = Scripted::start(&theirs, script).await;
    let options = Options::default().dry_run(true);
    let (report, _) = sync_with(&store, &peer.url(), &options).await;
    assert_eq!((report.need, report.have), (40, 30), "{report:?}");
    assert_eq!((store.ids().len(), peer.ids().len()), (30, 40));
    let options = Options::default().direction(Direction::Up);
    let (report, _) = sync_with(&store, &peer.url(), &options).await;
    assert_eq!(report.differs.get(&Reason::NotToDownload), Some(&40), "{report:?}");
    assert!(report.complete && !report.equal, "{report:?}");
    assert_eq!((store.ids().len(), peer.ids().len()), (30, 70));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_asks_who_we_are_is_told_when_there_is_a_key() {
    let author = Author::new(7);
    let only_for = Some(author.key());
    for without_negentropy in [None, Some(Unknown::Notice)] {
        let (ours, theirs) = (notes(95, 50), notes(96, 50));
        let mut store = TestStore::new(&ours);
        let script = Script { only_for: only_for.clone(), without_negentropy, ..Script::default() };
        let peer = Scripted::start(&theirs, script).await;
        let options = Options::default().attempts(1);
        let (report, _) = sync_with(&store, &peer.url(), &options).await;
        assert!(!report.complete, "{report:?}");
        assert!(report.hint.unwrap().contains("NIP-42"), "{report:?}");
        assert_eq!(store.ids().len(), 50);
        store.local.keys = Some(author.keys().clone());
        let (report, notes) = sync_with(&store, &peer.url(), &options).await;
        assert!(report.complete && report.equal, "{report:?} {notes:?}");
        assert_same(&store.ids(), &peer.ids(), &format!("{report:?}"));
        store.local.keys = Some(Author::new(8).keys().clone());
        let (report, _) = sync_with(&store, &peer.url(), &options).await;
        assert!(!report.complete && report.error.is_some(), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_answers_without_a_websocket_is_told_with_what_may_help() {
    for (answer, words) in [
        ("301 Moved Permanently\r\nlocation: wss://relay.example.com/", "wss://relay.example.com/"),
        ("200 OK", "is there a relay"),
        ("429 Too Many Requests", "429 Too Many"),
        ("503 Service Unavailable", "503 Service"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await;
                let text = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        let options = Options::default().attempts(1);
        let (report, _) = sync_with(&TestStore::new(&[]), &url, &options).await;
        let error = report.error.unwrap();
        assert!(error.contains(words), "{answer}: {error}");
        serving.abort();
    }
}
