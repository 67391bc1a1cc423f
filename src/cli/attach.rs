//! `negsync attach`, and what it shares with `negsync sync --into`.

use super::{StoreArguments, start_log};
use anyhow::{Context, bail};
use negsync::attach::{Attach, open_sets};
use negsync::config::Config;
use negsync::metrics::Peers;
use negsync::store::{RelayKind, Store, StoreOptions};
use negsync::sync::{Local, Schedule};
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Which relay to work beside.
#[derive(clap::Args)]
pub(super) struct AttachArguments {
    /// The relay and its SQLite file, such as nostr-rs-relay:/var/lib/nostr/nostr.db or
    /// nostr-relay-py:/var/lib/nostr/nostr.sqlite3; wins over the configuration.
    #[arg(long, value_name = "KIND:PATH")]
    attach: Option<String>,
}

impl AttachArguments {
    /// Whether the command line names a relay.
    pub(super) fn is_given(&self) -> bool {
        self.attach.is_some()
    }

    pub(super) fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        let Some(text) = &self.attach else { return Ok(()) };
        let named = text
            .split_once(':')
            .and_then(|(kind, path)| (!path.is_empty()).then_some((RelayKind::named(kind)?, path)));
        let Some((kind, path)) = named else {
            bail!("--attach takes nostr-rs-relay:PATH or nostr-relay-py:PATH, not {text:?}");
        };
        config.attach.kind = Some(kind);
        config.attach.path = path.into();
        Ok(())
    }
}

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    attach: AttachArguments,
    /// The relay's own address, ws://HOST:PORT; wins over the configuration.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The address and port to serve on; wins over the configuration. Port 0 takes any free one.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
}

/// Our side of syncs for the relay that is configured. The store holds only what they remember.
pub(super) fn local(config: &Config) -> anyhow::Result<Local> {
    let options = StoreOptions::configured(config);
    let sets = open_sets(config)?;
    let notes = Store::open(&config.store.path, options, Box::new(|_| {}))?;
    Ok(Local::attached(sets, notes, &config.attach.url, config)?)
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut config = arguments.store.config()?;
    arguments.attach.apply(&mut config)?;
    if let Some(listen) = arguments.listen {
        config.relay.listen = listen;
    }
    if let Some(url) = &arguments.url {
        config.attach.url.clone_from(url);
    }
    start_log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    // Before anything is served, so that no signal is missed.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let peers = Peers::default();
    let (sets, schedule) = if config.peers.is_empty() {
        (open_sets(&config)?, None)
    } else {
        let local = local(&config)?;
        let (sets, notes) = (local.sets.clone(), local.store.clone());
        (sets, Some((Schedule::attached(local, &config, &peers)?, notes)))
    };
    let database = config.attach.path.display().to_string();
    let attach = Attach::start(config, sets).await?;
    // A closed standard output is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "negsync serves {database} on ws://{}", attach.address());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    if let Some((schedule, notes)) = schedule {
        schedule.stop().await;
        tokio::task::spawn_blocking(move || notes.close()).await?;
    }
    attach.stop().await;
    Ok(ExitCode::SUCCESS)
}
