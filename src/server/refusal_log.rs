//! Logs refusals: one line a minute, whatever their number.

use super::Service;
use crate::metrics::{Labelled, Metrics};
use std::sync::Arc;
use std::time::Duration;

/// Interval of the log lines.
const EVERY: Duration = Duration::from_secs(60);
/// The outcomes of accepted events.
const TAKEN: [&str; 4] = ["stored", "duplicate", "superseded", "passed_on"];

/// Logs refusals until serving stops, and once more then.
pub(crate) async fn log(service: Arc<Service>) {
    let stopping = service.running.stopping.clone();
    let mut before = RefusalCounts::default();
    let mut is_stopping = false;
    while !is_stopping {
        is_stopping = tokio::time::timeout(EVERY, stopping.cancelled()).await.is_ok();
        let now = RefusalCounts::now(&service.metrics);
        if let Some(text) = now.since(&before) {
            tracing::info!("refused since the last such line: {text}");
        }
        before = now;
    }
}

/// The counts of refusals, by subject and reason.
#[derive(Default)]
struct RefusalCounts(Vec<(&'static str, &'static str, u64)>);

impl RefusalCounts {
    fn now(metrics: &Metrics) -> Self {
        let of = |what: &'static str, labelled: &Labelled| -> Vec<_> {
            labelled.counts().map(|(reason, count)| (what, reason, count)).collect()
        };
        let events = of("events", &metrics.events);
        let refused = events.into_iter().filter(|(_, outcome, _)| !TAKEN.contains(outcome));
        let auth = of("AUTH messages", &metrics.auth);
        let unknown = auth.into_iter().filter(|(_, outcome, _)| *outcome != "accepted");
        let queries = of("queries", &metrics.query_refusals);
        let connections = of("connections", &metrics.connections_refused);
        let sessions = of("NEG messages", &metrics.neg_refusals);
        let messages = of("messages", &metrics.messages);
        let unread = messages.into_iter().filter(|(_, verb, _)| *verb == "invalid");
        let asked = unknown.chain(queries).chain(sessions).chain(unread);
        Self(refused.chain(connections).chain(asked).collect())
    }

    /// The refusals since `before`, as text; `None` if there are none.
    fn since(&self, before: &Self) -> Option<String> {
        let earlier = before.0.iter().map(|(_, _, count)| *count).chain(std::iter::repeat(0));
        let new: Vec<String> = self
            .0
            .iter()
            .zip(earlier)
            .filter(|((_, _, count), earlier)| count > earlier)
            .map(|((what, reason, count), earlier)| {
                format!("{} {what} ({reason})", count - earlier)
            })
            .collect();
        (!new.is_empty()).then(|| new.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_said() {
        let counted = |blocked, invalid| {
            RefusalCounts(vec![
                ("events", "blocked", blocked),
                ("NEG messages", "invalid", invalid),
            ])
        };
        let none = RefusalCounts::default();
        assert_eq!(none.since(&none), None);
        assert_eq!(counted(0, 0).since(&none), None);
        assert_eq!(counted(2, 0).since(&none).unwrap(), "2 events (blocked)");
        let both = counted(3, 4).since(&counted(2, 0)).unwrap();
        assert_eq!(both, "1 events (blocked), 4 NEG messages (invalid)");
        assert_eq!(counted(3, 4).since(&counted(3, 4)), None);
    }
}
