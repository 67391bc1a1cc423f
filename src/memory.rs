//! The memory available to the process: the limit of its cgroup, or the free memory of the machine.
//! Caches and batches get shares of it, so that the same program runs in 256 MB and in 64 GB.

use std::path::{Path, PathBuf};

/// Assumed if nothing can be read: the smallest supported machine.
const UNKNOWN_BYTES: u64 = 256 << 20;
/// From this value on, a cgroup's limit counts as unlimited.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// The memory available to this process at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    bytes: u64,
    limit: Limit,
}

/// The source of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Cgroup,
    AddressSpace,
    Free,
    Unknown,
}

impl Memory {
    /// Reads the available memory: the lowest of the limits of the process's cgroups (v1 or v2),
    /// its limit of address space and the machine's free memory.
    pub fn read() -> Self {
        let cgroup = cgroup_limit(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
        let found = [
            (cgroup, Limit::Cgroup),
            (
                address_space_left(&text("/proc/self/limits"), &text("/proc/self/status")),
                Limit::AddressSpace,
            ),
            (available(&text("/proc/meminfo")), Limit::Free),
        ];
        let least = found
            .into_iter()
            .filter_map(|(bytes, limit)| Some((bytes?, limit)))
            .min_by_key(|it| it.0);
        let (bytes, limit) = least.unwrap_or((UNKNOWN_BYTES, Limit::Unknown));
        Self { bytes, limit }
    }

    /// A fixed amount, for tests and configuration.
    pub fn of_bytes(bytes: u64) -> Self {
        Self { bytes, limit: Limit::Unknown }
    }

    /// The amount in bytes.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// The source of the limit, for messages.
    pub fn limit(self) -> &'static str {
        match self.limit {
            Limit::Cgroup => "cgroup limit",
            Limit::AddressSpace => "address space limit",
            Limit::Free => "free memory",
            Limit::Unknown => "unknown",
        }
    }

    /// One part in `parts`, in bytes, at most `most`.
    pub fn share(self, parts: u64, most: usize) -> usize {
        usize::try_from(self.bytes / parts.max(1)).unwrap_or(usize::MAX).min(most)
    }
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The lowest limit of the process's cgroups and their parents.
fn cgroup_limit(membership: &Path, root: &Path) -> Option<u64> {
    let limit = |(folder, file): (PathBuf, &str)| {
        let bytes = text(folder.join(file)).trim().parse().ok()?;
        (bytes < NO_LIMIT_BYTES).then_some(bytes)
    };
    // Each line has a number, the controllers (none in v2) and the path.
    let memberships = text(membership);
    let groups = memberships.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        match controllers {
            "" => Some((root.to_owned(), path, "memory.max")),
            _ if controllers.split(',').any(|it| it == "memory") => {
                Some((root.join("memory"), path, "memory.limit_in_bytes"))
            }
            _ => None,
        }
    });
    // In a container the path may be the host's, and only the root exists.
    groups
        .flat_map(|(root, path, file)| {
            let below: Vec<_> = Path::new(path.trim_start_matches('/')).ancestors().collect();
            below.into_iter().map(move |path| (root.join(path), file)).collect::<Vec<_>>()
        })
        .filter_map(limit)
        .min()
}

/// The rest of RLIMIT_AS, in bytes. The program and its libraries count towards that limit.
fn address_space_left(limits: &str, status: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(kib_line(status, "VmSize:").unwrap_or(0)))
}

/// The memory available without swapping, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    kib_line(meminfo, "MemAvailable:")
}

/// The value of the line with this name, in bytes; the file has it in kB.
fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(root: &Path, path: &str, file: &str, text: &str) {
        std::fs::create_dir_all(root.join(path)).unwrap();
        std::fs::write(root.join(path).join(file), text).unwrap();
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (root, membership) = (folder.path().join("cgroup"), folder.path().join("self"));
        let limit = |text: &str| {
            std::fs::write(&membership, text).unwrap();
            cgroup_limit(&membership, &root)
        };
        group(&root, "system.slice", "memory.max", "268435456\n");
        group(&root, "system.slice/negsync.service", "memory.max", "max\n");
        group(&root, "small", "memory.max", "1000\n");
        assert_eq!(limit("0::/system.slice/negsync.service\n"), Some(256 << 20));
        assert_eq!(limit("0::/small"), Some(1_000));
        // A container that has its host's path sees its own group as the root.
        group(&root, "", "memory.max", "5000\n");
        assert_eq!(limit("0::/docker/0123"), Some(5_000));
        // Version 1.
        group(&root, "memory/a/b", "memory.limit_in_bytes", "9223372036854771712\n");
        group(&root, "memory/a", "memory.limit_in_bytes", "3000\n");
        assert_eq!(limit("5:cpu,memory:/a/b\n3:pids:/a\n"), Some(3_000));
        group(&root, "memory/a", "memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit("5:memory:/a/b\n"), None);
        assert_eq!(limit("not what it should be"), None);
    }

    #[test]
    fn limits_and_free_memory_are_read() {
        let limits = "Limit   Soft Limit   Hard Limit   Units\n\
            Max address space         4294967296           unlimited            bytes\n";
        assert_eq!(address_space_left(limits, ""), Some(4 << 30));
        assert_eq!(address_space_left(limits, "VmSize:\t 1048576 kB\n"), Some(3 << 30));
        assert_eq!(address_space_left(&limits.replace("4294967296", "unlimited"), ""), None);
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available(""), None);
        let memory = Memory { bytes: 1_000, limit: Limit::Free };
        assert_eq!((memory.share(8, 200), memory.share(8, 20)), (125, 20));
        assert!(Memory::read().bytes() > 0);
    }
}
