//! `/health`: 200 while the relay works, otherwise 503 with the reasons.

use crate::support::TestRelay;
use crate::support::client::PATIENCE;
use crate::support::http::{Response, http};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Repeats the request until the answer has this status.
async fn health_with(relay: &TestRelay, status: u16) -> Response {
    let began = Instant::now();
    loop {
        let response = http(relay.relay.address(), "GET", "/health", &[]).await;
        if response.status == status {
            return response;
        }
        assert!(began.elapsed() < PATIENCE, "{status}: {}", response.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_can_work_says_so_to_anyone() {
    let relay = TestRelay::start().await;
    let response = health_with(&relay, 200).await;
    assert_eq!(response.headers["content-type"], "application/json");
    assert_eq!(response.headers.get("access-control-allow-origin"), None);
    let body: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(body, json!({ "status": "ok", "reasons": [] }));
    let head = http(relay.relay.address(), "HEAD", "/health", &[]).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    // A probe is neither an event nor work for a client.
    relay.client().await.fence().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_makes_it_unhealthy() {
    let relay = TestRelay::start().await;
    health_with(&relay, 200).await;
    relay.relay.index().store().close();
    let response = health_with(&relay, 503).await;
    let body: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(body["status"], "unavailable");
    assert_eq!(body["reasons"], json!(["the store cannot be written: the store is closed"]));
    let head = http(relay.relay.address(), "HEAD", "/health", &[]).await;
    assert_eq!((head.status, head.body.as_str()), (503, ""));
}
