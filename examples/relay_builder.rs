//! rust-nostr's relay, in memory, on the port in the first argument: a peer for trying syncs.

use nostr_relay_builder::prelude::{LocalRelay, RateLimit, RelayBuilder};

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok()).unwrap_or(0);
    let rate_limit = RateLimit { max_reqs: 50, notes_per_minute: u32::MAX };
    let builder = RelayBuilder::default().port(port).rate_limit(rate_limit);
    let relay = LocalRelay::new(builder);
    if let Err(error) = relay.run().await {
        eprintln!("{error}");
        std::process::exit(1);
    }
    println!("{}", relay.url().await);
    std::future::pending::<()>().await;
}
