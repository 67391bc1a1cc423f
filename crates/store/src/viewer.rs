//! Visibility: events of private kinds are visible to their author and to the public keys in their
//! `p` tags (NIP-04, NIP-17, NIP-59); all others are public.

use negsync_nostr::Event;
use negsync_nostr::Filter;
use negsync_nostr::TagKey;
use negsync_nostr::hex;
use std::sync::Arc;

/// Maximum number of a filter's kinds that are looked up one by one for each tag or author. For a
/// longer list, the kinds that exist under the tag or author are enumerated.
pub(super) const KINDS_TRIED: usize = 16;

/// The private kinds. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PrivateKinds(Arc<[u16]>);

impl PrivateKinds {
    /// A set of kinds, given in any order.
    pub fn new(kinds: impl IntoIterator<Item = u16>) -> Self {
        let mut kinds: Vec<u16> = kinds.into_iter().collect();
        kinds.sort_unstable();
        kinds.dedup();
        Self(kinds.into())
    }

    /// Whether events of the kind are private.
    #[must_use]
    pub fn contains(&self, kind: u16) -> bool {
        self.0.binary_search(&kind).is_ok()
    }

    /// The kinds, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }

    /// The part of a filter that matches public kinds.
    #[must_use]
    pub fn public_part(&self, filter: &Filter) -> Filter {
        let mut public = filter.clone();
        match &mut public.kinds {
            Some(kinds) => kinds.retain(|kind| !self.contains(*kind)),
            None => public.without_kinds = self.0.to_vec(),
        }
        // A long list is searched by spans of kinds, which must not contain a private one.
        if let Some([first, .., last]) = public.kinds.as_deref()
            && public.kinds.as_ref().is_some_and(|kinds| kinds.len() > KINDS_TRIED)
        {
            let within = self.0.iter().filter(|kind| (*first..=*last).contains(*kind));
            public.without_kinds = within.copied().collect();
        }
        public
    }

    /// The part of a filter that matches private kinds; void if it names only public kinds.
    #[must_use]
    pub fn private_part(&self, filter: &Filter) -> Filter {
        let mut private = filter.clone();
        match &mut private.kinds {
            Some(kinds) => kinds.retain(|kind| self.contains(*kind)),
            None => private.kinds = Some(self.0.to_vec()),
        }
        private
    }
}

/// A client, identified by the public keys it has authenticated (NIP-42); without keys, it sees
/// public events only.
#[derive(Debug, Clone, Default)]
pub struct Viewer {
    private: PrivateKinds,
    // Sorted.
    keys: Arc<[[u8; 32]]>,
    sees_all: bool,
}

impl Viewer {
    /// A viewer with these keys.
    pub fn new(private: PrivateKinds, keys: impl IntoIterator<Item = [u8; 32]>) -> Self {
        let mut keys: Vec<[u8; 32]> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        Self { private, keys: keys.into(), sees_all: false }
    }

    /// The same viewer, with access to every event if `sees_all`: for the operator's own relays.
    #[must_use]
    pub fn seeing_all(self, sees_all: bool) -> Self {
        Self { sees_all, ..self }
    }

    /// Whether the viewer may see every event.
    #[must_use]
    pub fn sees_all(&self) -> bool {
        self.sees_all
    }

    /// The authenticated keys, in order.
    #[must_use]
    pub fn keys(&self) -> &[[u8; 32]] {
        &self.keys
    }

    /// Whether the viewer may see the event.
    #[must_use]
    pub fn sees(&self, event: &Event) -> bool {
        let is_addressed =
            || self.tag_keys().iter().any(|key| event.tag_keys().binary_search(key).is_ok());
        self.sees_all
            || !self.private.contains(event.kind())
            || self.keys.binary_search(event.pubkey()).is_ok()
            || is_addressed()
    }

    /// Whether the filters of a viewer without keys ask for private events only: it can see none of
    /// them, and authentication would change that.
    #[must_use]
    pub fn needs_keys_for(&self, filters: &[Filter]) -> bool {
        let is_private = |filter: &Filter| {
            let mut kinds = filter.kinds.iter().flatten().peekable();
            kinds.peek().is_some() && kinds.all(|kind| self.private.contains(*kind))
        };
        !self.sees_all && self.keys.is_empty() && filters.iter().all(is_private)
    }

    /// The part of a filter that the viewer may see.
    #[must_use]
    pub fn view(&self, filter: &Filter) -> View {
        let public = self.private.public_part(filter);
        if self.keys.is_empty() && !self.sees_all {
            return View { public, own: Vec::new() };
        }
        let private = self.private.private_part(filter);
        if self.sees_all {
            let own = if private.is_void() { Vec::new() } else { vec![private] };
            return View { public, own };
        }
        let authors = match &private.authors {
            Some(authors) => {
                authors.iter().filter(|key| self.keys.binary_search(key).is_ok()).copied().collect()
            }
            None => self.keys.to_vec(),
        };
        let mut addressed = private.clone();
        // In addition to a list of `p` values in the filter: both must match.
        addressed.tags.push(self.tag_keys());
        let written = Filter { authors: Some(authors), ..private };
        let own = [written, addressed].into_iter().filter(|part| !part.is_void()).collect();
        View { public, own }
    }

    fn tag_keys(&self) -> Vec<TagKey> {
        let mut keys: Vec<TagKey> =
            self.keys.iter().map(|key| TagKey::new(b'p', &hex::encode(key))).collect();
        keys.sort_unstable();
        keys
    }
}

/// The part of a filter that one viewer may see: events that match any of the parts. If the filter
/// has a limit, the newest events of all parts together, up to that limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The public part.
    pub public: Filter,
    /// The private parts that the viewer may see.
    pub own: Vec<Filter>,
}

impl View {
    /// The whole filter, for a viewer that may see everything.
    #[must_use]
    pub fn whole(filter: Filter) -> Self {
        Self { public: filter, own: Vec::new() }
    }

    /// The parts; each has the filter's times and limit.
    pub fn parts(&self) -> impl Iterator<Item = &Filter> {
        std::iter::once(&self.public).chain(&self.own)
    }

    /// The limit of the filter.
    #[must_use]
    pub fn limit(&self) -> Option<usize> {
        self.public.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    const ZEROS: &str = "00000000000000000000000000000000";

    fn event(author: u8, kind: u16, p: u8) -> Event {
        let key = |key: u8| format!("{key:02x}").repeat(32);
        let json = format!(
            r#"{{"id":"{}","pubkey":"{}","created_at":1,"kind":{kind},"tags":[["p","{}"]],"content":"","sig":"{}"}}"#,
            key(1),
            key(author),
            key(p),
            ZEROS.repeat(4),
        );
        Event::parse(&json).unwrap()
    }

    /// A view's parts match exactly what matches the filter and may be seen.
    #[test]
    fn a_view_is_the_filter_and_what_may_be_seen() {
        for seed in 0..2_000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut some = |most: u8| -> Vec<u8> {
                (0..rng.random_range(0..3)).map(|_| rng.random_range(1..most)).collect()
            };
            let private = PrivateKinds::new(some(6).into_iter().map(u16::from));
            let viewer = Viewer::new(private.clone(), some(4).into_iter().map(|key| [key; 32]))
                .seeing_all(seed % 4 == 0);
            let mut filter = Filter::default();
            let (kinds, authors, p) = (some(6), some(4), some(4));
            let sorted = |mut list: Vec<u8>| {
                list.sort_unstable();
                list.dedup();
                list
            };
            if kinds.len() < 2 {
                filter.kinds = Some(sorted(kinds).into_iter().map(u16::from).collect());
            }
            if authors.len() == 1 {
                filter.authors = Some(authors.iter().map(|key| [*key; 32]).collect());
            }
            if p.len() == 1 {
                let value = format!("{:02x}", p[0]).repeat(32);
                filter.tags = vec![vec![TagKey::new(b'p', &value)]];
            }
            let view = viewer.view(&filter);
            for author in 1..4 {
                for kind in 1..6 {
                    for p in 1..4 {
                        let event = event(author, kind, p);
                        let keys = viewer.keys();
                        let may_see = viewer.sees_all()
                            || !private.contains(kind)
                            || keys.contains(&[author; 32])
                            || keys.contains(&[p; 32]);
                        assert_eq!(viewer.sees(&event), may_see, "seed {seed}");
                        let shown = view.parts().any(|part| part.matches(&event));
                        let context = format!("seed {seed}: {filter:?}, {viewer:?}");
                        assert_eq!(shown, may_see && filter.matches(&event), "{context}");
                        assert!(!shown || !viewer.needs_keys_for(std::slice::from_ref(&filter)));
                    }
                }
            }
        }
    }
}
