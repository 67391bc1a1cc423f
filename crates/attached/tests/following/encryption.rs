//! A relay's database over encrypted connections.

use super::{Relay, server_with};
use negsync_attached::AttachedPostgres;
use negsync_store::{AttachedOptions, EventSource, Filter};
use negsync_testserver::{Certificates, HeardSet, RelayTables, free_port, query};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::ops::ControlFlow;

/// Of the connections of `attach`, how many are encrypted, and how many there are.
fn encrypted(url: &str) -> (usize, usize) {
    let connections = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE application_name = 'negsync attach'";
    let rows = query(url, connections).unwrap();
    (rows.iter().filter(|row| row[0].as_deref() == Some("t")).count(), rows.len())
}

#[test]
fn feed_and_readers_are_encrypted_as_the_url_says_and_the_server_is_checked() {
    let certificates = Certificates::make();
    let port = free_port();
    let (certificate, key) = (certificates.path("server.crt"), certificates.path("server.key"));
    let settings = [
        ("listen_addresses", "127.0.0.1"),
        ("port", port.as_str()),
        ("ssl", "on"),
        ("ssl_cert_file", certificate.as_str()),
        ("ssl_key_file", key.as_str()),
    ];
    let Some(server) = server_with(&settings) else { return };
    let mut relay = Relay::new(&server, RelayTables::Nostream);
    let mut rng = StdRng::seed_from_u64(1);
    let database = relay.url.rsplit('/').next().unwrap().to_owned();
    let open = |host: &str, parameters: &str, heard: &HeardSet| {
        let url = format!("postgres://postgres@{host}:{port}/{database}?{parameters}");
        AttachedPostgres::open(
            relay.kind(),
            &url,
            AttachedOptions::default(),
            Box::new(heard.clone()),
        )
    };
    let (ours, other) = (certificates.path("ours.crt"), certificates.path("other.crt"));
    let checked = format!("sslmode=verify-full&sslrootcert={ours}");
    for (host, parameters) in [
        ("127.0.0.1", checked.clone()),
        ("localhost", format!("sslmode=verify-full&sslrootcert={other}")),
        ("localhost", "sslrootcert=system".to_owned()),
    ] {
        let error = open(host, &parameters, &HeardSet::default()).unwrap_err().to_string();
        assert!(error.contains("certificate"), "{parameters}: {error}");
    }

    let heard = HeardSet::default();
    let attached = open("localhost", &checked, &heard).unwrap();
    for _ in 0..20 {
        for transaction in relay.publish(&mut rng) {
            relay.run(&transaction);
        }
    }
    attached.catch_up().unwrap();
    let held = heard.items();
    let mut read = 0;
    let mut count = |_: usize, _| {
        read += 1;
        ControlFlow::Continue(())
    };
    attached.items(&[Filter::default()], &mut count).unwrap();
    assert!(read > 0 && read == held.len(), "{read} of {}", held.len());
    let (secret, all) = encrypted(server.url());
    assert!(all >= 2 && secret == all, "{secret} of {all} connections are encrypted");
    drop(attached);
}
