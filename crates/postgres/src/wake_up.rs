//! Notifications between nodes: the payload of a `NOTIFY` with its reason and the sending node.

/// The payload for a commit, by its number.
pub(crate) fn of_commit(seq: i64, node: i64) -> String {
    format!("{seq} {node}")
}

/// The payload for new ephemeral events.
pub(crate) fn of_ephemeral(node: i64) -> String {
    format!("ephemeral {node}")
}

/// The notification of another node.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WakeUp {
    /// A commit with this number.
    Commit(u64),
    /// Any other reason.
    Other,
}

impl WakeUp {
    /// Parses a payload; `None` if this node sent it.
    pub(crate) fn read(payload: &str, node: i64) -> Option<Self> {
        let (what, by) = payload.split_once(' ').unwrap_or((payload, ""));
        (by.parse() != Ok(node)).then(|| what.parse().map_or(Self::Other, Self::Commit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_hears_of_all_but_its_own() {
        let (node, other) = (-7, 8);
        assert_eq!(WakeUp::read(&of_commit(17, other), node), Some(WakeUp::Commit(17)));
        assert_eq!(WakeUp::read(&of_ephemeral(other), node), Some(WakeUp::Other));
        assert_eq!(WakeUp::read(&of_commit(17, node), node), None);
        assert_eq!(WakeUp::read(&of_ephemeral(node), node), None);
        // From a node of an earlier version, and from another program.
        assert_eq!(WakeUp::read("17", node), Some(WakeUp::Commit(17)));
        assert_eq!(WakeUp::read("", node), Some(WakeUp::Other));
    }
}
