//! Waiting for a kept set as it is after a commit that is made and not yet announced.

use super::tree::Tree;
use crate::store::Filter;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// How long a commit may take to be announced. After that the set is scanned.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(5);

/// Someone who waits. They are no more than there are connections that read.
pub(super) struct Awaited {
    pub(super) content: Filter,
    pub(super) number: u64,
    tree: SyncSender<Option<Tree>>,
}

/// The set that is kept of a filter as of one commit.
pub(super) enum AtCommit {
    /// It is known, or there is none.
    Known(Option<Tree>),
    /// It comes with the commit's announcement.
    Awaited(Receiver<Option<Tree>>),
}

impl Awaited {
    pub(super) fn new(content: Filter, number: u64) -> (Self, AtCommit) {
        let (tree, awaited) = sync_channel(1);
        (Self { content, number, tree }, AtCommit::Awaited(awaited))
    }

    /// Gives it to whoever waits.
    pub(super) fn answer(self, tree: Option<Tree>) {
        // Fails only where nobody waits any more.
        let _ = self.tree.try_send(tree);
    }
}

impl AtCommit {
    /// The tree; waits for it.
    pub(super) fn tree(self) -> Option<Tree> {
        match self {
            Self::Known(tree) => tree,
            Self::Awaited(tree) => tree.recv_timeout(ANNOUNCE_TIMEOUT).ok().flatten(),
        }
    }
}
