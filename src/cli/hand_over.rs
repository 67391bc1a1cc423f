//! `negsync import --into`: collects the events in a temporary store, and sends to a running relay
//! those that it lacks.

use super::sync::sentence;
use super::sync_progress::Display;
use anyhow::Context;
use negsync::admission::Admission;
use negsync::config::{Config, DatabaseUrl, Via};
use negsync::index::Index;
use negsync::relay_url::RelayUrl;
use negsync::store::Synchronous;
use negsync::sync::{Direction, Local, Options, sync};
use std::io::Write;
use std::path::PathBuf;
use tempfile::TempDir;

/// The relay, and the folder of the temporary store.
pub(super) struct HandOver {
    url: String,
    folder: TempDir,
}

impl HandOver {
    pub(super) fn to(url: &str) -> anyhow::Result<Self> {
        RelayUrl::parse(url)?;
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        Ok(Self { url: url.to_owned(), folder })
    }

    /// Configures the temporary store, which needs no durability.
    pub(super) fn apply(&self, config: &mut Config) {
        config.store.path = self.store();
        config.store.url = DatabaseUrl::default();
        config.store.synchronous = Synchronous::Normal;
        // The operator's own relay is reached directly, and decides about protected events itself.
        config.sync.proxy = Via::Direct;
        config.sync.protected = true;
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("events.sqlite")
    }

    /// Sends the missing events, prints the result, and returns whether every event has an answer.
    pub(super) fn send(&self, index: Index, admission: &Admission) -> anyhow::Result<bool> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let local = Local::configured(index, admission.clone())?;
        let options = Options::default().direction(Direction::Up);
        let mut shown = Display::new(false).of_peer(&self.url);
        let report = runtime
            .block_on(sync(&local, &self.url, &options, |progress| shown.show(&progress)))?;
        drop(shown);
        local.close();
        let _ = writeln!(std::io::stdout(), "{}", sentence(&report));
        Ok(report.complete)
    }
}
