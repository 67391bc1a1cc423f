//! The item of a reconciliation: the creation time and the id of an event.

/// An event as negentropy sees it. Ordered by `created_at`, then by `id`, as the negentropy v1
/// protocol requires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    /// Seconds since the Unix epoch. `u64::MAX` is the protocol's infinity and is never the time of
    /// an item.
    pub created_at: u64,
    /// The event id, 32 bytes.
    pub id: [u8; 32],
}

impl Item {
    /// An item from its two parts.
    #[must_use]
    pub const fn new(created_at: u64, id: [u8; 32]) -> Self {
        Self { created_at, id }
    }
}
