//! The limit on file descriptors: each connection needs one.

use negsync::config::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Maximum limit that is requested, even if the system allows more.
const MOST: u64 = 1 << 20;
/// Descriptors for the store's files, listening sockets, peers and started programs.
const OTHERS: u64 = 64;

/// Raises the limit on open files as far as the system allows without privileges: shells and
/// service managers start with 1,024 for old programs. Warns if the limit stays below the needs of
/// the configured connections.
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
