//! `negsync import --into`: the events are gathered in a store that goes with the command, and sent
//! from there to a relay that runs, as far as it lacks them.

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

/// The relay, and the folder of the store.
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

    /// Has the events go to the temporary store, which needs to survive nothing.
    pub(super) fn apply(&self, config: &mut Config) {
        config.store.path = self.store();
        config.store.url = DatabaseUrl::default();
        config.store.synchronous = Synchronous::Normal;
        // A relay of the operator's own is reached straight, and judges protected events itself.
        config.sync.proxy = Via::Direct;
        config.sync.protected = true;
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("events.sqlite")
    }

    /// Sends what the relay lacks, prints what came of it, and returns whether all has an answer.
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
