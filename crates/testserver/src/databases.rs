//! The databases of tests.

use super::run;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

const PREFIX: &str = "negsync_test_";

/// A name that no other database of this process uses.
pub(crate) fn fresh_name() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}_{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))
}

/// Creates a database on the server and returns its URL.
pub(crate) fn make(server: &str, name: &str) -> String {
    run(server, &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")).unwrap();
    let (before, parameters) = server.split_once('?').unwrap_or((server, ""));
    let (host, _) = before.rsplit_once('/').unwrap();
    let mark = if parameters.is_empty() { "" } else { "?" };
    format!("{host}/{name}{mark}{parameters}")
}

/// The databases of one test on a shared server, dropped with this. Each has an advisory lock, held
/// by a connection during the test. A database whose lock is free is left over from a killed test,
/// and the next test drops it.
pub(crate) struct SharedDatabases {
    pub(crate) server: String,
    client: Client,
    // Taken when dropped.
    runtime: Option<Runtime>,
    names: Mutex<Vec<String>>,
}

impl SharedDatabases {
    pub(crate) fn new(server: String) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let client = beside(&runtime, async {
            let (client, connection) = tokio_postgres::connect(&server, NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        let databases = Self { server, client, runtime: Some(runtime), names: Mutex::default() };
        databases.drop_those_of_killed_tests();
        databases
    }

    fn wait<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        beside(self.runtime.as_ref().unwrap(), future)
    }

    /// A name reserved for this test.
    pub(crate) fn fresh_name(&self) -> String {
        let name = fresh_name();
        let lock = format!("SELECT pg_advisory_lock(hashtext('{name}'))");
        self.wait(self.client.batch_execute(&lock)).unwrap();
        self.names.lock().unwrap().push(name.clone());
        name
    }

    fn drop_those_of_killed_tests(&self) {
        let names = format!(
            "SELECT datname FROM pg_database WHERE datname LIKE '{PREFIX}%'
             AND pg_try_advisory_lock(hashtext(datname))"
        );
        let rows = self.wait(self.client.query(&names, &[])).unwrap();
        rows.iter().for_each(|row| self.drop_database(row.get(0)));
    }

    fn drop_database(&self, name: &str) {
        let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        let unlock = format!("SELECT pg_advisory_unlock(hashtext('{name}'))");
        for statement in [drop, unlock] {
            // A database that cannot be dropped now is left to the next test.
            let _ = self.wait(self.client.batch_execute(&statement));
        }
    }
}

impl Drop for SharedDatabases {
    fn drop(&mut self) {
        for name in self.names.lock().unwrap().drain(..) {
            self.drop_database(&name);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits on another thread, so that async tests can call it.
fn beside<T: Send>(runtime: &Runtime, future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join().unwrap())
}
