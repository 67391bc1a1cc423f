//! The memory of an idle connection, in bytes allocated. A binary of its own, because the allocator
//! is global to a process.

use negsync::config::Config;
use negsync::relay::Relay;
use std::alloc::{GlobalAlloc, Layout};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tikv_jemallocator::{Jemalloc, usable_size};

const CONNECTIONS: usize = 5_000;
/// Maximum memory of a connection.
const CONNECTION_BYTES: usize = 4 << 10;
/// Descriptors that this process needs in addition to both ends of each connection.
const OTHER_DESCRIPTORS: usize = 200;

/// The relay's allocator, with a count of the allocated bytes by size class.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: Jemalloc does the work, and is given what this is given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let at = unsafe { Jemalloc.alloc(layout) };
        if !at.is_null() {
            // SAFETY: it has just been allocated.
            ALLOCATED.fetch_add(unsafe { usable_size(at) }, Ordering::Relaxed);
        }
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: it was allocated above.
        unsafe {
            ALLOCATED.fetch_sub(usable_size(at), Ordering::Relaxed);
            Jemalloc.dealloc(at, layout);
        }
    }
}

/// A client after the WebSocket upgrade and the challenge. It keeps nothing on the heap.
fn connect(to: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(to).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.write_all(request.as_bytes()).unwrap();
    let mut last = [0; 4];
    while &last != b"\r\n\r\n" {
        last.rotate_left(1);
        client.read_exact(&mut last[3..]).unwrap();
    }
    let mut head = [0; 2];
    client.read_exact(&mut head).unwrap();
    let mut challenge = [0; 125];
    client.read_exact(&mut challenge[..usize::from(head[1])]).unwrap();
    assert!(challenge.starts_with(br#"["AUTH""#));
    client
}

/// The number of connections of which this process can have both ends, up to the wanted number.
fn connections() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both take a limit that lives as long as the call.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max.min(1 << 20);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
    };
    assert_eq!(raised, 0);
    let descriptors = usize::try_from(limit.rlim_cur).unwrap();
    CONNECTIONS.min((descriptors - OTHER_DESCRIPTORS) / 2)
}

#[test]
fn an_idle_connection_takes_4_kib() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.relay.listen = "127.0.0.1:0".parse().unwrap();
    config.store.path = directory.path().join("events.sqlite");
    config.connections.in_all = 2 * CONNECTIONS;
    config.connections.per_address = 2 * CONNECTIONS;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let relay = runtime.block_on(Relay::start(config)).unwrap();
    let count = connections();
    let mut clients = Vec::with_capacity(count);
    // Threads and tables that the first connections create do not count.
    let first = count / 50;
    clients.extend((0..first).map(|_| connect(relay.address())));
    let before = ALLOCATED.load(Ordering::Relaxed);
    clients.extend((first..count).map(|_| connect(relay.address())));
    // Memory used during the start of a connection is freed shortly after.
    let patience = Instant::now() + Duration::from_secs(60);
    let mut each = usize::MAX;
    while each > CONNECTION_BYTES && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
        each = ALLOCATED.load(Ordering::Relaxed).saturating_sub(before) / (count - first);
    }
    println!("an idle connection: {each} bytes, of {count}");
    assert!(each <= CONNECTION_BYTES, "{each} bytes");
    runtime.block_on(relay.stop());
}
