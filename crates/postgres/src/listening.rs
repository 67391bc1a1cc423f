//! The thread that follows what other nodes commit, for live subscriptions: woken by the server (LISTEN),
//! and by the clock beside it. Sets do not wait for it: each looks at the feed itself.

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
    let word = Arc::<ServerWord>::default();
    node.engine.spawn(listen(address.clone(), node.number(), wake, Arc::clone(&word)));
    let node = Arc::downgrade(node);
    std::thread::Builder::new()
        .name("store-feed".into())
        .spawn(move || follow(&woken, &word, &node))
        .map_err(StoreError::Thread)
        .map(|_| ())
}

/// What the server says of what is new.
#[derive(Default)]
struct ServerWord {
    // Whether it gets here, and how often it did.
    is_heard: AtomicBool,
    times: AtomicU64,
    // The highest number of a commit since it was taken last; 0 without one.
    seq: AtomicU64,
    // Whether there may be anything else.
    is_other: AtomicBool,
}

impl ServerWord {
    /// Keeps what another node says.
    fn note(&self, wake_up: WakeUp) {
        match wake_up {
            WakeUp::Commit(seq) => drop(self.seq.fetch_max(seq, Ordering::AcqRel)),
            WakeUp::Other => self.note_other(),
        }
    }

    fn note_other(&self) {
        self.is_other.store(true, Ordering::Release);
    }

    /// Takes what was kept. Returns whether the feed has to be looked at for it; `knows` is asked about the
    /// number of a commit.
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

/// Keeps what the server says and wakes who follows, until nobody does.
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

/// How a connection that listens ended.
enum Listened {
    /// Nobody follows any more.
    ToTheEnd,
    /// The connection was lost.
    Lost,
    /// Nothing was heard of commits that there were.
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
    // What was committed while nobody listened.
    word.note_other();
    loop {
        // Full: whoever is woken takes all that is kept.
        if let Err(TrySendError::Disconnected(())) = wake.try_send(()) {
            return Ok(Listened::ToTheEnd);
        }
        loop {
            match tokio::time::timeout(DEAF_TERM, messages.next()).await {
                Ok(Some(Ok(AsyncMessage::Notification(of)))) => {
                    word.came();
                    // This node's own say that the server's word gets here, and nothing else.
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
        // From the last look on: this node's own commits do not put it off.
        let was_woken = match woken.recv_timeout(poll.saturating_sub(looked.elapsed())) {
            Ok(()) => {
                let knows = |seq| node.upgrade().is_some_and(|node| node.feed.hear_of(seq));
                if !word.take(knows) && looked.elapsed() < poll {
                    // Found by a set before the word of it came.
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
                // What is new without a word may be this node's own, of which there was one.
                let before = std::mem::replace(&mut times, word.times.load(Ordering::Acquire));
                let is_silent = !was_woken && before == times;
                unheard = if is_new && is_silent && heard { unheard + 1 } else { 0 };
                if unheard >= MOST_UNHEARD {
                    word.hear(false);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_commits_hide_nothing_that_others_told() {
        let word = ServerWord::default();
        let known = |seq| seq <= 20;
        word.note(WakeUp::Commit(17));
        assert!(!word.take(known));
        // A commit, or an event that is passed on, between known ones.
        for other in [21.into(), None] {
            word.note(WakeUp::Commit(18));
            word.note(other.map_or(WakeUp::Other, WakeUp::Commit));
            word.note(WakeUp::Commit(20));
            assert!(word.take(known), "{other:?}");
            assert!(!word.take(known));
        }
    }
}
