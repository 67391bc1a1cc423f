//! Who works next. What costs a core takes a turn; there are only so many at a time, and while
//! several addresses wait they get theirs one after the other, however many each asks for.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The turns of one sort of work.
pub(crate) struct Turns {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    lines: HashMap<IpAddr, Line>,
    // The addresses that wait, the next one first. A connection waits for one turn at a time.
    order: VecDeque<IpAddr>,
}

#[derive(Default)]
struct Line {
    running: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// The right to work until this is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    address: IpAddr,
}

impl Turns {
    /// At most `most` at a time, and half of them, but one at least, for one address.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), state: Mutex::default() }
    }

    /// Waits for a turn.
    pub(crate) async fn take(self: &Arc<Self>, address: IpAddr) -> Turn {
        let waiting = {
            let mut state = self.lock();
            let is_free = state.running < self.most;
            let line = state.lines.entry(address).or_default();
            if is_free && line.running < self.of_an_address() {
                line.running += 1;
                state.running += 1;
                return self.turn(address);
            }
            // One a connection: those that have gone wait no more.
            line.waiting.retain(|give| !give.is_closed());
            let (give, waiting) = oneshot::channel();
            line.waiting.push_back(give);
            if line.waiting.len() == 1 && !state.order.contains(&address) {
                state.order.push_back(address);
            }
            waiting
        };
        match waiting.await {
            Ok(turn) => turn,
            // Nobody drops what is in a line without giving a turn.
            Err(_) => self.turn_at_once(address),
        }
    }

    fn of_an_address(&self) -> usize {
        (self.most / 2).max(1)
    }

    fn turn(self: &Arc<Self>, address: IpAddr) -> Turn {
        Turn { turns: Arc::clone(self), address }
    }

    fn turn_at_once(self: &Arc<Self>, address: IpAddr) -> Turn {
        let mut state = self.lock();
        state.running += 1;
        state.lines.entry(address).or_default().running += 1;
        drop(state);
        self.turn(address)
    }

    /// Ends a turn and gives it to the next who still wants it.
    fn end(self: &Arc<Self>, address: IpAddr) {
        let mut ended = address;
        loop {
            let mut state = self.lock();
            state.running = state.running.saturating_sub(1);
            state.leave(ended);
            let Some((next, give)) = state.next(self.of_an_address()) else { return };
            drop(state);
            match give.send(self.turn(next)) {
                Ok(()) => return,
                // It has gone. This turn ends here, not by a drop that would call this again.
                Err(turn) => std::mem::forget(turn),
            }
            ended = next;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn leave(&mut self, address: IpAddr) {
        let Some(line) = self.lines.get_mut(&address) else { return };
        line.running = line.running.saturating_sub(1);
        if line.running == 0 && line.waiting.is_empty() {
            self.lines.remove(&address);
        }
    }

    /// Counts the next turn as taken, and says who gets it.
    fn next(&mut self, of_an_address: usize) -> Option<(IpAddr, oneshot::Sender<Turn>)> {
        let may = |address: &IpAddr| {
            self.lines.get(address).is_some_and(|line| line.running < of_an_address)
        };
        let place = self.order.iter().position(may)?;
        let address = self.order.remove(place)?;
        let line = self.lines.get_mut(&address)?;
        let give = line.waiting.pop_front()?;
        line.running += 1;
        if !line.waiting.is_empty() {
            self.order.push_back(address);
        }
        self.running += 1;
        Some((address, give))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.end(self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    /// Polls once.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn an_address_that_asks_for_much_waits_for_itself() {
        let turns = Arc::new(Turns::new(1));
        let running = poll(pin!(turns.take(address(1)))).unwrap();
        let mut greedy: Vec<_> = (0..50).map(|_| Box::pin(turns.take(address(1)))).collect();
        assert!(greedy.iter_mut().all(|it| poll(it.as_mut()).is_none()));
        let mut other = pin!(turns.take(address(2)));
        assert!(poll(other.as_mut()).is_none());
        drop(running);
        // The first in line had come before the other; the second has not.
        let first = poll(greedy[0].as_mut()).unwrap();
        assert!(poll(other.as_mut()).is_none());
        drop(first);
        assert!(poll(greedy[1].as_mut()).is_none());
        drop(poll(other.as_mut()).unwrap());
        // Those who have gone are passed over.
        greedy.drain(1..40);
        let mut ends = 0;
        for mut waiting in greedy.drain(1..) {
            drop(poll(waiting.as_mut()).unwrap());
            ends += 1;
        }
        assert_eq!(ends, 10);
        drop(greedy);
        assert!(turns.lock().lines.is_empty() && turns.lock().running == 0);
    }

    #[test]
    fn an_address_has_half_of_the_turns_and_never_are_there_more_than_all() {
        let turns = Arc::new(Turns::new(4));
        let take = |number| poll(pin!(turns.take(address(number))));
        let a = [take(1).unwrap(), take(1).unwrap()];
        assert!(take(1).is_none());
        let b = [take(2).unwrap(), take(3).unwrap()];
        assert!(take(4).is_none());
        drop(b);
        let mut third = pin!(turns.take(address(1)));
        assert!(poll(third.as_mut()).is_none());
        drop(a);
        assert!(poll(third.as_mut()).is_some());
        assert_eq!(turns.lock().running, 0);
    }
}
