//! The machine-readable prefix of a relay's messages (NIP-01, NIP-42, NIP-77): the word before the
//! first colon of an OK, CLOSED or NEG-ERR.

use std::fmt::{self, Display, Formatter};

/// A machine-readable prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Prefix {
    /// The client must authenticate first (NIP-42).
    AuthRequired,
    /// The relay refuses the event or the client.
    Blocked,
    /// The relay ended a session or subscription (NIP-77).
    Closed,
    /// The relay has the event already.
    Duplicate,
    /// The relay failed; a retry may succeed.
    Error,
    /// The message is malformed, or exceeds a limit.
    Invalid,
    /// No subscription received the ephemeral event (NIP-01).
    Mute,
    /// The event lacks proof of work (NIP-13).
    Pow,
    /// Too many messages in too short a time.
    RateLimited,
    /// A newer version of the event is stored.
    Replaced,
    /// The client's authenticated keys lack the permission (NIP-42).
    Restricted,
    /// The relay does not support this kind of filter.
    Unsupported,
}

impl Prefix {
    /// Every prefix.
    pub const ALL: [Self; 12] = [
        Self::AuthRequired,
        Self::Blocked,
        Self::Closed,
        Self::Duplicate,
        Self::Error,
        Self::Invalid,
        Self::Mute,
        Self::Pow,
        Self::RateLimited,
        Self::Replaced,
        Self::Restricted,
        Self::Unsupported,
    ];

    /// The prefix of `text`; `None` if it has no known prefix.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let (word, _) = text.split_once(':')?;
        Self::ALL.into_iter().find(|prefix| prefix.as_str() == word.trim())
    }

    /// Whether the same message would be refused again.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Blocked | Self::Restricted | Self::Invalid | Self::Unsupported)
    }

    /// Whether a later retry may succeed.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Error | Self::RateLimited | Self::AuthRequired)
    }

    /// The prefix with a reason after it, as in `blocked: not wanted here`.
    #[must_use]
    pub fn before(self, reason: impl Display) -> String {
        format!("{self}: {reason}")
    }

    /// The word, without the colon.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthRequired => "auth-required",
            Self::Blocked => "blocked",
            Self::Closed => "closed",
            Self::Duplicate => "duplicate",
            Self::Error => "error",
            Self::Invalid => "invalid",
            Self::Mute => "mute",
            Self::Pow => "pow",
            Self::RateLimited => "rate-limited",
            Self::Replaced => "replaced",
            Self::Restricted => "restricted",
            Self::Unsupported => "unsupported",
        }
    }
}

impl Display for Prefix {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_known_word_before_the_first_colon() {
        for prefix in Prefix::ALL {
            assert_eq!(Prefix::of(&format!("{prefix}: why: because")), Some(prefix));
            assert_eq!(Prefix::of(&format!(" {prefix} :")), Some(prefix));
            assert_eq!(Prefix::of(prefix.as_str()), None);
        }
        for text in ["", ":", "http://a", "blocked by: me", "Blocked: x"] {
            assert_eq!(Prefix::of(text), None, "{text}");
        }
    }
}
