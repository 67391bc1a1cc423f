//! Faults between `negsync attach` and the PostgreSQL server: each is reported with a hint, sets
//! are refused or correct, and everything recovers by itself.

use super::on_postgres::{Sidecar, public, server};
use super::stored_relay::StoredRelay;
use crate::support::Client;
use crate::support::events::{Author, EPOCH, unix_now};
use crate::support::model;
use crate::support::negentropy_client::{EMPTY_SET, reconcile};
use crate::support::process::negsync;
use negsync_testserver::{RelayTables, run};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Timeout for reading everything again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The answer to NEG-OPEN: the ids of a set, or the reason of a refusal.
async fn ask(client: &mut Client) -> Result<BTreeSet<String>, String> {
    match reconcile(client, &json!({}), [], 0).await {
        Ok(difference) => Ok(difference.need),
        Err(refused) => Err(refused[2].as_str().unwrap().to_owned()),
    }
}

/// Retries until a set is answered, which must be correct; every refusal before it must be an
/// `error:`.
async fn until_answered(client: &mut Client, relay: &StoredRelay) -> Vec<String> {
    let mut refusals = Vec::new();
    let began = Instant::now();
    loop {
        match ask(client).await {
            Ok(ids) => {
                assert_eq!(ids, shown(relay));
                return refusals;
            }
            Err(reason) => {
                assert!(reason.starts_with("error: "), "{reason}");
                assert!(began.elapsed() < PATIENCE, "{reason}");
                refusals.push(reason);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

fn shown(relay: &StoredRelay) -> BTreeSet<String> {
    model::ids(&public(&relay.visible(unix_now())))
}

/// Stores a note directly, so that each set differs from the previous one.
fn write(relay: &StoredRelay, second: u64) {
    let note = Author::new(1).note(EPOCH + second, "written beside the relay");
    relay.tables.publish(&note).iter().for_each(|statement| relay.run(statement));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_is_waited_for_and_sets_are_right_afterwards() {
    let Some(mut server) = tokio::task::block_in_place(server) else { return };
    let url = tokio::task::block_in_place(|| server.database());
    let relay = StoredRelay::start(RelayTables::Nostream, url).await;
    write(&relay, 0);
    let sidecar = Sidecar::before(&relay);
    let mut client = sidecar.client().await;
    until_answered(&mut client, &relay).await;

    // Killed: sets are refused meanwhile, and the rest of the relay's traffic is unaffected.
    let mut refused = None;
    tokio::task::block_in_place(|| {
        server.restart_after(|| {
            refused = Some(tokio::runtime::Handle::current().block_on(ask(&mut client)));
        });
    });
    let refused = refused.unwrap().unwrap_err();
    assert!(refused.starts_with("error: "), "{refused}");
    write(&relay, 1);
    until_answered(&mut client, &relay).await;
    sidecar.process.logged("feed lost: reading all events again");
    sidecar.process.logged("feed restored: all events were read again");

    // The connection with the slot is terminated.
    relay.run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
    write(&relay, 2);
    until_answered(&mut client, &relay).await;
    sidecar.process.logged("max_slot_wal_keep_size");

    // The publication is dropped, and created again by a user with the right.
    relay.run("DROP PUBLICATION negsync_attach");
    write(&relay, 3);
    until_answered(&mut client, &relay).await;
    sidecar.process.logged("is not published any more");

    // The table loses a required column, and gets it back. A change of a row reveals it.
    relay.run("ALTER TABLE events RENAME deleted_at TO removed_at");
    relay.run("UPDATE events SET first_seen = now()");
    assert!(ask(&mut client).await.unwrap_err().starts_with("error: "));
    sidecar.process.logged("the table events has no column deleted_at; only nostream 3 is known");
    assert!(ask(&mut client).await.unwrap_err().starts_with("error: "));
    relay.run("ALTER TABLE events RENAME removed_at TO deleted_at");
    until_answered(&mut client, &relay).await;
}

/// A Unix socket that forwards to the server's, and can stall.
struct StallingSocket {
    folder: tempfile::TempDir,
    stalls: Arc<Mutex<bool>>,
}

impl StallingSocket {
    /// `server` is the server's own folder.
    fn before(server: &Path) -> Self {
        const NAME: &str = ".s.PGSQL.5432";
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(NAME)).unwrap();
        let (stalls, target) = (Arc::new(Mutex::new(false)), server.join(NAME));
        let is_stalled = Arc::clone(&stalls);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let Ok(server) = UnixStream::connect(&target) else { continue };
                for (from, to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let is_stalled = Arc::clone(&is_stalled);
                    std::thread::spawn(move || pass_on(from, to, &is_stalled));
                }
            }
        });
        Self { folder, stalls }
    }
}

fn pass_on(mut from: UnixStream, mut to: UnixStream, stalls: &Mutex<bool>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if *stalls.lock().unwrap() || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    // Neither side sees that the other has disconnected.
    while *stalls.lock().unwrap() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_drops_everything_is_noticed_and_sets_are_right_when_it_is_back() {
    let Some(server) = tokio::task::block_in_place(server) else { return };
    let url = tokio::task::block_in_place(|| server.database());
    let mut relay = StoredRelay::start(RelayTables::NostrRsRelay, url.clone()).await;
    write(&relay, 0);
    let socket = StallingSocket::before(server.folder().unwrap());
    let own = server.folder().unwrap().to_str().unwrap().replace('/', "%2F");
    let through = socket.folder.path().to_str().unwrap().replace('/', "%2F");
    relay.database_url = url.replace(&own, &through);
    let sidecar = Sidecar::before(&relay);
    relay.database_url = url;
    let mut client = sidecar.client().await;
    until_answered(&mut client, &relay).await;
    *socket.stalls.lock().unwrap() = true;
    write(&relay, 1);
    client.send(&json!(["NEG-OPEN", "n", {}, EMPTY_SET])).await;
    sidecar.process.logged_within("no answer from the server for", 0, PATIENCE);
    let refused = client.next("NEG-ERR").await;
    assert_eq!(
        (&refused[0], refused[2].as_str().unwrap().starts_with("error: ")),
        (&json!("NEG-ERR"), true)
    );
    *socket.stalls.lock().unwrap() = false;
    until_answered(&mut client, &relay).await;
}

/// The error of `negsync attach` when it does not start.
fn refusal(url: &str, password: &str) -> String {
    let database = format!("nostream:{}", url.replace("@", &format!(":{password}@")));
    let arguments =
        ["attach", "--attach", &database, "--url", "ws://127.0.0.1:9", "--listen", "127.0.0.1:0"];
    let ended = negsync(&arguments, "");
    assert!(!ended.status.success(), "{ended:?}");
    assert!(!ended.stderr.contains(password) && !ended.stdout.contains(password), "{ended:?}");
    ended.stderr
}

#[test]
fn what_a_server_does_not_allow_is_named_with_what_to_do() {
    let Some(mut server) = server() else { return };
    let schema = RelayTables::Nostream.schema();
    let role = "CREATE ROLE follower LOGIN";
    let rights = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO follower";
    let published = "CREATE PUBLICATION negsync_attach FOR TABLE events";
    for (statements, expected) in [
        (format!("{schema} {role}"), "run ALTER ROLE \"follower\" REPLICATION"),
        (
            format!("{schema} ALTER ROLE follower REPLICATION"),
            "run GRANT SELECT ON events TO \"follower\"",
        ),
        (
            format!("{schema} {rights}"),
            "as the table's owner run CREATE PUBLICATION negsync_attach FOR TABLE events",
        ),
        (
            format!("{schema} {rights}; {published} WITH (publish = 'insert')"),
            "the publication negsync_attach leaves something out",
        ),
        (
            format!("{schema} {rights}; {published} (id, event_id)"),
            "the publication negsync_attach leaves something out",
        ),
        (
            format!("{schema} {rights}; {published} WHERE (event_kind <> 1)"),
            "the publication negsync_attach leaves something out",
        ),
        (
            format!("{schema} {rights}; {published}; ALTER TABLE events REPLICA IDENTITY NOTHING"),
            "has no primary key id as its replica identity",
        ),
        (String::new(), "it has no table events"),
    ] {
        let url = server.database();
        run(&url, &statements).unwrap();
        let said = refusal(&url.replace("postgres@", "follower@"), "hush-hush");
        assert!(said.contains(expected), "{said}");
    }
    let url = server.database();
    run(&url, schema).unwrap();
    server.restart_with(&[("wal_level", "replica")]);
    assert!(refusal(&url, "hush-hush").contains("run ALTER SYSTEM SET wal_level = logical"));
    drop(server);
    let said = refusal(&url, "hush-hush");
    assert!(said.contains("cannot be read"), "{said}");
}
