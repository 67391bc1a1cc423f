//! The thread that follows what other nodes commit, for live subscriptions: woken by the server (LISTEN),
//! and each second beside it. Sets do not wait for it: each looks at the feed itself.

use crate::address::Address;
use crate::connection::Engine;
use futures_util::StreamExt;
use negsync_store::StoreError;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use tokio_postgres::{AsyncMessage, NoTls};

/// How often the feed is looked at when nobody says that there is something new.
const POLL: Duration = Duration::from_secs(1);
/// How long it takes until a connection that was lost is made anew.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Who looks at the feed.
pub(crate) trait Follow: Send {
    /// Whether a commit of this number is known already.
    fn knows(&self, seq: u64) -> bool;
    /// Looks at the feed; `None` once nobody has the store open any more.
    fn look(&self) -> Option<Result<(), StoreError>>;
}

/// Starts to listen and to look.
pub(crate) fn start(
    engine: &Engine,
    address: &Address,
    follower: impl Follow + 'static,
) -> Result<(), StoreError> {
    let (wake, woken) = sync_channel(1);
    engine.spawn(listen(address.clone(), wake));
    std::thread::Builder::new()
        .name("store-feed".into())
        .spawn(move || follow(&woken, &follower))
        .map_err(StoreError::Thread)
        .map(|_| ())
}

/// Passes on the numbers of commits, until nobody takes them.
async fn listen(address: Address, wake: SyncSender<u64>) {
    loop {
        if let Ok((client, mut connection)) = address.config().connect(NoTls).await {
            let mut messages =
                futures_util::stream::poll_fn(move |context| connection.poll_message(context));
            let passed_on = async {
                while let Some(Ok(message)) = messages.next().await {
                    let AsyncMessage::Notification(of) = message else { continue };
                    let seq = of.payload().parse().unwrap_or(u64::MAX);
                    // Full: whoever is woken reads all that is new.
                    if let Err(std::sync::mpsc::TrySendError::Disconnected(_)) = wake.try_send(seq)
                    {
                        return;
                    }
                }
            };
            let listening = async {
                let _ = client.batch_execute("LISTEN negsync").await;
                // Kept open for as long as messages come.
                std::future::pending::<()>().await;
            };
            futures_util::future::select(std::pin::pin!(passed_on), std::pin::pin!(listening))
                .await;
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

fn follow(woken: &Receiver<u64>, follower: &impl Follow) {
    let mut is_failing = false;
    loop {
        match woken.recv_timeout(POLL) {
            // This node's own, nearly always.
            Ok(seq) if follower.knows(seq) => continue,
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL),
        }
        match follower.look() {
            None => return,
            Some(Ok(())) if is_failing => {
                tracing::info!("database server can be read again");
                is_failing = false;
            }
            Some(Err(error)) if !is_failing => {
                tracing::error!(%error, "sets cannot be answered until the database can be read");
                is_failing = true;
            }
            Some(_) => {}
        }
    }
}
