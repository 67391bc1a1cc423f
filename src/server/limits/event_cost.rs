//! The cost of an EVENT: for the rate limit of its address, and for the bound on events in
//! progress.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An event costs one unit for each started block of this many bytes of JSON, and one for each
/// block of tags: a tag is a row to write.
const BYTES_COUNTED_ONCE: usize = 4 << 10;
const TAGS_COUNTED_ONCE: usize = 16;

/// Maximum cost of one address's events in progress; above it, its connections are not read. 8 MiB
/// of JSON, or about 30,000 rows.
const OF_AN_ADDRESS: usize = 2_048;
/// The same for all addresses together.
const IN_ALL: usize = 8 * OF_AN_ADDRESS;

/// The cost of an event, estimated from its unparsed JSON. A bracket in its content counts as a
/// tag.
pub(crate) fn event_cost(json: &str) -> u32 {
    let brackets = json.bytes().filter(|byte| *byte == b'[').count();
    let cost = json.len().div_ceil(BYTES_COUNTED_ONCE).max(1) + brackets / TAGS_COUNTED_ONCE;
    u32::try_from(cost).unwrap_or(u32::MAX)
}

/// The cost of events that are being verified and stored, for one address or for all.
pub(super) struct EventsUnderWay {
    room: Arc<Semaphore>,
    most: usize,
}

/// An event's share of the maximum; returned when this is dropped.
pub(crate) struct EventShare {
    _of_address: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl EventsUnderWay {
    pub(super) fn of_an_address() -> Self {
        Self::at_most(OF_AN_ADDRESS)
    }

    pub(super) fn in_all() -> Self {
        Self::at_most(IN_ALL)
    }

    fn at_most(most: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(most)), most }
    }

    /// Waits until there is room; an event above the maximum waits for all of it. `None` only if
    /// the semaphore were closed, which never happens.
    async fn take(&self, cost: u32) -> Option<OwnedSemaphorePermit> {
        let cost = cost.min(u32::try_from(self.most).unwrap_or(u32::MAX));
        Arc::clone(&self.room).acquire_many_owned(cost).await.ok()
    }
}

impl EventShare {
    /// Waits for the address's own room first: an address with many events delays only itself.
    pub(super) async fn take(address: &EventsUnderWay, all: &EventsUnderWay, cost: u32) -> Self {
        let of_address = address.take(cost).await;
        Self { _of_address: of_address, _of_all: all.take(cost).await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn event(tags: usize, content: usize) -> String {
        let tags: Vec<String> = (0..tags).map(|n| format!(r#"["t","{n}"]"#)).collect();
        format!(r#"{{"tags":[{}],"content":"{}"}}"#, tags.join(","), "x".repeat(content))
    }

    #[test]
    fn a_common_event_costs_one_and_others_what_they_take() {
        assert_eq!(event_cost(""), 1);
        assert_eq!(event_cost(&event(3, 500)), 1);
        assert_eq!(event_cost(&event(14, 3_000)), 1);
        assert_eq!(event_cost(&event(0, 256 << 10)), 65);
        assert!((312..350).contains(&event_cost(&event(5_000, 0))));
    }

    /// A thousand events of maximum length would take gigabytes.
    #[test]
    fn events_under_way_hold_a_bounded_number_of_bytes_whatever_their_size() {
        for bytes in (0..25).map(|power| (1 << power) + 1).chain([1, 4_095, 4_096, 256 << 10]) {
            let most = OF_AN_ADDRESS / (event_cost(&"x".repeat(bytes)) as usize).min(OF_AN_ADDRESS);
            assert!(most == 1 || most * bytes <= 8 << 20, "{most} of {bytes}");
        }
    }

    #[test]
    fn an_address_that_has_its_share_keeps_nobody_waiting() {
        let (first, second) = (EventsUnderWay::of_an_address(), EventsUnderWay::of_an_address());
        let all = EventsUnderWay::in_all();
        let mut context = Context::from_waker(Waker::noop());
        let mut shares = Vec::new();
        while let Poll::Ready(share) = pin!(EventShare::take(&first, &all, 300)).poll(&mut context)
        {
            shares.push(share);
        }
        assert_eq!(shares.len(), OF_AN_ADDRESS / 300);
        assert!(pin!(EventShare::take(&second, &all, 1)).poll(&mut context).is_ready());
        shares.pop();
        assert!(pin!(EventShare::take(&first, &all, 300)).poll(&mut context).is_ready());
    }
}
