//! A small disk that can be filled and freed.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A tmpfs; unmounted when dropped.
pub struct Disk(TempDir);

impl Disk {
    /// Mounts a tmpfs of this many MiB. If that is not allowed, reports it past the test harness
    /// and returns `None`.
    pub fn mount(megabytes: usize) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]);
        let mounted = mount.arg(directory.path()).stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(directory));
        }
        // Past the test harness, which would capture the output.
        let _ = writeln!(
            std::io::stderr(),
            "\n!!!! SKIPPED: a test on a small disk, which takes root to mount"
        );
        None
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills the free space, or at most `most_bytes`.
    pub fn fill(&self, name: &str, most_bytes: usize) {
        let mut file = File::create(self.path().join(name)).unwrap();
        let block = [7; 4_096];
        for _ in 0..most_bytes / block.len() {
            if file.write_all(&block).is_err() {
                break;
            }
        }
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path().join(name)).unwrap();
    }

    /// Unmounts it although files are open: they live on without a name.
    pub fn unmount(&self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status().unwrap();
        assert!(unmounted.success());
    }

    /// Makes it read-only or writable; no file may be open for writing.
    pub fn set_read_only(&self, read_only: bool) {
        let mode = if read_only { "remount,ro" } else { "remount,rw" };
        let set = Command::new("mount").args(["-o", mode]).arg(self.path()).status().unwrap();
        assert!(set.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still have files open there.
        let mut unmount = Command::new("umount");
        let _ = unmount.arg("-l").arg(self.path()).stderr(Stdio::null()).status();
    }
}

/// Writes a file that only its owner may read.
pub fn write_secret(path: &std::path::Path, secret: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, secret).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
