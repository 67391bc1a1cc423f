//! Hooks in Rust of the program that runs a relay, in addition to the configuration.

use super::{Refusal, RefusalReason, Source};
use crate::prefix::Prefix;
use crate::store::{Filter, VerifiedEvent, Viewer};
use std::borrow::Cow;
use std::sync::Arc;

type Admit = dyn Fn(&VerifiedEvent, &Source) -> Result<(), String> + Send + Sync;
type MayRead = dyn Fn(&Viewer, &[Filter]) -> Result<(), String> + Send + Sync;

/// The hooks of a relay. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) admit: Option<Arc<Admit>>,
    pub(crate) may_read: Option<Arc<MayRead>>,
}

impl Hooks {
    /// The refusal of the program's hook, if it refuses the event.
    pub(super) fn refuses(&self, event: &VerifiedEvent, source: &Source) -> Option<Refusal> {
        let text = self.admit.as_ref()?(event, source).err()?;
        Some(Refusal::new(event, RefusalReason::WritePolicy, prefixed(text, Prefix::Blocked)))
    }

    /// Asks the program's hook whether the client may ask for the filters.
    pub(super) fn may_read(
        &self,
        viewer: &Viewer,
        filters: &[Filter],
    ) -> Result<(), Cow<'static, str>> {
        let Some(may_read) = &self.may_read else { return Ok(()) };
        may_read(viewer, filters).map_err(|text| prefixed(text, Prefix::Restricted).into())
    }
}

/// The text with a machine-readable prefix (NIP-01): its own, or `prefix` if it has none.
fn prefixed(text: String, prefix: Prefix) -> String {
    if Prefix::of(&text).is_some() { text } else { format!("{prefix}: {text}") }
}
