//! As a service: passed sockets, and notifications to the service manager.

use crate::support::client::Client;
use crate::support::process::RelayProcess;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio_tungstenite::connect_async;

const PATIENCE: Duration = Duration::from_secs(60);

/// `negsync relay` with a listening socket as its file descriptor 3, as a service manager starts
/// it.
fn start(socket: &TcpListener, store: &Path, set_up: impl FnOnce(&mut Command)) -> RelayProcess {
    let mut command = Command::new("sh");
    let script = "exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"";
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_negsync"), "relay", "--store"]);
    command.arg(store);
    command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    set_up(&mut command);
    RelayProcess::serving(command)
}

/// The notifications, line by line.
struct Manager {
    socket: UnixDatagram,
    told: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, told: Vec::new() }
    }

    /// Waits for the notification `line`, and drops earlier ones.
    fn wait_for(&mut self, line: &str) {
        loop {
            if let Some(place) = self.told.iter().position(|told| told.starts_with(line)) {
                self.told.drain(..=place);
                return;
            }
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("{line} is not told: {error}; but {:?}", self.told);
            });
            let message = std::str::from_utf8(&buffer[..length]).unwrap();
            self.told.extend(message.lines().map(str::to_owned));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_serves_the_socket_it_is_given_and_says_how_it_stands() {
    let directory = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let config = directory.path().join("relay.toml");
    std::fs::write(&config, "[relay]\nlisten = \"127.0.0.1:1\"\n").unwrap();
    let notify = directory.path().join("notify");
    let mut manager = Manager::at(&notify);
    let relay = start(&socket, &directory.path().join("events.sqlite"), |command| {
        command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "20000");
        command.arg("--config").arg(&config);
    });
    assert_eq!(relay.url(), format!("ws://{address}"));
    manager.wait_for("READY=1");
    Client::connect(relay.url()).await.fence().await;
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    relay.signal("HUP");
    for line in ["RELOADING=1", "MONOTONIC_USEC=", "READY=1", "WATCHDOG=1"] {
        manager.wait_for(line);
    }
    relay.signal("TERM");
    manager.wait_for("STOPPING=1");
    let (status, log) = relay.ended();
    assert!(status.success(), "{log}");
    assert!(log.contains("relay.listen and --listen are not used"), "{log}");
}

/// Connects and sends a request repeatedly until `end`; each failure is a refused client.
async fn keep_connecting(address: SocketAddr, end: Arc<AtomicBool>, connected: Arc<AtomicUsize>) {
    while !end.load(Ordering::SeqCst) {
        let (mut socket, _) = connect_async(format!("ws://{address}"))
            .await
            .unwrap_or_else(|error| panic!("a client was refused: {error}"));
        connected.fetch_add(1, Ordering::SeqCst);
        // The relay may close at any time; the client then connects again.
        let _ = socket.close(None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_refuses_no_connection() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("events.sqlite");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let (end, connected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|_| tokio::spawn(keep_connecting(address, Arc::clone(&end), Arc::clone(&connected))))
        .collect();
    for _ in 0..6 {
        // They wait in the socket's queue until the relay has started.
        let relay = start(&socket, &store, |_| {});
        let before = connected.load(Ordering::SeqCst);
        while connected.load(Ordering::SeqCst) < before + 50 {
            assert!(clients.iter().all(|client| !client.is_finished()), "a client was refused");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        relay.signal("TERM");
        let (status, log) = tokio::task::spawn_blocking(|| relay.ended()).await.unwrap();
        assert!(status.success(), "{log}");
    }
    let relay = start(&socket, &store, |_| {});
    end.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    drop(relay);
}
