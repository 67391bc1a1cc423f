//! The two ends that a tunnel joins: how much is read of one at a time, and how long the other may
//! take nothing.

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

/// What is read at a time.
pub(super) const READ_BYTES: usize = 32 << 10;

/// The way from a client or a relay.
pub(super) type Reading = ReadHalf<TokioIo<Upgraded>>;

/// The way to a client or a relay, which fails when nothing is taken for too long: whoever is not
/// read meanwhile cannot tell.
pub(super) struct ProxySocket {
    writing: WriteHalf<TokioIo<Upgraded>>,
    patience: Duration,
}

/// Both ways of a connection.
pub(super) fn split(upgraded: Upgraded, patience: Duration) -> (Reading, ProxySocket) {
    let (reading, writing) = tokio::io::split(TokioIo::new(upgraded));
    (reading, ProxySocket { writing, patience })
}

impl ProxySocket {
    /// How long nothing may be taken.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Sends all of it.
    ///
    /// # Errors
    /// `TimedOut` when nothing is taken for too long, and what the socket says.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = tokio::time::timeout(self.patience, self.writing.write(bytes)).await??;
            match bytes.get(taken..) {
                Some(rest) if taken > 0 => bytes = rest,
                _ => return Err(io::ErrorKind::WriteZero.into()),
            }
        }
        Ok(())
    }

    /// Sends nothing more.
    ///
    /// # Errors
    /// What the socket says.
    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        self.writing.shutdown().await
    }
}
