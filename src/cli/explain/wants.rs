//! One sentence about the next step that the sender of a message requests (negentropy v1,
//! "Protocol").

use super::Sender;
use super::ranges::{MessageTotals, counted, show_bound};
use negsync::reconcile::Bound;

/// Number of fingerprints into which responders split a differing range. One more at the end of a
/// long message closes a full frame.
const SPLIT_RANGES: usize = 16;
/// Length below which no frame limit in use cuts a message, in bytes.
const CUT_LEAST_BYTES: usize = 2_800;

/// The next step that the sender of a message requests.
pub(super) fn sentence(totals: &MessageTotals, sender: Sender) -> String {
    let cut_from = cut_from(totals, sender);
    let fingerprints = totals.fingerprints - usize::from(cut_from.is_some());
    let who = match sender {
        Sender::Client => "The client",
        Sender::Relay => "The relay",
        Sender::Unknown => "The sender",
    };
    let mut parts = Vec::new();
    if totals.lists > 0 {
        parts.push(about_lists(totals, sender));
    }
    if fingerprints > 0 {
        parts.push(format!("asks to compare {}", counted(fingerprints, "fingerprint")));
    }
    if let Some(bound) = cut_from {
        let from = show_bound(&bound, false);
        parts.push(format!(
            "was cut by its frame limit at {from}, so that the rest is to be asked again"
        ));
    }
    if parts.is_empty() {
        return match sender {
            Sender::Client => format!("{who} asks nothing more; NEG-CLOSE ends the session."),
            _ => format!("{who} settles everything and asks nothing more."),
        };
    }
    format!("{who} {}.", parts.join("; it "))
}

fn about_lists(totals: &MessageTotals, sender: Sender) -> String {
    let ranges = counted(totals.lists, "range");
    let ids = match totals.ids {
        1 => "the 1 id".to_owned(),
        ids => format!("all {ids} ids"),
    };
    match (sender, totals.ids) {
        (Sender::Client, 0) => {
            format!("asks for all of the relay's ids in {ranges} and names none of its own")
        }
        (Sender::Client, _) => {
            format!("lists {ids} that it has in {ranges} and asks for the relay's ids there")
        }
        (Sender::Relay, 0) => format!("settles {ranges}: it has nothing there"),
        (Sender::Relay, _) => format!("settles {ranges} with {ids} that it has there"),
        (Sender::Unknown, 0) => format!(
            "names no ids in {ranges}: a relay has none there, a client asks for the relay's"
        ),
        (Sender::Unknown, _) => format!(
            "lists {ids} that it has in {ranges}: a relay settles them so, a client asks for \
             the relay's ids there"
        ),
    }
}

/// The position at which a full frame was cut: one fingerprint covers everything after it. A client
/// may open with any number of fingerprints, so its messages give no indication.
fn cut_from(totals: &MessageTotals, sender: Sender) -> Option<Bound> {
    let (lower, upper) = totals.last?;
    let closing = totals.last_fingerprints % SPLIT_RANGES == 1;
    let full = totals.bytes >= CUT_LEAST_BYTES;
    (sender != Sender::Client && closing && full && upper == Bound::INFINITY).then_some(lower)
}
