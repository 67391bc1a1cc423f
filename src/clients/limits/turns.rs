//! Who works next. What costs a core takes a turn; there are only so many at a time, and the
//! address that has worked least goes first. Who asks for much waits for itself; who asks for
//! little now and then hardly waits at all.
//!
//! It is start-time fair queueing: time is virtual, that of the last turn that began. An address
//! that comes anew begins at that time, and each turn moves it on by as long as it took.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinError;

/// The most addresses that are remembered without a turn and without wanting one.
const MOST_IDLE_ADDRESSES: usize = 4_096;

/// The turns of one sort of work.
pub(crate) struct Turns {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    now: Duration,
    lines: HashMap<IpAddr, Line>,
    // The addresses that wait, by where they stand and when they came.
    waiting: BTreeMap<Place, IpAddr>,
    arrivals: u64,
}

/// An address.
#[derive(Default)]
struct Line {
    running: usize,
    // The virtual time to which its turns have brought it.
    stands_at: Duration,
    // Its key among those that wait.
    place: Option<Place>,
    // A connection waits for one turn at a time.
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

type Place = (Duration, u64);

/// The right to work until this is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    address: IpAddr,
    began: Instant,
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
            if is_free && state.line(address).running < self.of_an_address() {
                state.begin(address);
                return self.turn(address);
            }
            let line = state.line(address);
            // Those who have gone wait no more.
            line.waiting.retain(|give| !give.is_closed());
            let (give, waiting) = oneshot::channel();
            line.waiting.push_back(give);
            state.stand_in_line(address);
            waiting
        };
        match waiting.await {
            Ok(turn) => turn,
            // Nobody drops what is in a line without giving a turn.
            Err(_) => {
                self.lock().begin(address);
                self.turn(address)
            }
        }
    }

    /// Works in a turn of the address's, on a thread that may take its time.
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        address: IpAddr,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = self.take(address).await;
        let work = move || {
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await
    }

    fn of_an_address(&self) -> usize {
        (self.most / 2).max(1)
    }

    fn turn(self: &Arc<Self>, address: IpAddr) -> Turn {
        Turn { turns: Arc::clone(self), address, began: Instant::now() }
    }

    /// Ends a turn and gives it to the next who still wants it.
    fn end(self: &Arc<Self>, address: IpAddr, took: Duration) {
        let mut ended = (address, took);
        loop {
            let mut state = self.lock();
            state.leave(ended.0, ended.1);
            let Some((next, give)) = state.next(self.of_an_address()) else { return };
            drop(state);
            match give.send(self.turn(next)) {
                Ok(()) => return,
                // It has gone. This turn ends here, not by a drop that would call this again.
                Err(turn) => std::mem::forget(turn),
            }
            ended = (next, Duration::ZERO);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn line(&mut self, address: IpAddr) -> &mut Line {
        if self.lines.len() > MOST_IDLE_ADDRESSES && !self.lines.contains_key(&address) {
            self.lines.retain(|_, line| line.running > 0 || line.place.is_some());
        }
        let line = self.lines.entry(address).or_default();
        line.stands_at = line.stands_at.max(self.now);
        line
    }

    fn begin(&mut self, address: IpAddr) {
        let line = self.line(address);
        line.running += 1;
        self.now = line.stands_at;
        self.running += 1;
    }

    /// Puts an address where it belongs among those that wait.
    fn stand_in_line(&mut self, address: IpAddr) {
        let Some(line) = self.lines.get_mut(&address) else { return };
        let arrival = match line.place.take() {
            Some(place) => {
                self.waiting.remove(&place);
                place.1
            }
            None => {
                self.arrivals += 1;
                self.arrivals
            }
        };
        if !line.waiting.is_empty() {
            line.place = Some((line.stands_at, arrival));
            self.waiting.insert((line.stands_at, arrival), address);
        }
    }

    fn leave(&mut self, address: IpAddr, took: Duration) {
        self.running = self.running.saturating_sub(1);
        let Some(line) = self.lines.get_mut(&address) else { return };
        line.running = line.running.saturating_sub(1);
        line.stands_at += took;
        if line.place.is_some() {
            self.stand_in_line(address);
        } else if line.running == 0 && line.stands_at <= self.now {
            self.lines.remove(&address);
        }
    }

    /// Counts the next turn as begun, and says who gets it.
    fn next(&mut self, of_an_address: usize) -> Option<(IpAddr, oneshot::Sender<Turn>)> {
        let lines = &self.lines;
        let may =
            |address: &IpAddr| lines.get(address).is_some_and(|line| line.running < of_an_address);
        let address = self.waiting.values().copied().find(may)?;
        let give = self.lines.get_mut(&address)?.waiting.pop_front()?;
        self.begin(address);
        // Behind those who stand at the same time.
        if let Some(place) = self.lines.get_mut(&address).and_then(|line| line.place.take()) {
            self.waiting.remove(&place);
        }
        self.stand_in_line(address);
        Some((address, give))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.end(self.address, self.began.elapsed());
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
        // Others, who have had nothing yet, go before all of them, in the order they came in.
        let mut others: Vec<_> =
            (2..5).map(|number| Box::pin(turns.take(address(number)))).collect();
        assert!(others.iter_mut().all(|it| poll(it.as_mut()).is_none()));
        drop(running);
        for mut other in others {
            assert!(poll(greedy[0].as_mut()).is_none());
            drop(poll(other.as_mut()).unwrap());
        }
        // Those who have gone are passed over.
        drop(poll(greedy[0].as_mut()).unwrap());
        greedy.drain(..40);
        for mut waiting in greedy.drain(..) {
            drop(poll(waiting.as_mut()).unwrap());
        }
        let state = turns.lock();
        assert!(state.waiting.is_empty() && state.running == 0);
    }

    /// Two that always want a turn get the same time, though one asks for ten times as long.
    #[test]
    fn time_is_shared_and_not_turns() {
        let mut state = State::default();
        let mut had = [Duration::ZERO; 2];
        let mut receivers = Vec::new();
        for round in 0..1_000 {
            for number in 0..2_u32 {
                let line = state.line(address(number));
                if line.waiting.is_empty() {
                    let (give, receive) = oneshot::channel();
                    line.waiting.push_back(give);
                    receivers.push(receive);
                    state.stand_in_line(address(number));
                }
            }
            let (next, _) = state.next(1).unwrap();
            let number = usize::from(next == address(1));
            let took = Duration::from_millis([1, 10][number]);
            had[number] += took;
            state.leave(next, took);
            if round > 100 {
                let (less, more) = (had[0].min(had[1]), had[0].max(had[1]));
                assert!(more - less <= Duration::from_millis(11), "{round}: {had:?}");
            }
        }
    }

    #[test]
    fn addresses_that_want_nothing_are_forgotten_when_there_are_many() {
        let turns = Arc::new(Turns::new(1));
        for number in 0..3 * MOST_IDLE_ADDRESSES as u32 {
            drop(poll(pin!(turns.take(address(number)))).unwrap());
            assert!(turns.lock().lines.len() <= MOST_IDLE_ADDRESSES + 1);
        }
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
