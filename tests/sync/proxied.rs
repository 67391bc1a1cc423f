//! Peers behind a proxy, which resolves their names.

use super::support::*;
use crate::support::process::negsync;
use negsync::admission::Admission;
use negsync::config::{Config, PeerConfig, Via};
use negsync::sync::{Local, Schedule, SyncError};
use serde_json::json;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LOGIN: &str = "me:se%2Fcret@";

/// A proxy that connects every name to one relay.
struct Proxy {
    address: SocketAddr,
    /// The requested names.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(scheme: &'static str, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let name = match scheme {
                        "socks5" => socks5(&mut client).await?,
                        _ => http_connect(&mut client).await?,
                    };
                    seen.lock().unwrap().push(name);
                    let mut relay = TcpStream::connect(target).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut relay).await
                });
            }
        });
        Self { address, asked }
    }

    fn via(&self, scheme: &str, login: &str) -> Via {
        Via::parse(&format!("{scheme}://{login}{}", self.address)).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// RFC 1928 and RFC 1929, as far as names need them.
async fn socks5(client: &mut TcpStream) -> io::Result<String> {
    let refused = || io::Error::other("not what the test expects");
    assert_eq!(client.read_u8().await?, 5);
    let mut methods = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut methods).await?;
    let mut login = String::new();
    if methods.contains(&2) {
        client.write_all(&[5, 2]).await?;
        assert_eq!(client.read_u8().await?, 1);
        for end in [":", "@"] {
            let mut part = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut part).await?;
            login += &(String::from_utf8(part).unwrap() + end);
        }
        client.write_all(&[1, 0]).await?;
    } else {
        client.write_all(&[5, 0]).await?;
    }
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    // An IP address instead of a name must not be sent.
    if head != [5, 1, 0, 3] {
        return Err(refused());
    }
    let mut name = vec![0; client.read_u8().await?.into()];
    client.read_exact(&mut name).await?;
    let port = client.read_u16().await?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    Ok(format!("{login}{}:{port}", String::from_utf8(name).unwrap()))
}

/// RFC 9110, section 9.3.6.
async fn http_connect(client: &mut TcpStream) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        head.push(client.read_u8().await?.into());
    }
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let login = head.lines().find_map(|line| line.strip_prefix("proxy-authorization: Basic "));
    // "me:se/cret"
    let login = match login {
        Some("bWU6c2UvY3JldA==") => "me:se/cret@",
        None => "",
        other => panic!("{other:?}"),
    };
    let name = head.strip_prefix("CONNECT ").and_then(|rest| rest.split_once(" HTTP/1.1\r\n"));
    Ok(format!("{login}{}", name.unwrap().0))
}

/// Our side, with a proxy.
fn through(store: &TestStore, via: Via) -> Local {
    let mut config = Config::default();
    config.sync.proxy = via;
    Local::configured(store.index.clone(), Admission::start(config).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_told_the_name_of_the_peer_and_nothing_is_looked_up_here() {
    let relay = TestRelay::holding(&notes(170, 30)).await;
    for scheme in ["socks5", "http"] {
        let proxy = Proxy::start(scheme, relay.relay.address()).await;
        for (login, shown) in [("", ""), (LOGIN, "me:se/cret@")] {
            let mut store = TestStore::new(&notes(171, 5));
            store.local = through(&store, proxy.via(scheme, login));
            // Names of either kind are reachable only through the proxy.
            for (url, name) in [
                ("ws://relay.invalid:7000", "relay.invalid:7000"),
                ("ws://abcdefghijklmnop.onion", "abcdefghijklmnop.onion:80"),
            ] {
                let report = sync_all(&store, url).await;
                assert!(report.complete && report.equal, "{report:?}");
                // The NIP-11 document and the WebSocket.
                assert_eq!(proxy.asked(), vec![format!("{shown}{name}"); 2], "{scheme}");
            }
            assert_same(&store.ids(), &relay.ids(), scheme);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_onion_service_without_a_proxy_is_refused_and_not_looked_up() {
    let store = TestStore::new(&[]);
    for url in ["ws://abc.onion", "wss://sub.ABC.Onion.:81/x"] {
        let refused = negsync::sync::sync(&store.local, url, &Default::default(), |_| {}).await;
        assert!(matches!(refused, Err(SyncError::OnionWithoutProxy { .. })), "{refused:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite");
    let ended = negsync(&["sync", "ws://abc.onion", "--store", path.to_str().unwrap()], "");
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("sync.proxy"), "{ended:?}");
    // A relay with such a peer does not start, or keeps its configuration.
    let mut config = Config::default();
    config.peers = vec![PeerConfig::new("ws://abc.onion".parse().unwrap())];
    assert!(matches!(Schedule::check(&config), Err(SyncError::OnionWithoutProxy { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_not_there_is_named_without_its_password() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.sqlite").display().to_string();
    let proxy = format!("socks5://{LOGIN}127.0.0.1:{port}");
    let arguments = ["sync", "ws://relay.invalid", "--store", &path, "--proxy", &proxy];
    let arguments = arguments.map(str::to_owned);
    let ended =
        tokio::task::spawn_blocking(move || negsync(&arguments.each_ref().map(String::as_str), ""));
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    let words = format!("the proxy socks5://127.0.0.1:{port} leads to no relay.invalid");
    assert!(ended.stdout.contains(&words), "{ended:?}");
    assert!(!format!("{ended:?}").contains("cret"), "{ended:?}");
}

/// One of two peers has its own proxy, several filters and a limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_its_own_proxy_filters_and_limits() {
    let [one, other] = [TestRelay::holding(&notes(172, 20)).await, TestRelay::holding(&[]).await];
    let kinds = [0, 1, 7, 30_023].map(|kind| event(&Author::new(7), kind, START, json!([]), "x"));
    fill(other.relay.index(), &kinds);
    let proxy = Proxy::start("socks5", other.relay.address()).await;
    let text = format!(
        "[[peer]]\nurl = {:?}\n[[peer]]\nurl = \"ws://other.onion\"\nproxy = \"socks5://{}\"\n\
         filter = [{{ kinds = [0] }}, {{ kinds = [7, 30023] }}]\nmax_up_kib_s = 16\nmax_down_kib_s = 64\n",
        one.url(),
        proxy.address
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    std::fs::write(&path, text).unwrap();
    let config = Config::read(&path).unwrap();
    assert_eq!(config.peers[1].max_down_kib_s, Some(64));
    let relay = TestRelay::holding(&[]).await;
    relay.relay.reload(config).unwrap();
    let admission = relay.relay.admission();
    let schedule = Schedule::start(relay.relay.index(), admission, relay.relay.peers()).unwrap();
    let expected = 20 + 3;
    let converged = async {
        while relay.ids().len() != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, converged).await.expect("no convergence");
    let names: Vec<String> =
        relay.relay.peers().all(0).into_iter().map(|status| status.name).collect();
    let one = one.url();
    assert_eq!(names, [one.as_str(), "ws://other.onion", "ws://other.onion#2"]);
    let asked = proxy.asked();
    assert!(asked.len() >= 4 && asked.iter().all(|name| name == "other.onion:80"), "{asked:?}");
    schedule.stop().await;
}
