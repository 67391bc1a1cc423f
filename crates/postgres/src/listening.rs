//! The thread that follows what other nodes commit, for live subscriptions: woken by the server (LISTEN),
//! and by the clock beside it. Sets do not wait for it: each looks at the feed itself.

use crate::address::Address;
use crate::ephemeral;
use crate::fault::{fault, within};
use crate::node::StoreNode;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use negsync_store::StoreError;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio_postgres::{AsyncMessage, Client};

/// How often the feed is looked at while the server says when there is something new.
const POLL_BESIDE: Duration = Duration::from_secs(1);
/// How often it is looked at where the server does not: a pooler of transactions, or no connection.
const POLL_ALONE: Duration = Duration::from_millis(20);
/// How often it is tried again where the database cannot be read.
const POLL_AGAIN: Duration = Duration::from_millis(200);
/// So many commits in a row that were found by the clock: the server's word does not get here.
const MOST_UNHEARD: u32 = 3;
/// How long it takes until a connection that was lost is made anew: the first time, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a connection that brought no word is kept, so that it may begin to.
const DEAF_TERM: Duration = Duration::from_secs(60);

/// Starts to listen and to look, for as long as the node is there.
pub(crate) fn start(node: &Arc<StoreNode>, address: &Address) -> Result<(), StoreError> {
    let (wake, woken) = sync_channel(1);
    let is_heard = Arc::<AtomicBool>::default();
    // What this node wakes others with.
    let own = ephemeral::wake_up(node.number());
    node.engine.spawn(listen(address.clone(), own, wake, Arc::clone(&is_heard)));
    let node = Arc::downgrade(node);
    std::thread::Builder::new()
        .name("store-feed".into())
        .spawn(move || follow(&woken, &is_heard, &node))
        .map_err(StoreError::Thread)
        .map(|_| ())
}

/// Passes on the numbers of commits, and nothing where there may be anything else, until nobody takes them.
async fn listen(
    address: Address,
    own: String,
    wake: SyncSender<Option<u64>>,
    is_heard: Arc<AtomicBool>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        match listen_once(&address, &own, &wake, &is_heard).await {
            Ok(Listened::ToTheEnd) => return,
            Ok(Listened::Lost) => pause = FIRST_PAUSE,
            Ok(Listened::InVain) => pause = LONGEST_PAUSE,
            Err(error) => {
                tracing::debug!(%error, "no LISTEN on the database server");
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        is_heard.store(false, Ordering::Release);
        tokio::time::sleep(pause).await;
    }
}

/// How a connection that listens ended.
enum Listened {
    /// Nobody takes the numbers any more.
    ToTheEnd,
    /// The connection was lost.
    Lost,
    /// Nothing was heard of commits that there were.
    InVain,
}

async fn listen_once(
    address: &Address,
    own: &str,
    wake: &SyncSender<Option<u64>>,
    is_heard: &AtomicBool,
) -> Result<Listened, StoreError> {
    let (client, mut connection) = address.connect().await?;
    let mut messages =
        pin!(futures_util::stream::poll_fn(move |context| connection.poll_message(context)));
    {
        let begin = pin!(within(address.patience(), begin(&client)));
        let lost = pin!(async { while let Some(Ok(_)) = messages.next().await {} });
        match select(begin, lost).await {
            Either::Left((begun, _)) => begun?,
            Either::Right(_) => return Ok(Listened::Lost),
        }
    }
    is_heard.store(true, Ordering::Release);
    // What was committed while nobody listened.
    let mut seq = None;
    loop {
        // Full: whoever is woken reads all that is new.
        if let Err(TrySendError::Disconnected(_)) = wake.try_send(seq) {
            return Ok(Listened::ToTheEnd);
        }
        loop {
            match tokio::time::timeout(DEAF_TERM, messages.next()).await {
                Ok(Some(Ok(AsyncMessage::Notification(of)))) => {
                    is_heard.store(true, Ordering::Release);
                    if of.payload() == own {
                        continue;
                    }
                    seq = of.payload().parse().ok();
                    break;
                }
                Ok(Some(Ok(_))) => {}
                Ok(_) => return Ok(Listened::Lost),
                Err(_) if !is_heard.load(Ordering::Acquire) => return Ok(Listened::InVain),
                Err(_) => {}
            }
        }
    }
}

async fn begin(client: &Client) -> Result<(), StoreError> {
    client.batch_execute("LISTEN negsync").await.map_err(fault)
}

fn follow(woken: &Receiver<Option<u64>>, is_heard: &AtomicBool, node: &Weak<StoreNode>) {
    let (mut is_failing, mut unheard) = (false, 0);
    loop {
        let heard = is_heard.load(Ordering::Acquire);
        let poll = match heard {
            _ if is_failing => POLL_AGAIN,
            true => POLL_BESIDE,
            false => POLL_ALONE,
        };
        let was_woken = match woken.recv_timeout(poll) {
            // This node's own, nearly always.
            Ok(Some(seq)) if node.upgrade().is_some_and(|node| node.feed.hear_of(seq)) => {
                unheard = 0;
                continue;
            }
            Ok(_) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(POLL_AGAIN);
                false
            }
        };
        let Some(node) = node.upgrade() else { return };
        match node.follow() {
            Err(StoreError::Closed) => return,
            Ok(is_new) => {
                if is_failing {
                    tracing::info!("database server can be read again");
                    is_failing = false;
                }
                unheard = if is_new && !was_woken && heard { unheard + 1 } else { 0 };
                if unheard >= MOST_UNHEARD {
                    is_heard.store(false, Ordering::Release);
                }
            }
            Err(error) if !is_failing => {
                tracing::error!(%error, "sets cannot be answered until the database can be read");
                is_failing = true;
            }
            Err(_) => {}
        }
    }
}
