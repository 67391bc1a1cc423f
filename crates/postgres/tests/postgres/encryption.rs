//! Encrypted connections, in each mode of `sslmode`, with certificates made for the test.

use crate::support::try_open;
use negsync_postgres::PostgresStore;
use negsync_store::EventStore;
use negsync_testserver::{HeardSet, TestServer};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

/// The user of the server if the tests run as root.
const NOBODY: u32 = 65_534;

/// A folder with two authorities, and a server's certificate for `localhost` by the first one.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn make() -> Self {
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
        // The server requires a key that only it can read.
        let key = certificates.file("server.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::set_permissions(certificates.0.path(), std::fs::Permissions::from_mode(0o755))
            .unwrap();
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        certificates
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

/// A free port. It is below the ephemeral ports, so that no other test gets it before the server,
/// which needs a fixed number.
fn free_port() -> String {
    let any = std::iter::repeat_with(|| rand::random_range(10_000..30_000));
    let mut free = any.filter(|port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().unwrap().to_string()
}

fn open(url: &str) -> Result<PostgresStore, String> {
    try_open(url, HeardSet::default())
}

#[test]
fn the_modes_of_encryption_ask_what_libpq_asks() {
    let certificates = Certificates::make();
    let file = |name: &str| certificates.file(name).to_str().unwrap().to_owned();
    let port = free_port();
    let (certificate, key) = (file("server.crt"), file("server.key"));
    let plain = [("listen_addresses", "127.0.0.1"), ("port", port.as_str())];
    let encrypted = [
        plain[0],
        plain[1],
        ("ssl", "on"),
        ("ssl_cert_file", certificate.as_str()),
        ("ssl_key_file", key.as_str()),
    ];
    let Some(mut server) = TestServer::start_own(&encrypted) else { return };
    let database = server.database_name().to_owned();
    let url = |host: &str, parameters: &str| {
        format!("postgres://postgres@{host}:{port}/{database}?{parameters}")
    };
    let encrypted_now = "SELECT count(*) FILTER (WHERE ssl), count(*) FROM pg_stat_ssl
        JOIN pg_stat_activity USING (pid) WHERE application_name = 'negsync'";
    let (ours, other) = (file("ours.crt"), file("other.crt"));
    let works = [
        ("localhost", "sslmode=disable".to_owned(), false),
        ("127.0.0.1", "sslmode=prefer".to_owned(), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ours}"), true),
        ("localhost", format!("sslmode=verify-full&sslrootcert={ours}"), true),
    ];
    for (host, parameters, is_encrypted) in &works {
        let store = open(&url(host, parameters)).unwrap();
        let counts = negsync_testserver::query(server.url(), encrypted_now).unwrap().remove(0);
        let counts: Vec<u32> =
            counts.iter().map(|it| it.as_ref().unwrap().parse().unwrap()).collect();
        assert!(counts[1] > 0);
        assert_eq!(counts[0], if *is_encrypted { counts[1] } else { 0 }, "{parameters}");
        store.close();
        drop(store);
        // So that the next connection is counted alone.
        let none = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'negsync'";
        while !negsync_testserver::query(server.url(), none).unwrap().is_empty() {}
    }
    let fails = [
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ours}")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={other}")),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={other}")),
        ("localhost", format!("sslmode=require&sslrootcert={other}")),
        ("localhost", "sslmode=verify-full&sslrootcert=system".to_owned()),
        ("localhost", "sslrootcert=system".to_owned()),
    ];
    for (host, parameters) in &fails {
        let error = open(&url(host, parameters)).err().unwrap();
        assert!(error.contains("certificate"), "{parameters}: {error}");
    }
    // A server without encryption.
    server.restart_with(&plain);
    assert!(open(&url("localhost", "sslmode=prefer")).is_ok());
    let error = open(&url("localhost", "sslmode=require")).err().unwrap();
    assert!(error.contains("TLS"), "{error}");
}
