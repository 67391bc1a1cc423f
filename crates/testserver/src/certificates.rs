//! Certificates for a server that encrypts.

use crate::NOBODY;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

/// A folder with an authority, another one, and a server's certificate for `localhost` by the first.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    /// Makes `ours.crt`, `other.crt`, `server.crt` and `server.key`.
    pub fn make() -> Self {
        let certificates = Self(tempfile::tempdir().unwrap());
        std::fs::write(certificates.file("san"), "subjectAltName=DNS:localhost").unwrap();
        for authority in ["ours", "other"] {
            certificates.openssl(&format!(
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={authority} -keyout {authority}.key \
                 -out {authority}.crt"
            ));
        }
        certificates.openssl(
            "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        );
        certificates.openssl(
            "x509 -req -days 2 -in server.csr -CA ours.crt -CAkey ours.key -CAcreateserial \
             -extfile san -out server.crt",
        );
        // The server reads a key that nobody else can read.
        let key = certificates.file("server.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(certificates.0.path(), std::fs::Permissions::from_mode(0o755))
            .unwrap();
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        certificates
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let made = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

/// A port that nobody uses. It is below those that the system gives to whoever asks for any, so that no
/// other test is given it before the server, which needs to be told a number.
pub fn free_port() -> String {
    let any = std::iter::repeat_with(|| rand::random_range(10_000..30_000));
    let mut free = any.filter(|port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().unwrap().to_string()
}
