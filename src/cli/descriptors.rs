//! The file descriptors of what serves: a connection takes one each.

use negsync::config::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More are never asked for, whatever the system allows.
const MOST: u64 = 1 << 20;
/// For the store's files, sockets that listen, peers and programs that are started.
const OTHERS: u64 = 64;

/// Raises the limit of open files as far as the system allows without asking: shells and service
/// managers begin with 1,024 for the sake of old programs. Warns where it stays below what the configured
/// connections need.
pub(super) fn raise_limit(config: &Config) {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(MOST).min(MOST);
    let mut current = limit.current.unwrap_or(most);
    if current < most {
        let raised = Rlimit { current: Some(most), maximum: limit.maximum };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => current = most,
            Err(error) => tracing::debug!(%error, "the limit of open files stays as it is"),
        }
    }
    let needed = needed(config);
    if current < needed {
        tracing::warn!(
            limit = current,
            needed,
            "limit of open files too low for connections.in_all: beyond it new clients wait until \
             others have gone. Hint: raise the limit (`ulimit -n`, LimitNOFILE of the systemd unit) or \
             lower connections.in_all"
        );
    }
}

fn needed(config: &Config) -> u64 {
    let connections = &config.connections;
    (connections.in_all + connections.half_open + config.store.readers) as u64 + OTHERS
}
