//! On a small machine, freed memory is returned to the system at once. By default the allocator
//! keeps it for ten seconds for reuse, and many clients at a time would take twice as much.

use super::memory;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A machine with less memory than this is small, in bytes.
const SMALL_BYTES: u64 = 512 << 20;
/// The environment variable from which jemalloc reads its settings, before `main`.
const VARIABLE: &str = "_RJEM_MALLOC_CONF";
const AT_ONCE: &str = "dirty_decay_ms:0,muzzy_decay_ms:0";

/// Restarts the program in the same process with the allocator's setting, if the machine is small
/// and the variable is not set. If that fails, the program continues unchanged.
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
    // Returns only on failure.
    let _ = command.args(arguments).env(VARIABLE, AT_ONCE).exec();
}
