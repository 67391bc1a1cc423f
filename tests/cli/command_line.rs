//! The output of `negsync` about itself, and the start of `negsync relay`.

use crate::support::client::Client;
use crate::support::process::{RelayProcess, negsync};
use serde_json::json;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::process::Command;

#[test]
fn version_and_help_are_there() {
    let version = negsync(&["--version"], "");
    assert!(version.status.success());
    assert_eq!(version.stdout, format!("negsync {}\n", env!("CARGO_PKG_VERSION")));
    let help = negsync(&["--help"], "");
    for command in ["relay", "import", "export"] {
        assert!(help.stdout.contains(command), "{}", help.stdout);
        let help = negsync(&[command, "--help"], "");
        assert!(help.status.success() && help.stdout.contains("--store"), "{}", help.stdout);
    }
    let unknown = negsync(&["frobnicate"], "");
    assert!(!unknown.status.success() && unknown.stderr.contains("frobnicate"));
}

#[test]
fn a_taken_address_stops_the_start_with_its_name() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let ended = negsync(&["relay", "--store", store.to_str().unwrap(), "--listen", &address], "");
    assert!(!ended.status.success() && ended.stderr.contains(&address), "{}", ended.stderr);
}

#[test]
fn what_cannot_be_a_store_is_named_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let text = directory.path().join("notes.txt");
    let content = "no database, but somebody's notes, longer than the header of SQLite is\n";
    std::fs::write(&text, content.repeat(20)).unwrap();
    let other = directory.path().join("other.sqlite");
    let connection = rusqlite::Connection::open(&other).unwrap();
    connection.execute_batch("CREATE TABLE event (id TEXT); PRAGMA user_version = 1;").unwrap();
    drop(connection);
    let newer = directory.path().join("newer.sqlite");
    assert!(negsync(&["import", "--store", newer.to_str().unwrap()], "").status.success());
    let connection = rusqlite::Connection::open(&newer).unwrap();
    connection.execute_batch("PRAGMA user_version = 99;").unwrap();
    drop(connection);
    let missing = directory.path().join("missing").join("events.sqlite");
    for (path, reason) in [
        (&text, "not a database"),
        (&other, "not a negsync store"),
        (&newer, "store version 99"),
        (&missing, ""),
    ] {
        let before = std::fs::read(path).unwrap_or_default();
        for command in ["relay", "import", "export"] {
            let mut arguments = vec![command, "--store", path.to_str().unwrap()];
            if command == "relay" {
                arguments.extend(["--listen", "127.0.0.1:0"]);
            }
            let ended = negsync(&arguments, "");
            assert!(!ended.status.success(), "{command} {}", path.display());
            let named = ended.stderr.contains(path.to_str().unwrap());
            assert!(named && ended.stderr.contains(reason), "{command}: {}", ended.stderr);
            let said = ended.stderr.matches(reason).count();
            assert!(reason.is_empty() || said == 1, "said {said} times: {}", ended.stderr);
            assert_eq!(std::fs::read(path).unwrap_or_default(), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_serves_where_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let relay = RelayProcess::start(&directory.path().join("events.sqlite"));
    let mut client = relay.client().await;
    let answer = client.ask(&json!(["NEG-OPEN", "n", {}, "6100000200"])).await;
    assert_eq!(answer, json!(["NEG-MSG", "n", "6100000200"]));
}

/// The addresses of a name that this machine has.
fn addresses_of(name: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = (name, 0)
        .to_socket_addrs()
        .unwrap()
        .filter(|address| TcpListener::bind(address).is_ok())
        .map(|address| address.ip())
        .collect();
    found.dedup();
    found
}

fn listening(store: &Path, listen: &str) -> RelayProcess {
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.args(["relay", "--store", store.to_str().unwrap(), "--listen", listen]);
    RelayProcess::serving(command)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_served_on_all_its_addresses_and_a_port_alone_on_every_address() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let served_on = async |relay: &RelayProcess, addresses: &[IpAddr]| {
        let port = relay.url().rsplit_once(':').unwrap().1.parse().unwrap();
        for address in addresses {
            let url = format!("ws://{}", SocketAddr::new(*address, port));
            Client::connect(&url).await.fence().await;
        }
    };
    let addresses = addresses_of("localhost");
    let relay = listening(&store, "localhost:0");
    served_on(&relay, &addresses).await;
    drop(relay);
    let relay = listening(&store, ":0");
    served_on(&relay, &addresses).await;
}

#[test]
fn an_address_that_is_none_is_refused_with_examples() {
    for (listen, said) in [
        ("7777", "localhost:7777"),
        ("127.0.0.1", "localhost:7777"),
        ("127.0.0.1:70000", "localhost:7777"),
        ("no-such-name.invalid:7777", "cannot listen on no-such-name.invalid:7777"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("events.sqlite");
        let arguments = ["relay", "--store", store.to_str().unwrap(), "--listen", listen];
        let ended = negsync(&arguments, "");
        assert!(!ended.status.success() && ended.stderr.contains(said), "{}", ended.stderr);
    }
}
