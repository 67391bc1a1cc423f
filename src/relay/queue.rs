//! A queue between the parts of one connection. It allocates only while it has items, whereas a
//! tokio channel takes a kilobyte from the start. The sender must bound the number of items.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

struct Queue<T>(Mutex<QueueState<T>>);

struct QueueState<T> {
    waiting: VecDeque<T>,
    entrances: usize,
    has_exit: bool,
    // Wakes the receiver, if it waits, when an item arrives or no more can arrive. Under the same
    // lock as the items, it costs less than a `Notify`.
    receiver: Option<Waker>,
}

/// The sending half. The queue ends with its last clone.
pub(super) struct Entrance<T>(Arc<Queue<T>>);

/// The receiving half; items are in order. Dropping it drops the queued items.
pub(super) struct Exit<T>(Arc<Queue<T>>);

/// An empty queue.
pub(super) fn queue<T>() -> (Entrance<T>, Exit<T>) {
    let state =
        QueueState { waiting: VecDeque::new(), entrances: 1, has_exit: true, receiver: None };
    let queue = Arc::new(Queue(Mutex::new(state)));
    (Entrance(Arc::clone(&queue)), Exit(queue))
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, QueueState<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Entrance<T> {
    /// Queues an item; returns it if the receiver is gone.
    pub(super) fn put(&self, item: T) -> Result<(), T> {
        let mut state = self.0.lock();
        if !state.has_exit {
            return Err(item);
        }
        state.waiting.push_back(item);
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        Ok(())
    }
}

impl<T> Clone for Entrance<T> {
    fn clone(&self) -> Self {
        self.0.lock().entrances += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Entrance<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.entrances -= 1;
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }
}

impl<T> Exit<T> {
    /// The next item; `None` when the queue is empty and has ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<T> {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if let Some(next) = state.waiting.pop_front() {
                if state.waiting.is_empty() {
                    state.waiting = VecDeque::new();
                }
                return Poll::Ready(Some(next));
            }
            if state.entrances == 0 {
                return Poll::Ready(None);
            }
            state.receiver = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether the queue is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().waiting.is_empty()
    }
}

impl<T> Drop for Exit<T> {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.lock();
            state.has_exit = false;
            (std::mem::take(&mut state.waiting), state.receiver.take())
        };
        // Outside the lock: dropped items may hold a sending half.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each item of several threads is received once, those of one thread in order, and then the
    /// queue ends.
    #[tokio::test]
    async fn everything_comes_out_once_and_in_order() {
        const THREADS: usize = 4;
        const EACH: usize = 5_000;
        let (entrance, mut exit) = queue();
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let entrance = entrance.clone();
                std::thread::spawn(move || {
                    (0..EACH).for_each(|number| entrance.put((thread, number)).unwrap());
                })
            })
            .collect();
        drop(entrance);
        let mut next = [0; THREADS];
        while let Some((thread, number)) = exit.next().await {
            assert_eq!(number, next[thread]);
            next[thread] += 1;
        }
        assert_eq!(next, [EACH; THREADS]);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn nothing_is_taken_once_nobody_takes_it_out() {
        let (entrance, exit) = queue();
        let kept = Arc::new(());
        entrance.put(Arc::clone(&kept)).unwrap();
        drop(exit);
        assert_eq!(Arc::strong_count(&kept), 1);
        assert!(entrance.put(kept).is_err());
    }
}
