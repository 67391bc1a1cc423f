//! The relay's side of the control socket: one connection at a time, with one request each.

use super::socket::ControlSocket;
use super::{ControlAnswer, ControlRequest, perform};
use crate::store::EventStore;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

/// Maximum length of a request: about 100,000 ids.
const REQUEST_BYTES: u64 = 8 << 20;
/// Timeout for receiving a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens until it is dropped.
pub(crate) struct ControlServer {
    socket: ControlSocket,
    listening: AbortHandle,
}

impl ControlServer {
    /// Listens beside the store in `path`, which this process must have open for writing. Must be
    /// called inside a runtime.
    pub(crate) fn start(path: &Path, store: Arc<dyn EventStore>) -> io::Result<Self> {
        let socket = ControlSocket::beside(path)?;
        // The socket is left over: the store's lock shows that its listener has ended.
        if socket.path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket()) {
            std::fs::remove_file(&socket.path)?;
        }
        let listener = UnixListener::bind(&socket.address)?;
        std::fs::set_permissions(&socket.path, Permissions::from_mode(0o600))?;
        let owner = path.metadata()?;
        let owner = std::os::unix::fs::MetadataExt::uid(&owner);
        let listening = tokio::spawn(listen(listener, store, owner)).abort_handle();
        Ok(Self { socket, listening })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.listening.abort();
        let _ = std::fs::remove_file(&self.socket.path);
    }
}

async fn listen(listener: UnixListener, store: Arc<dyn EventStore>, owner: u32) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = serve(stream, &store, owner).await {
                    tracing::debug!(%error, "control connection lost");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "control socket: no connection can be accepted");
                tokio::time::sleep(REQUEST_TIMEOUT).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, store: &Arc<dyn EventStore>, owner: u32) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    // The permissions of the socket enforce this too, but only some moments after its creation.
    if user != 0 && user != owner {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let (reading, mut writing) = stream.split();
    let mut line = String::new();
    let mut reading = BufReader::new(reading.take(REQUEST_BYTES));
    tokio::time::timeout(REQUEST_TIMEOUT, reading.read_line(&mut line)).await??;
    let answer = follow(Arc::clone(store), line).await;
    let mut line = serde_json::to_string(&answer)?;
    line.push('\n');
    tokio::time::timeout(REQUEST_TIMEOUT, writing.write_all(line.as_bytes())).await?
}

async fn follow(store: Arc<dyn EventStore>, line: String) -> ControlAnswer {
    let request: ControlRequest = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return ControlAnswer::Refused(format!("not a request: {error}")),
    };
    let performed = tokio::task::spawn_blocking(move || {
        let done = perform(&*store, &request);
        if let Ok(report) = &done {
            let name = request.name();
            let (ids, removed) = (report.ids, report.removed);
            tracing::info!(request = name, ids, removed, "operator's request followed");
        }
        done
    });
    match performed.await {
        Ok(Ok(report)) => ControlAnswer::Done(report),
        Ok(Err(error)) => ControlAnswer::Refused(error.to_string()),
        Err(_) => ControlAnswer::Refused("the request could not be followed".to_owned()),
    }
}

impl ControlRequest {
    fn name(&self) -> &'static str {
        match self {
            Self::Delete(_) => "delete",
            Self::Undelete(_) | Self::UndeleteAll => "undelete",
            Self::Retire => "retire",
        }
    }
}
