//! `negsync attach`, and the parts shared with `negsync sync --into`.

use super::service_manager::Starting;
use super::serving::{ListenArguments, Serves, Serving, Signals, say_where, sockets_handed_over};
use super::{StoreArguments, log_memory, start_log};
use anyhow::bail;
use negsync::admission::Admission;
use negsync::config::{Config, ConfigError, Reloaded};
use negsync::engine::open_store;
use negsync::index::Sets;
use negsync::sidecar::{self, Attach, open_sets};
use negsync::store::{EventStore, RelayKind};
use negsync::sync::{Local, Schedule};
use std::process::ExitCode;
use std::sync::Arc;

/// Which relay to work beside.
#[derive(clap::Args)]
pub(super) struct AttachedRelayArguments {
    /// The relay and its SQLite file or PostgreSQL database, such as
    /// nostr-rs-relay:/var/lib/nostr/nostr.db, nostr-relay-py:/var/lib/nostr/nostr.sqlite3 or
    /// nostream:postgres://negsync@127.0.0.1/nostr_ts_relay; wins over the configuration. A password
    /// belongs into PGPASSWORD.
    #[arg(long, value_name = "KIND:PATH|KIND:URL")]
    attach: Option<String>,
}

impl AttachedRelayArguments {
    /// Whether the command line names a relay.
    pub(super) fn is_given(&self) -> bool {
        self.attach.is_some()
    }

    pub(super) fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        let Some(text) = &self.attach else { return Ok(()) };
        let named = text.split_once(':').and_then(|(kind, place)| {
            (!place.is_empty()).then_some((RelayKind::named(kind)?, place))
        });
        let Some((kind, place)) = named else {
            let given = text.split_once(':').map_or(text.as_str(), |(kind, _)| kind);
            bail!(
                "--attach takes nostr-rs-relay:PATH, nostr-relay-py:PATH, \
                 nostream:postgres://USER@HOST/DATABASE or nostr-rs-relay:postgres://..., \
                 and {given:?} is none of these relays"
            );
        };
        let is_url = ["postgres://", "postgresql://"].iter().any(|it| place.starts_with(it));
        let (path, url) = if is_url { ("", place) } else { (place, "") };
        config.attach.kind = Some(kind);
        config.attach.path = path.into();
        config.attach.database_url = url.into();
        Ok(())
    }
}

pub(super) const EXAMPLES: &str = "Examples:
  negsync attach --attach nostr-rs-relay:/var/lib/nostr/nostr.db --url ws://127.0.0.1:8080
  negsync attach --attach nostr-relay-py:/var/lib/nostr/nostr.sqlite3 --url ws://127.0.0.1:6969 --listen :7777";

#[derive(clap::Args)]
pub(super) struct AttachArguments {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    attach: AttachedRelayArguments,
    /// The relay's own address, ws://HOST:PORT; wins over the configuration.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    listen: ListenArguments,
}

/// Our side of syncs for the configured relay. The store holds only the recorded state of syncs.
pub(super) fn local(config: Config) -> anyhow::Result<Local> {
    let (sets, notes) = (open_sets(&config)?, open_notes(&config)?);
    Ok(Local::attached(sets, notes, Admission::start(config)?)?)
}

fn open_notes(config: &Config) -> anyhow::Result<Arc<dyn EventStore>> {
    Ok(open_store(config, config.store_options())?)
}

impl AttachArguments {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = self.store.config()?;
        self.attach.apply(&mut config)?;
        self.listen.apply(&mut config);
        if let Some(url) = &self.url {
            config.attach.url.clone_from(url);
        }
        sidecar::check(&config)?;
        Ok(config)
    }
}

pub(super) fn run(arguments: &AttachArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config()?;
    let log = start_log(&config.log)?;
    log_memory(&config);
    super::descriptors::raise_limit(&config);
    let runtime = super::runtime::start(&config)?;
    runtime.block_on(async {
        let signals = Signals::heard(arguments.store.config.is_some())?;
        let sockets = sockets_handed_over(&config)?;
        let starting = Starting::begin();
        let sets = open_sets(&config)?;
        let attach = Attach::start_on(config.clone(), sets.clone(), sockets).await?;
        let (addresses, status) = (attach.addresses().to_vec(), attach.status_address());
        let database = config.attach.shown_database();
        let (relay, peers) = (config.attach.url.clone(), config.peers.len());
        let serving = Serving::begin(Beside { attach, sets, notes: None }, log)?;
        drop(starting);
        tracing::info!(?addresses, ?status, database, relay, peers, "serving");
        say_where(&database, &addresses);
        serving.run(signals, || arguments.config()).await
    })
}

/// The sidecar, and the recorded state of syncs on the relay's behalf.
struct Beside {
    attach: Attach,
    sets: Sets,
    // Opened once there are peers.
    notes: Option<Arc<dyn EventStore>>,
}

impl Serves for Beside {
    fn config(&self) -> Arc<Config> {
        self.attach.admission().config()
    }

    fn schedule(&mut self) -> anyhow::Result<Schedule> {
        let config = self.config();
        let peers = self.attach.peers();
        if config.peers.is_empty() {
            peers.clear();
            return Ok(Schedule::none());
        }
        let notes = match &self.notes {
            Some(notes) => notes.clone(),
            None => self.notes.insert(open_notes(&config)?).clone(),
        };
        let admission = self.attach.admission().clone();
        Ok(Schedule::attached(Local::attached(self.sets.clone(), notes, admission)?, peers)?)
    }

    fn reload(&self, config: Config) -> Result<Reloaded, ConfigError> {
        self.attach.reload(config)
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.attach.stop().await;
        if let Some(notes) = self.notes {
            tokio::task::spawn_blocking(move || notes.close()).await?;
        }
        Ok(())
    }
}
