//! A relay in this process, on a free port and a store of its own.

use super::client::Client;
use super::engine;
use negsync::config::{Config, DatabaseUrl};
use negsync::relay::{Relay, RelayBuilder};
use negsync::store::{Clock, ManualClock};
use negsync_testserver::TestServer;
use std::path::PathBuf;
use tempfile::TempDir;

pub struct TestRelay {
    pub relay: Relay,
    pub config: Config,
    clock: Clock,
    // Removed with the relay, like the database.
    directory: TempDir,
    database: Option<TestServer>,
}

impl TestRelay {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts with the default configuration, changed by `change`, without rate limits.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::built_with(change, |builder| builder).await
    }

    /// Like [`TestRelay::start_with`], with a clock that the test sets.
    pub async fn start_by(clock: &ManualClock, change: impl FnOnce(&mut Config)) -> Self {
        Self::built(change, |builder| builder, Clock::from(clock)).await
    }

    /// Like [`TestRelay::start_with`], with a builder changed by `build`.
    pub async fn built_with(
        change: impl FnOnce(&mut Config),
        build: impl FnOnce(RelayBuilder) -> RelayBuilder,
    ) -> Self {
        Self::built(change, build, Clock::system()).await
    }

    async fn built(
        change: impl FnOnce(&mut Config),
        build: impl FnOnce(RelayBuilder) -> RelayBuilder,
        clock: Clock,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.relay.listen = "127.0.0.1:0".parse().unwrap();
        config.store.path = directory.path().join("events.sqlite");
        let database = engine::database();
        if let Some(database) = &database {
            config.store.url = DatabaseUrl::parse(database.url()).unwrap();
            config.moderation.file = directory.path().join("bans");
        }
        let rates = &mut config.rates;
        let (events, queries) = (&mut rates.events_per_s, &mut rates.queries_per_s);
        for per_s in [events, queries, &mut rates.neg_per_s, &mut rates.other_per_s] {
            *per_s = 0;
        }
        change(&mut config);
        let builder = build(Relay::builder(config.clone())).clock(clock.clone());
        let relay = builder.start().await.unwrap();
        Self { relay, config, clock, directory, database }
    }

    /// Stops the relay and starts another one on the same store, with the same clock.
    pub async fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { relay, mut config, clock, directory, database } = self;
        relay.stop().await;
        change(&mut config);
        let builder = Relay::builder(config.clone()).clock(clock.clone());
        let relay = builder.start().await.unwrap();
        Self { relay, config, clock, directory, database }
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.relay.address())
    }

    /// The URL of its store, if that is on PostgreSQL.
    pub fn database_url(&self) -> Option<&str> {
        self.database.as_ref().map(TestServer::url)
    }

    pub fn store_path(&self) -> PathBuf {
        self.config.store.path.clone()
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.url()).await
    }
}
