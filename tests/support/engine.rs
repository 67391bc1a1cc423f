//! The engine of the stores in tests that start relays in this process: SQLite, or PostgreSQL with
//! `NEGSYNC_TEST_ENGINE=postgres`.

use negsync_testserver::{TestServer, left_out};

fn is_postgres() -> bool {
    let Ok(engine) = std::env::var("NEGSYNC_TEST_ENGINE") else { return false };
    assert_eq!(engine, "postgres", "NEGSYNC_TEST_ENGINE");
    true
}

/// The database of a relay over PostgreSQL.
pub fn database() -> Option<TestServer> {
    is_postgres()
        .then(|| TestServer::start().expect("NEGSYNC_TEST_ENGINE=postgres needs PostgreSQL"))
}

/// Whether the test is left out because it needs SQLite; reports it.
pub fn is_left_out(because_of: &str) -> bool {
    let is_left_out = is_postgres();
    if is_left_out {
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test");
        left_out(&format!("{test} over PostgreSQL, because of {because_of}"));
    }
    is_left_out
}
