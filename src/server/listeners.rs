//! The listening sockets of a server: bound as configured, or passed in.

use crate::config::ListenAddress;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use tokio::net::{TcpListener, lookup_host};

/// Attempts to find a port that is free on all addresses.
const PORT_TRIES: usize = 8;

/// Listening sockets and their addresses; at least one.
pub(crate) struct Listeners {
    pub(crate) sockets: Vec<TcpListener>,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Listeners {
    /// Binds every configured address, all with the same port.
    ///
    /// # Errors
    /// When the name cannot be resolved, an address is in use, or none is this machine's.
    pub(crate) async fn bind(listen: &ListenAddress) -> io::Result<Self> {
        let mut tries = 1;
        loop {
            match Self::bind_once(listen).await {
                // The system chose the port, and it is in use on another address.
                Err(error)
                    if listen.port() == 0
                        && error.kind() == ErrorKind::AddrInUse
                        && tries < PORT_TRIES =>
                {
                    tries += 1;
                }
                bound => return Self::of(bound?),
            }
        }
    }

    /// Uses sockets that are listening already.
    ///
    /// # Errors
    /// When there is none, or one of them is not a listening socket.
    pub(crate) fn handed_over(sockets: Vec<std::net::TcpListener>) -> io::Result<Self> {
        let take = |socket: std::net::TcpListener| {
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        };
        Self::of(sockets.into_iter().map(take).collect::<io::Result<_>>()?)
    }

    fn of(sockets: Vec<TcpListener>) -> io::Result<Self> {
        let addresses = sockets.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        if sockets.is_empty() {
            return Err(io::Error::new(ErrorKind::AddrNotAvailable, "there is no address"));
        }
        Ok(Self { sockets, addresses })
    }

    async fn bind_once(listen: &ListenAddress) -> io::Result<Vec<TcpListener>> {
        let mut candidates = match (listen.literal(), listen.name()) {
            (Some(addresses), _) => addresses,
            (None, name) => lookup_host((name.unwrap_or_default(), listen.port())).await?.collect(),
        };
        candidates.dedup();
        let mut bound: Vec<TcpListener> = Vec::new();
        let mut missing = None;
        for mut address in candidates {
            if let Some(first) = bound.first() {
                // The IPv6 wildcard accepts IPv4 connections too.
                if listen.name().is_none() {
                    break;
                }
                address.set_port(first.local_addr()?.port());
            }
            match TcpListener::bind(address).await {
                Ok(socket) => bound.push(socket),
                // A name may resolve to an address that this machine lacks, such as ::1 in a
                // container.
                Err(error) if is_not_here(&error) => {
                    tracing::debug!(%address, %error, "address not on this machine");
                    missing = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match missing {
            Some(error) if bound.is_empty() => Err(error),
            _ => Ok(bound),
        }
    }
}

/// Whether this machine lacks the address or its address family.
fn is_not_here(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
