//! The thread that follows the commits of other nodes for live subscriptions: it is notified by the
//! server (LISTEN), and polls as well. Sets do not wait for it: each read of a set reads the feed
//! itself.

use crate::address::Address;
use crate::fault::{fault, within};
use crate::node::StoreNode;
use crate::wake_up::WakeUp;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use negsync_store::StoreError;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio_postgres::{AsyncMessage, Client};

/// Poll interval while notifications arrive.
const POLL_BESIDE: Duration = Duration::from_secs(1);
/// Poll interval without notifications: behind a transaction pooler, or without a connection.
const POLL_ALONE: Duration = Duration::from_millis(20);
/// Poll interval while the database cannot be read.
const POLL_AGAIN: Duration = Duration::from_millis(200);
/// Commits in a row found by polling, after which notifications count as not arriving.
const MOST_UNHEARD: u32 = 3;
/// First and maximum pause before a lost connection is made again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a connection without notifications is kept, in case they start to arrive.
const DEAF_TERM: Duration = Duration::from_secs(60);

/// Starts the threads that listen and poll, as long as the node exists.
pub(crate) fn start(node: &Arc<StoreNode>, address: &Address) -> Result<(), StoreError> {
    let (wake, woken) = sync_channel(1);
    let word = Arc::<ServerWord>::default();
    node.engine.spawn(listen(address.clone(), node.number(), wake, Arc::clone(&word)));
    let node = Arc::downgrade(node);
    std::thread::Builder::new()
        .name("store-feed".into())
        .spawn(move || follow(&woken, &word, &node))
        .map_err(StoreError::Thread)
        .map(|_| ())
}

/// The notifications received from the server.
#[derive(Default)]
struct ServerWord {
    // Whether notifications arrive, and their number.
    is_heard: AtomicBool,
    times: AtomicU64,
    // The highest commit number since the last `take`; 0 if there was none.
    seq: AtomicU64,
    // Whether there was any other notification.
    is_other: AtomicBool,
}

impl ServerWord {
    /// Records a notification of another node.
    fn note(&self, wake_up: WakeUp) {
        match wake_up {
            WakeUp::Commit(seq) => drop(self.seq.fetch_max(seq, Ordering::AcqRel)),
            WakeUp::Other => self.note_other(),
        }
    }

    fn note_other(&self) {
        self.is_other.store(true, Ordering::Release);
    }

    /// Takes the recorded notifications. Returns whether the feed has to be read; `knows` returns
    /// whether a commit number is known already.
    fn take(&self, knows: impl FnOnce(u64) -> bool) -> bool {
        let is_other = self.is_other.swap(false, Ordering::AcqRel);
        let seq = self.seq.swap(0, Ordering::AcqRel);
        let is_unknown = seq > 0 && !knows(seq);
        is_other || is_unknown
    }

    fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Acquire)
    }

    fn came(&self) {
        self.times.fetch_add(1, Ordering::AcqRel);
        self.hear(true);
    }

    fn hear(&self, is_heard: bool) {
        self.is_heard.store(is_heard, Ordering::Release);
    }
}

/// Records notifications and wakes the following thread, until that thread ends.
async fn listen(address: Address, node: i64, wake: SyncSender<()>, word: Arc<ServerWord>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match listen_once(&address, node, &wake, &word).await {
            Ok(Listened::ToTheEnd) => return,
            Ok(Listened::Lost) => pause = FIRST_PAUSE,
            Ok(Listened::InVain) => pause = LONGEST_PAUSE,
            Err(error) => {
                tracing::debug!(%error, "no LISTEN on the database server");
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        word.hear(false);
        tokio::time::sleep(pause).await;
    }
}

/// Why a listening connection ended.
enum Listened {
    /// The following thread has ended.
    ToTheEnd,
    /// The connection was lost.
    Lost,
    /// No notification arrived for existing commits.
    InVain,
}

async fn listen_once(
    address: &Address,
    node: i64,
    wake: &SyncSender<()>,
    word: &ServerWord,
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
    word.hear(true);
    // Commits made before the connection listened.
    word.note_other();
    loop {
        // If the channel is full, the thread is about to take all recorded notifications.
        if let Err(TrySendError::Disconnected(())) = wake.try_send(()) {
            return Ok(Listened::ToTheEnd);
        }
        loop {
            match tokio::time::timeout(DEAF_TERM, messages.next()).await {
                Ok(Some(Ok(AsyncMessage::Notification(of)))) => {
                    word.came();
                    // This node's own notifications only show that notifications arrive.
                    let Some(wake_up) = WakeUp::read(of.payload(), node) else { continue };
                    word.note(wake_up);
                    break;
                }
                Ok(Some(Ok(_))) => {}
                Ok(_) => return Ok(Listened::Lost),
                Err(_) if !word.is_heard() => return Ok(Listened::InVain),
                Err(_) => {}
            }
        }
    }
}

async fn begin(client: &Client) -> Result<(), StoreError> {
    client.batch_execute("LISTEN negsync").await.map_err(fault)
}

fn follow(woken: &Receiver<()>, word: &ServerWord, node: &Weak<StoreNode>) {
    let (mut is_failing, mut unheard, mut times, mut looked) = (false, 0, 0, Instant::now());
    loop {
        let heard = word.is_heard();
        let poll = match heard {
            _ if is_failing => POLL_AGAIN,
            true => POLL_BESIDE,
            false => POLL_ALONE,
        };
        // Counted from the last poll, so that this node's own commits do not postpone it.
        let was_woken = match woken.recv_timeout(poll.saturating_sub(looked.elapsed())) {
            Ok(()) => {
                let knows = |seq| node.upgrade().is_some_and(|node| node.feed.hear_of(seq));
                if !word.take(knows) && looked.elapsed() < poll {
                    // A set had read the commits before their notification arrived.
                    unheard = 0;
                    continue;
                }
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(POLL_AGAIN);
                false
            }
        };
        looked = Instant::now();
        let Some(node) = node.upgrade() else { return };
        match node.follow() {
            Err(StoreError::Closed) => return,
            Ok(is_new) => {
                if is_failing {
                    tracing::info!("database server can be read again");
                    is_failing = false;
                }
                // New commits without a notification may be this node's own; its own notification
                // was then received.
                let before = std::mem::replace(&mut times, word.times.load(Ordering::Acquire));
                let is_silent = !was_woken && before == times;
                unheard = if is_new && is_silent && heard { unheard + 1 } else { 0 };
                if unheard >= MOST_UNHEARD {
                    word.hear(false);
                }
            }
            Err(error) if !is_failing => {
                tracing::error!(%error, "database not readable: NEG-OPEN is refused until it is");
                is_failing = true;
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_commits_hide_nothing_that_others_told() {
        let word = ServerWord::default();
        let known = |seq| seq <= 20;
        word.note(WakeUp::Commit(17));
        assert!(!word.take(known));
        // A commit, or an ephemeral event, between known ones.
        for other in [21.into(), None] {
            word.note(WakeUp::Commit(18));
            word.note(other.map_or(WakeUp::Other, WakeUp::Commit));
            word.note(WakeUp::Commit(20));
            assert!(word.take(known), "{other:?}");
            assert!(!word.take(known));
        }
    }
}
