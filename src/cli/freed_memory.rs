//! On a small machine, memory that is freed goes back to the system at once: otherwise the allocator
//! keeps it for ten seconds, in case it is wanted again, and a crowd takes twice as much.

use super::memory;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A machine with less memory than this is small, in bytes.
const SMALL_BYTES: u64 = 512 << 20;
/// Where jemalloc looks for its settings, before `main`.
const VARIABLE: &str = "_RJEM_MALLOC_CONF";
const AT_ONCE: &str = "dirty_decay_ms:0,muzzy_decay_ms:0";

/// Begins the program anew in the same process, with the allocator set, where little memory is
/// provided and nobody has set it. Where that fails, the program goes on as it is.
pub(super) fn give_back_at_once_if_small() {
    if std::env::var_os(VARIABLE).is_some() || memory().bytes() >= SMALL_BYTES {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    // Returns only when it fails.
    let _ = command.args(arguments).env(VARIABLE, AT_ONCE).exec();
}
