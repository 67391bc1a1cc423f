//! The client side of the control socket.

use super::socket::ControlSocket;
use super::{ControlAnswer, ControlError, ControlReport, ControlRequest};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Sends a request to the relay that runs on the store in `store`, and waits until it is done.
/// Blocks.
///
/// # Errors
/// [`ControlError`] when no relay is reached or it refuses the request.
pub fn ask(store: &Path, request: &ControlRequest) -> Result<ControlReport, ControlError> {
    let unreachable =
        |source| ControlError::Unreachable { path: store.with_added_extension("control"), source };
    let socket = ControlSocket::beside(store).map_err(unreachable)?;
    let lost = |source| ControlError::Unreachable { path: socket.path.clone(), source };
    let mut stream = UnixStream::connect(&socket.address).map_err(lost)?;
    let mut line = serde_json::to_string(request).map_err(|error| lost(error.into()))?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(lost)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(lost)?;
    match serde_json::from_str(&answer) {
        Ok(ControlAnswer::Done(report)) => Ok(report),
        Ok(ControlAnswer::Refused(reason)) => Err(ControlError::Refused(reason)),
        Err(_) => Err(lost(io::Error::from(io::ErrorKind::UnexpectedEof))),
    }
}
