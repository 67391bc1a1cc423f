//! `wss://`: a relay of ours behind a TLS server, with trusted and other certificates.

use super::support::*;
use crate::support::process::Ended;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Makes `NAME.pem` and `NAME.key` in the folder.
fn certificate(folder: &Path, name: &str, more: &[&str]) {
    const KEY: &str = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    let made = Command::new("openssl")
        .args(KEY.split(' '))
        .args(["-subj", &format!("/CN={name}"), "-out"])
        .arg(file("pem"))
        .arg("-keyout")
        .arg(file("key"))
        .args(more)
        .current_dir(folder)
        .output()
        .expect("openssl, which .ci/run installs");
    assert!(made.status.success(), "{made:?}");
}

/// Makes a certificate for `host` that the authority in `ca.pem` has signed.
fn signed(folder: &Path, name: &str, host: &str) {
    let host = format!("subjectAltName=DNS:{host}");
    let by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];
    certificate(folder, name, &[&by[..], &["-addext", &host]].concat());
}

/// Serves TLS with a certificate, and forwards to `target`.
async fn serve(folder: &Path, name: &str, target: SocketAddr) -> String {
    let file = |ending: &str| folder.join(format!("{name}.{ending}"));
    let chain = CertificateDer::pem_file_iter(file("pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut relay = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut relay).await;
            });
        }
    });
    format!("wss://localhost:{port}")
}

/// A configuration that trusts the file, or only the authorities that browsers trust.
fn config(folder: &Path, name: &str, ca_file: Option<&str>) -> PathBuf {
    let path = folder.join(format!("{name}.toml"));
    let ca_file = ca_file.map(|file| format!("[sync]\nca_file = {:?}\n", folder.join(file)));
    let store = folder.join(format!("{name}.sqlite"));
    let text = format!("[store]\npath = {store:?}\n{}", ca_file.unwrap_or_default());
    std::fs::write(&path, text).unwrap();
    path
}

/// A sync with our authority in the environment: only the configuration counts.
async fn sync(url: &str, config: &Path) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_negsync"));
    command.args(["sync", url, "--config"]).arg(config);
    command.env("SSL_CERT_FILE", config.with_file_name("ca.pem"));
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let [stdout, stderr] =
        [ended.stdout, ended.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Ended { status: ended.status, stdout, stderr }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_believed_when_its_authority_is_and_it_names_the_host() {
    let relay = TestRelay::holding(&notes(140, 50)).await;
    let target = relay.url().trim_start_matches("ws://").parse().unwrap();
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    certificate(folder, "self", &["-addext", "subjectAltName=DNS:localhost"]);
    certificate(folder, "ca", &[]);
    signed(folder, "good", "localhost");
    signed(folder, "other", "relay.example.com");
    std::fs::write(folder.join("empty.pem"), "no certificate").unwrap();
    let (alone, good) = (serve(folder, "self", target).await, serve(folder, "good", target).await);
    let other = serve(folder, "other", target).await;
    let (public, ours) = (config(folder, "public", None), config(folder, "ours", Some("ca.pem")));
    let strange = config(folder, "strange", None);
    let named = config(folder, "named", Some("ca.pem"));

    // At the same time, since each is retried a few times.
    let refused = tokio::join!(sync(&alone, &public), sync(&good, &strange), sync(&other, &named));
    for (ended, words) in [
        (refused.0, "signed by no authority that is believed; sync.ca_file can name"),
        (refused.1, "signed by no authority that is believed; sync.ca_file can name"),
        (refused.2, "the peer's certificate is not for localhost"),
    ] {
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stdout.contains(words), "{words}: {ended:?}");
        assert!(ended.stdout.contains(" 0 stored"), "{ended:?}");
    }

    let believed = sync(&good, &ours).await;
    assert_eq!(believed.status.code(), Some(0), "{believed:?}");
    assert!(believed.stdout.contains("50 needed, 50 stored"), "{believed:?}");

    for file in ["empty.pem", "missing.pem"] {
        let ended = sync(&good, &config(folder, "wrong", Some(file))).await;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(file) && ended.stderr.contains("sync.ca_file"), "{ended:?}");
    }
}
