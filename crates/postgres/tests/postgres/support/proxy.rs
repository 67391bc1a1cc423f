//! The network between a store and its server, which a test can interrupt: a TCP proxy before the
//! server's socket.

use negsync_testserver::TestServer;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Interval at which a stalled connection checks whether to continue.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// The faults of current and later connections.
#[derive(Default)]
pub struct Network {
    /// Bytes are accepted and not passed on.
    pub is_stalled: AtomicBool,
    /// Connections are refused.
    pub is_cut: AtomicBool,
    /// The answer to the next COMMIT of a writer is lost with its connection.
    pub loses_commit_answer: AtomicBool,
    /// LISTEN is refused.
    pub has_no_listen: AtomicBool,
    /// The number of bytes that the server has sent.
    pub bytes_down: AtomicUsize,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Network {
    /// Ends every connection.
    pub fn drop_all(&self) {
        for socket in self.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Starts a proxy before the server; returns the URL of the same database through it.
pub fn start(server: &mut TestServer) -> (Arc<Network>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let network = Arc::<Network>::default();
    let (accepting, socket) = (Arc::clone(&network), server.server().socket());
    std::thread::spawn(move || accept(&listener, &accepting, &socket));
    let database = server.database_name();
    // A server that is silent for this long counts as lost.
    let patience = "connect_timeout=2&tcp_user_timeout=500&sslmode=disable";
    (network, format!("postgres://postgres@127.0.0.1:{port}/{database}?{patience}"))
}

fn accept(listener: &TcpListener, network: &Arc<Network>, socket: &Path) {
    for client in listener.incoming().flatten() {
        if network.is_cut.load(Ordering::Relaxed) {
            continue;
        }
        let Ok(server) = UnixStream::connect(socket) else { continue };
        network.sockets.lock().unwrap().push(client.try_clone().unwrap());
        let loses = Arc::<AtomicBool>::default();
        let (to_server, from_server) = (server.try_clone().unwrap(), server);
        let (to_client, from_client) = (client.try_clone().unwrap(), client);
        let (up, losing) = (Arc::clone(network), Arc::clone(&loses));
        std::thread::spawn(move || pass_up(&up, from_client, to_server, &losing));
        let down = Arc::clone(network);
        std::thread::spawn(move || pass_down(&down, from_server, to_client, &loses));
    }
}

fn wait_while_stalled(network: &Network) {
    while network.is_stalled.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Passes on the client's bytes.
fn pass_up(network: &Network, mut client: TcpStream, mut server: UnixStream, loses: &AtomicBool) {
    let (mut bytes, mut is_writer) = ([0; 16_384], false);
    while let Ok(count @ 1..) = client.read(&mut bytes) {
        wait_while_stalled(network);
        let passed = &mut bytes[..count];
        is_writer |= position(passed, b"FOR UPDATE").is_some();
        if is_writer
            && position(passed, b"COMMIT\0").is_some()
            && network.loses_commit_answer.swap(false, Ordering::Relaxed)
        {
            loses.store(true, Ordering::Relaxed);
        }
        if network.has_no_listen.load(Ordering::Relaxed)
            && let Some(at) = position(passed, b"LISTEN ")
        {
            passed[at] = b'X';
        }
        if server.write_all(passed).is_err() {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

/// Passes on the server's bytes.
fn pass_down(network: &Network, mut server: UnixStream, mut client: TcpStream, loses: &AtomicBool) {
    let mut bytes = [0; 16_384];
    while let Ok(count @ 1..) = server.read(&mut bytes) {
        wait_while_stalled(network);
        let passed = &bytes[..count];
        if loses.load(Ordering::Relaxed) {
            // The transaction is committed.
            if position(passed, b"COMMIT\0").is_some() {
                break;
            }
            continue;
        }
        network.bytes_down.fetch_add(count, Ordering::Relaxed);
        if client.write_all(passed).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}
