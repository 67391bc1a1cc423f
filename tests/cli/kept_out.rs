//! Events that an operator has deleted, banned or retired do not come back from any source.

use super::import::{import, lines};
use crate::support::events::unix_now;
use crate::support::http::http;
use crate::support::process::{RelayProcess, negsync};
use crate::support::{Author, Client, id_of};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How an event is removed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Deleted,
    Banned,
    Retired,
}

/// A relay from which an event was removed, and the event.
struct Kept {
    directory: tempfile::TempDir,
    relay: RelayProcess,
    gone: Value,
    stays: Value,
}

const MIRROR: u8 = 9;
const PATIENCE: Duration = Duration::from_secs(30);

impl Kept {
    async fn out(way: Way) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, config) = (store(&directory), config(&directory));
        let mirrors = format!("[auth]\nmirror_keys = [\"{}\"]\n", Author::new(MIRROR).key());
        std::fs::write(&config, &mirrors).unwrap();
        let config = config.to_str().unwrap();
        let relay = RelayProcess::start_with(&store, &["--config", config]);
        let (author, now) = (Author::new(1), unix_now());
        let gone = author.note(now - 2 * 86_400, "goes");
        let stays = Author::new(2).note(now - 3_600, "stays");
        let mut client = relay.client().await;
        client.store(&gone).await;
        client.store(&stays).await;
        let at = ["--store", store.to_str().unwrap(), "--config", config];
        let run = |arguments: &[&str]| {
            let ended = negsync(&[arguments, &at[..]].concat(), "");
            assert!(ended.status.success(), "{ended:?}");
        };
        match way {
            Way::Deleted => run(&["delete", "--id", id_of(&gone)]),
            Way::Banned => run(&["ban", &author.key(), "--delete"]),
            Way::Retired => {
                let rules = "[retention]\nrules = [{ max_age_s = 86400 }]\n";
                std::fs::write(config, format!("{mirrors}{rules}")).unwrap();
                relay.signal("HUP");
                relay.logged("changed: retention.rules");
                run(&["retention"]);
            }
        }
        assert_eq!(client.query(&[json!({})]).await, std::slice::from_ref(&stays));
        Self { directory, relay, gone, stays }
    }

    /// Checks that the store contains exactly the other events.
    fn check(&self, brought_by: &str) {
        let ended = negsync(&["export", "--store", store(&self.directory).to_str().unwrap()], "");
        let left: Vec<Value> =
            ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(left, std::slice::from_ref(&self.stays), "{brought_by}: {ended:?}");
    }
}

fn store(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("events.sqlite")
}

fn config(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("relay.toml")
}

/// The number of stored events that a relay has sent.
async fn sent(relay: &RelayProcess) -> u64 {
    let address = relay.url().trim_start_matches("ws://").parse().unwrap();
    let text = http(address, "GET", "/metrics", &[]).await.body;
    let line =
        text.lines().find(|line| line.starts_with("negsync_events_sent_total{kind=\"stored\"}"));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

async fn refused(client: &mut Client, event: &Value) {
    let (accepted, text) = client.publish(event).await;
    assert!(!accepted && text.starts_with("blocked: "), "{text}");
}

async fn by_client(way: Way) {
    let kept = Kept::out(way).await;
    refused(&mut kept.relay.client().await, &kept.gone).await;
    kept.check("client");
}

async fn by_mirror(way: Way) {
    let kept = Kept::out(way).await;
    let mut client = kept.relay.client().await;
    let shown = client.authenticate(&Author::new(MIRROR), kept.relay.url()).await;
    assert_eq!(shown, (true, String::new()));
    refused(&mut client, &kept.gone).await;
    kept.check("mirror");
}

async fn by_import(way: Way) {
    let kept = Kept::out(way).await;
    kept.relay.signal("TERM");
    let events = lines(std::slice::from_ref(&kept.gone));
    let (store, config) = (store(&kept.directory), config(&kept.directory));
    for arguments in [&[][..], &["--config", config.to_str().unwrap()], &["--no-verify"]] {
        let imported = wait_for_import(&store, arguments, &events);
        assert!(imported.starts_with("0 stored, 0 duplicate, 1 refused"), "{imported}");
    }
    kept.check("import");
}

/// Imports once the relay has ended.
fn wait_for_import(store: &Path, arguments: &[&str], events: &str) -> String {
    loop {
        let ended = import(store, arguments, events);
        if !ended.stderr.contains("in use") {
            assert!(ended.status.success(), "{ended:?}");
            return ended.stdout;
        }
    }
}

async fn by_peer(way: Way) {
    let kept = Kept::out(way).await;
    let Kept { directory, relay, gone, stays } = kept;
    relay.signal("TERM");
    assert!(relay.ended().0.success());
    let other = tempfile::tempdir().unwrap();
    let peer = RelayProcess::start(&store(&other));
    peer.client().await.store(&gone).await;
    let path = store(&directory);
    let arguments = ["sync", peer.url(), "--store", path.to_str().unwrap(), "--direction", "down"];
    let before = sent(&peer).await;
    for _ in 0..2 {
        let ended = negsync(&[&arguments[..], &["--json"]].concat(), "");
        assert!(ended.status.success(), "{ended:?}");
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&report["need"], &report["stored"]), (&json!(0), &json!(0)), "{report}");
        // It is not even requested.
        assert_eq!(sent(&peer).await, before, "{report}");
    }
    let relay = RelayProcess::start(&path);
    Kept { directory, relay, gone, stays }.check("peer");
}

/// From a live peer to which the event is published after both are in sync.
async fn by_live(way: Way) {
    let Kept { directory, relay, gone, stays } = Kept::out(way).await;
    relay.signal("TERM");
    assert!(relay.ended().0.success());
    let other = tempfile::tempdir().unwrap();
    let peer = RelayProcess::start(&store(&other));
    let config = config(&directory);
    let before = std::fs::read_to_string(&config).unwrap();
    let peers = format!("[[peer]]\nurl = \"{}\"\nlive = true\n", peer.url());
    std::fs::write(&config, format!("{before}{peers}")).unwrap();
    let relay =
        RelayProcess::start_with(&store(&directory), &["--config", config.to_str().unwrap()]);
    let mut client = peer.client().await;
    // An event of ours reaches the peer, so the two are connected.
    let mut arrived = relay.client().await;
    wait_for(&mut client, &stays).await;
    client.store(&gone).await;
    let later = Author::new(3).note(unix_now() - 60, "later");
    client.store(&later).await;
    wait_for(&mut arrived, &later).await;
    assert_eq!(arrived.count(&[json!({ "ids": [id_of(&gone)] })]).await, 0);
    let address = relay.url().trim_start_matches("ws://");
    let peers: Value =
        serde_json::from_str(&negsync(&["peers", "--relay", address, "--json"], "").stdout)
            .unwrap();
    assert_eq!(peers["peers"][0]["live"], true, "{peers}");
    relay.signal("TERM");
    assert!(relay.ended().0.success());
    let ended = negsync(&["export", "--store", store(&directory).to_str().unwrap()], "");
    let left: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(left, [stays, later], "live: {ended:?}");
}

/// Waits until a relay has an event.
async fn wait_for(client: &mut Client, event: &Value) {
    let began = Instant::now();
    while client.count(&[json!({ "ids": [id_of(event)] })]).await == 0 {
        assert!(began.elapsed() < PATIENCE, "{event} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn by_hand_over(way: Way) {
    let kept = Kept::out(way).await;
    let events = lines(&[kept.gone.clone(), kept.stays.clone()]);
    let ended = negsync(&["import", "--into", kept.relay.url()], &events);
    // It reports that not all events were accepted.
    assert!(ended.stdout.starts_with("2 stored"), "{ended:?}");
    kept.check("hand-over");
}

macro_rules! each_way_and_bringer {
    ($($name:ident: $way:ident $by:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            $by(Way::$way).await;
        }
    )*};
}

each_way_and_bringer! {
    what_was_deleted_is_not_taken_from_a_client: Deleted by_client,
    what_was_deleted_is_not_fetched_from_a_peer: Deleted by_peer,
    what_was_deleted_is_not_imported: Deleted by_import,
    what_was_deleted_is_not_taken_from_a_mirror: Deleted by_mirror,
    what_was_deleted_does_not_come_live: Deleted by_live,
    what_was_deleted_is_not_handed_over: Deleted by_hand_over,
    what_was_banned_is_not_taken_from_a_client: Banned by_client,
    what_was_banned_is_not_fetched_from_a_peer: Banned by_peer,
    what_was_banned_is_not_imported: Banned by_import,
    what_was_banned_is_not_taken_from_a_mirror: Banned by_mirror,
    what_was_banned_does_not_come_live: Banned by_live,
    what_was_banned_is_not_handed_over: Banned by_hand_over,
    what_has_retired_is_not_taken_from_a_client: Retired by_client,
    what_has_retired_is_not_fetched_from_a_peer: Retired by_peer,
    what_has_retired_is_not_imported: Retired by_import,
    what_has_retired_is_not_taken_from_a_mirror: Retired by_mirror,
    what_has_retired_does_not_come_live: Retired by_live,
    what_has_retired_is_not_handed_over: Retired by_hand_over,
}

/// A sync records the ban list's refusals only as long as the list is unchanged.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_banned_is_fetched_from_a_peer_once_it_is_unbanned() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (author, peer) = (Author::new(1), RelayProcess::start(&store(&other)));
    peer.client().await.store(&author.note(unix_now() - 60, "was banned")).await;
    let path = store(&directory);
    let path = path.to_str().unwrap();
    let sync = || {
        let arguments = ["sync", peer.url(), "--store", path, "--direction", "down", "--json"];
        let ended = negsync(&arguments, "");
        assert!(ended.status.success(), "{ended:?}");
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["stored"].clone()
    };
    let run = |arguments: &[&str]| {
        let ended = negsync(&[arguments, &["--store", path]].concat(), "");
        assert!(ended.status.success(), "{ended:?}");
    };
    run(&["ban", &author.key()]);
    assert_eq!(sync(), 0);
    let before = sent(&peer).await;
    assert_eq!((sync(), sent(&peer).await), (json!(0), before), "it was asked for again");
    run(&["unban", &author.key()]);
    assert_eq!(sync(), 1);
}
