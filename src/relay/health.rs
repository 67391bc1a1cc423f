//! The health of the relay, for supervisors.

use super::RelayState;
use crate::server::status;
use http_body_util::Full;
use hyper::Response;
use hyper::body::Bytes;

/// Lag of the feed above which a node answers no NEG-OPEN, in seconds.
const MOST_FEED_LAG_S: u64 = 10;

/// 200 if the relay works, otherwise 503 with the reasons.
pub(super) async fn respond(relay: &RelayState) -> Response<Full<Bytes>> {
    let mut reasons = relay.service.reasons();
    // Checked each time: a lost store does not come back.
    if let Err(lost) = relay.index.store().check_in_place() {
        reasons.push(format!("the store cannot be written: {lost}"));
        return status::health(&reasons);
    }
    if let Some(lag) = relay.index.store().feed_lag()
        && lag.seconds > MOST_FEED_LAG_S
    {
        reasons.push(format!("the database cannot be read: no answer for {} s", lag.seconds));
    }
    let written = relay.health.check(|| {
        let store = relay.index.store().clone();
        tokio::task::spawn_blocking(move || {
            store.check_writable().map_err(|error| error.to_string())
        })
    });
    if let Err(reason) = written.await {
        reasons.push(format!("the store cannot be written: {reason}"));
    }
    status::health(&reasons)
}
