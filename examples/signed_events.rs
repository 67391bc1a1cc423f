//! Prints signed events as JSON Lines, for trying a relay: `cargo run --example signed_events --
//! 1000`.

use nostr::{EventBuilder, JsonUtil, Keys, Kind, SecretKey, Timestamp};
use std::error::Error;
use std::io::Write;

/// The time of the first event; each further one is a second newer.
const START: u64 = 1_700_000_000;
/// Number of authors, used in turn.
const AUTHORS: u8 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let count: u64 = std::env::args().nth(1).map_or(Ok(1_000), |text| text.parse())?;
    let authors: Result<Vec<Keys>, _> =
        (1..=AUTHORS).map(|n| SecretKey::from_slice(&[n; 32]).map(Keys::new)).collect();
    let authors = authors?;
    let mut out = std::io::stdout().lock();
    for (number, author) in (0..count).zip(authors.iter().cycle()) {
        let event = EventBuilder::new(Kind::TextNote, format!("event {number}"))
            .custom_created_at(Timestamp::from_secs(START + number))
            .sign_with_keys(author)?;
        writeln!(out, "{}", event.as_json())?;
    }
    Ok(())
}
