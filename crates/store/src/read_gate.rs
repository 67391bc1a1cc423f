//! The gate that read transactions pass. SQLite restarts its write-ahead log only while there are
//! no readers; if reads always overlapped, the log would grow forever. The checkpointer closes the
//! gate briefly: reads with a deadline break off and retry, and the others are waited for. Before
//! that, it makes old reads break off, so that little is left to move while the gate is closed.

use super::{Deadline, StoreError};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The gate of a store. Clones share it.
#[derive(Clone, Default)]
pub(super) struct ReadGate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    // Counts how often all running reads were asked to break off. Every read checks it about once a
    // millisecond.
    breaks: AtomicU64,
    is_closed: AtomicBool,
    reading: Mutex<usize>,
    // Signalled when the gate opens, and when the last reader leaves.
    moved: Condvar,
}

/// Permission to read; the read ends when this is dropped.
pub(super) struct ReadPermit {
    gate: ReadGate,
    breaks: u64,
}

/// The closed gate. Dropping it opens the gate.
pub(super) struct Closed(ReadGate);

impl ReadGate {
    /// Passes the gate; waits while it is closed.
    pub(super) fn enter(&self, deadline: &Deadline) -> Result<ReadPermit, StoreError> {
        let mut reading = self.lock();
        while self.is_closed() {
            reading = deadline.wait(&self.0.reading, &self.0.moved, reading)?;
        }
        *reading += 1;
        Ok(ReadPermit { gate: self.clone(), breaks: self.0.breaks.load(Ordering::Acquire) })
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }

    /// Makes the reads with a deadline break off; they can retry at once.
    pub(super) fn break_off(&self) {
        self.0.breaks.fetch_add(1, Ordering::AcqRel);
    }

    /// Closes the gate, and waits up to `timeout` until there are no readers.
    pub(super) fn close(&self, timeout: Duration) -> Closed {
        let reading = self.lock();
        self.0.is_closed.store(true, Ordering::Release);
        self.break_off();
        drop(self.0.moved.wait_timeout_while(reading, timeout, |reading| *reading > 0));
        Closed(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.0.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadPermit {
    /// A function that returns whether the read should break off.
    pub(super) fn is_to_break_off(&self) -> impl Fn() -> bool + Send + 'static {
        let (gate, breaks) = (self.gate.clone(), self.breaks);
        move || gate.0.breaks.load(Ordering::Acquire) != breaks
    }
}

impl Drop for ReadPermit {
    fn drop(&mut self) {
        let mut reading = self.gate.lock();
        *reading -= 1;
        if *reading == 0 {
            self.gate.0.moved.notify_all();
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let _reading = self.0.lock();
        self.0.0.is_closed.store(false, Ordering::Release);
        self.0.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, Event, EventStore, Filter, Reader, Store, StoreOptions};
    use std::ops::ControlFlow;

    /// Overlapping reads without a pause kept the write-ahead log from being restarted.
    #[test]
    fn a_read_with_a_deadline_breaks_off_for_the_log_and_others_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.sqlite");
        let store = Store::open(&path, StoreOptions::default(), Box::new(|_| {})).unwrap();
        let event = |number: u64| {
            let (id, zeros) = (format!("{number:064x}"), "0".repeat(128));
            let json = format!(
                r#"{{"id":"{id}","pubkey":"{id}","created_at":{number},"kind":1,"tags":[],"content":"","sig":"{zeros}"}}"#
            );
            Event::parse(&json).unwrap().trust()
        };
        store.publish((1..=2_000).map(event).collect()).unwrap();
        let gate = ReadGate::default();
        let beside = crate::commits::Commits::default();
        let reader = Reader::beside_writer(
            &path,
            2,
            Clock::system(),
            beside,
            gate.clone(),
            Arc::default(),
            None,
        )
        .unwrap();
        let hour = Duration::from_secs(3_600);
        for (deadline, is_whole) in
            [(Deadline::after(hour, || false), false), (Deadline::default(), true)]
        {
            let (mut seen, mut closing) = (0, None);
            let read = reader.with_deadline(deadline).items(&Filter::default(), |_| {
                seen += 1;
                if seen == 1 {
                    let closed = gate.clone();
                    closing = Some(std::thread::spawn(move || drop(closed.close(hour))));
                    while !gate.is_closed() {
                        std::thread::yield_now();
                    }
                }
                ControlFlow::Continue(())
            });
            assert_eq!((read.is_ok(), seen == 2_000), (is_whole, is_whole));
            // No reader is left, so the gate opens.
            closing.unwrap().join().unwrap();
            assert!(!gate.is_closed());
        }
    }
}
