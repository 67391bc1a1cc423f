//! Who works next. What costs a core takes a turn; there are only so many at a time, and the
//! address that has worked least goes first. Who asks for much waits for itself; who asks for
//! little now and then hardly waits at all.
//!
//! It is start-time fair queueing: time is virtual, that of the last turn that began. An address
//! that comes anew begins a little before that time, and each turn moves it on by as long as it took.
//!
//! A query of the store can take seconds. It gives its turn away as soon as others wait for one, and
//! goes on when it is its address's turn again; meanwhile it keeps its connection to the store, so
//! that only so many queries may have begun.
//!
//! A query is light while its address has asked for little. A light query waits for no turn: it begins
//! at once, and while it runs the heavy ones give way until a quarter of the turns is left to them.

use crate::store::Deadline;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinError;

/// The most addresses that are remembered without a turn and without wanting one.
const MOST_IDLE_ADDRESSES: usize = 4_096;

/// A query works so long before it lets others work.
const SLICE: Duration = Duration::from_millis(1);
/// An address that has asked for nothing for a while may work so long before it waits for those that
/// ask all the time.
const CREDIT: Duration = Duration::from_millis(100);
/// An address is light while it has so much of that time left.
const LIGHT_CREDIT: Duration = Duration::from_millis(50);
/// A query that has worked so long ends when others wait because too many have begun.
const CROWDED_WORK: Duration =
    if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(1) };

/// A query that has worked so long is a long one. A quarter of the turns is for those: what is short
/// finds a core.
const LONG_WORK: Duration = Duration::from_millis(20);

/// The turns of one sort of work.
pub(crate) struct FairQueue {
    most: usize,
    most_begun: usize,
    state: Mutex<FairQueueState>,
}

struct FairQueueState {
    running: usize,
    // Light queries among those that run.
    light: usize,
    // Those that run and those that gave their turn away.
    begun: usize,
    // Long queries among those that run.
    long: usize,
    now: Duration,
    lines: HashMap<IpAddr, AddressQueue>,
    // The addresses that wait, by where they stand and when they came.
    waiting: BTreeMap<Place, IpAddr>,
    arrivals: u64,
}

impl Default for FairQueueState {
    fn default() -> Self {
        Self {
            running: 0,
            light: 0,
            begun: 0,
            long: 0,
            // So that those who come first are light, too.
            now: CREDIT,
            lines: HashMap::new(),
            waiting: BTreeMap::new(),
            arrivals: 0,
        }
    }
}

/// An address.
#[derive(Default)]
struct AddressQueue {
    running: usize,
    begun: usize,
    // The virtual time to which its turns have brought it.
    stands_at: Duration,
    // Its key among those that wait.
    place: Option<Place>,
    // A connection waits for one turn at a time.
    waiting: VecDeque<oneshot::Sender<QueuePermit>>,
    // Those that gave their turn away.
    resuming: VecDeque<Resuming>,
}

/// A query that gave its turn away.
struct Resuming {
    is_long: bool,
    give: oneshot::Sender<()>,
}

impl AddressQueue {
    fn wants_nothing(&self) -> bool {
        self.waiting.is_empty() && self.resuming.is_empty()
    }
}

/// How many may work, and may have begun, in all and of an address.
#[derive(Clone, Copy)]
struct Most {
    running: usize,
    begun: usize,
    running_of_address: usize,
    begun_of_address: usize,
    long: usize,
    // Whether those that run give way to light ones.
    gives_way: bool,
}

/// Who gets a turn.
enum NextTurn {
    Begins(Weight, IpAddr, oneshot::Sender<QueuePermit>),
    Resumes(IpAddr, Resuming),
}

type Place = (Duration, u64);

/// Whether the address of a query has asked for little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    Light,
    Heavy,
}

/// The right to work until this is dropped.
pub(crate) struct QueuePermit {
    turns: Arc<FairQueue>,
    address: IpAddr,
    time: Mutex<Time>,
}

/// How long a turn has lasted.
struct Time {
    // Since it was last given.
    began: Instant,
    // Before that.
    worked: Duration,
    // Counted among the long queries that run.
    is_long: bool,
    // As which it is counted among those that run.
    weight: Weight,
}

impl FairQueue {
    /// At most `most` at a time, and half of them, but one at least, for one address.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { most, most_begun: most, state: Mutex::default() }
    }

    /// As [`FairQueue::new`], for queries that give way; at most `most_begun` of them have begun, a
    /// quarter of them, but one at least, of one address.
    pub(crate) fn for_queries(most: usize, most_begun: usize) -> Self {
        Self { most_begun: most_begun.max(1), ..Self::new(most) }
    }

    /// The threads that work in a turn at a time, at most. What has given its turn away keeps its
    /// thread.
    pub(super) fn threads(&self) -> usize {
        self.most.max(self.most_begun)
    }

    /// Waits for a turn.
    pub(crate) async fn take(self: &Arc<Self>, address: IpAddr) -> QueuePermit {
        let waiting = {
            let mut state = self.lock();
            state.line(address);
            if let Some(weight) = state.may_begin(address, self.limits()) {
                state.begin(weight, address);
                return self.turn(weight, address);
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
                self.lock().begin(Weight::Heavy, address);
                self.turn(Weight::Heavy, address)
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

    /// Runs a query of the store in a turn of the address's, on a thread that may take its time. It
    /// ends after `timeout` from its beginning, and as soon as `is_cancelled`.
    pub(crate) async fn query<T: Send + 'static>(
        self: &Arc<Self>,
        address: IpAddr,
        timeout: Duration,
        is_cancelled: impl Fn() -> bool + Send + Sync + 'static,
        query: impl FnOnce(Deadline) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = Arc::new(self.take(address).await);
        let query = move || {
            let own = Arc::clone(&turn);
            query(Deadline::giving_way(timeout, is_cancelled, move || own.give_way()))
        };
        tokio::task::spawn_blocking(query).await
    }

    fn limits(&self) -> Most {
        let gives_way = self.most_begun > self.most;
        Most {
            running: self.most,
            begun: self.most_begun,
            running_of_address: (self.most / 2).max(1),
            begun_of_address: (self.most_begun / if gives_way { 4 } else { 2 }).max(1),
            long: (self.most / 4).max(1),
            gives_way,
        }
    }

    fn turn(self: &Arc<Self>, weight: Weight, address: IpAddr) -> QueuePermit {
        let (began, worked) = (Instant::now(), Duration::ZERO);
        let time = Mutex::new(Time { began, worked, is_long: false, weight });
        QueuePermit { turns: Arc::clone(self), address, time }
    }

    /// Ends a turn and gives it to the next who still wants it.
    fn end(self: &Arc<Self>, weight: Weight, address: IpAddr, took: Duration) {
        let mut state = self.lock();
        state.leave(weight, address, took);
        state.end(address);
        drop(state);
        self.give();
    }

    /// Gives the turns that are free to those who still want them.
    fn give(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some(next) = state.next(self.limits()) else { return };
            drop(state);
            let (weight, address, is_given) = match next {
                // One that has gone ends here, not by a drop that would call this again.
                NextTurn::Begins(weight, address, give) => {
                    let sent = give.send(self.turn(weight, address));
                    (weight, address, sent.map_err(std::mem::forget).is_ok())
                }
                NextTurn::Resumes(address, next) => {
                    let is_given = next.give.send(()).is_ok();
                    if !is_given && next.is_long {
                        self.lock().long -= 1;
                    }
                    (Weight::Heavy, address, is_given)
                }
            };
            if !is_given {
                let mut state = self.lock();
                state.leave(weight, address, Duration::ZERO);
                state.end(address);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, FairQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FairQueueState {
    fn line(&mut self, address: IpAddr) -> &mut AddressQueue {
        if self.lines.len() > MOST_IDLE_ADDRESSES && !self.lines.contains_key(&address) {
            self.lines.retain(|_, line| line.begun > 0 || line.place.is_some());
        }
        let line = self.lines.entry(address).or_default();
        line.stands_at = line.stands_at.max(self.now.saturating_sub(CREDIT));
        line
    }

    /// As what a query of the address may begin now.
    fn may_begin(&self, address: IpAddr, most: Most) -> Option<Weight> {
        let of_address = |line: &AddressQueue| {
            line.running < most.running_of_address && line.begun < most.begun_of_address
        };
        let line = self.lines.get(&address);
        if self.begun >= most.begun || !line.is_none_or(of_address) {
            return None;
        }
        let is_light = line.is_none_or(|line| line.stands_at + LIGHT_CREDIT <= self.now);
        if most.gives_way && is_light && self.light < most.running {
            return Some(Weight::Light);
        }
        self.may_run_heavy(most).then_some(Weight::Heavy)
    }

    /// Whether one more heavy query may run.
    fn may_run_heavy(&self, most: Most) -> bool {
        let heavy = self.running - self.light;
        self.running < most.running && (self.light == 0 || heavy < most.long)
    }

    /// Whether fewer heavy queries have to run: light ones do.
    fn has_to_make_room(&self, most: Most) -> bool {
        self.light > 0 && self.running - self.light > most.long
    }

    fn begin(&mut self, weight: Weight, address: IpAddr) {
        self.line(address).begun += 1;
        self.begun += 1;
        self.light += usize::from(weight == Weight::Light);
        self.resume(address);
    }

    fn resume(&mut self, address: IpAddr) {
        let line = self.line(address);
        line.running += 1;
        let stands_at = line.stands_at;
        self.now = self.now.max(stands_at);
        self.running += 1;
    }

    /// What had begun has ended. Called after [`FairQueueState::leave`].
    fn end(&mut self, address: IpAddr) {
        self.begun = self.begun.saturating_sub(1);
        let Some(line) = self.lines.get_mut(&address) else { return };
        line.begun = line.begun.saturating_sub(1);
        // It would begin anew where it stands: before that it still owes a part of its credit.
        let owes_nothing = line.stands_at <= self.now.saturating_sub(CREDIT);
        if line.begun == 0 && line.place.is_none() && owes_nothing {
            self.lines.remove(&address);
        }
    }

    fn may_resume(&self, next: &Resuming, most: Most) -> bool {
        !next.is_long || self.long < most.long
    }

    /// Whether somebody waits only because too many have begun.
    fn is_crowded(&self, most: Most) -> bool {
        self.begun >= most.begun && self.lines.values().any(|line| !line.waiting.is_empty())
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
        if !line.wants_nothing() {
            line.place = Some((line.stands_at, arrival));
            self.waiting.insert((line.stands_at, arrival), address);
        }
    }

    fn leave(&mut self, weight: Weight, address: IpAddr, took: Duration) {
        self.running = self.running.saturating_sub(1);
        self.light = self.light.saturating_sub(usize::from(weight == Weight::Light));
        let Some(line) = self.lines.get_mut(&address) else { return };
        line.running = line.running.saturating_sub(1);
        line.stands_at += took;
        if line.place.is_some() {
            self.stand_in_line(address);
        }
    }

    /// Counts the next turn as begun, and says who gets it.
    fn next(&mut self, most: Most) -> Option<NextTurn> {
        let begins = |address: &IpAddr| {
            let has_waiting = self.lines.get(address).is_some_and(|line| !line.waiting.is_empty());
            self.may_begin(*address, most).filter(|_| has_waiting)
        };
        let may_run_heavy = self.may_run_heavy(most);
        let resumes = |address: &IpAddr| {
            may_run_heavy
                && self.lines.get(address).is_some_and(|line| {
                    line.running < most.running_of_address
                        && line.resuming.iter().any(|next| self.may_resume(next, most))
                })
        };
        let may = |address: &IpAddr| begins(address).is_some() || resumes(address);
        let address = self.waiting.values().copied().find(may)?;
        // What begins is nearly always short.
        let new = begins(&address);
        let resuming = &self.lines.get(&address)?.resuming;
        let place = resuming.iter().position(|next| self.may_resume(next, most));
        let line = self.lines.get_mut(&address)?;
        let next = if let Some(weight) = new {
            let give = line.waiting.pop_front()?;
            self.begin(weight, address);
            NextTurn::Begins(weight, address, give)
        } else {
            let next = line.resuming.remove(place?)?;
            self.long += usize::from(next.is_long);
            self.resume(address);
            NextTurn::Resumes(address, next)
        };
        // Behind those who stand at the same time.
        if let Some(place) = self.lines.get_mut(&address).and_then(|line| line.place.take()) {
            self.waiting.remove(&place);
        }
        self.stand_in_line(address);
        Some(next)
    }
}

impl QueuePermit {
    /// Lets those go first who wait and have worked less, and light ones; returns once it is this one's
    /// turn again, and whether it has to end because others cannot begin.
    fn give_way(&self) -> bool {
        let mut time = self.time.lock().unwrap_or_else(PoisonError::into_inner);
        let took = time.began.elapsed();
        let mut state = self.turns.lock();
        let makes_room =
            time.weight == Weight::Heavy && state.has_to_make_room(self.turns.limits());
        if took < SLICE && !makes_room {
            return false;
        }
        if state.is_crowded(self.turns.limits()) && time.worked + took >= CROWDED_WORK {
            return true;
        }
        let is_long = time.worked + took >= LONG_WORK;
        if is_long && time.weight == Weight::Light {
            time.weight = Weight::Heavy;
            state.light = state.light.saturating_sub(1);
        }
        if is_long && !time.is_long && state.long < self.turns.limits().long {
            state.long += 1;
            time.is_long = true;
        }
        if state.waiting.is_empty() && is_long == time.is_long && !makes_room {
            return false;
        }
        let (give, given) = oneshot::channel();
        state.leave(time.weight, self.address, took);
        state.long -= usize::from(time.is_long);
        if let Some(line) = state.lines.get_mut(&self.address) {
            line.resuming.push_back(Resuming { is_long, give });
        }
        state.stand_in_line(self.address);
        drop(state);
        self.turns.give();
        // Nobody drops what is in a line without giving a turn.
        if given.blocking_recv().is_err() {
            let mut state = self.turns.lock();
            state.resume(self.address);
            state.long += usize::from(is_long);
        }
        let worked = time.worked + took;
        *time = Time { began: Instant::now(), worked, is_long, weight: Weight::Heavy };
        false
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        let time = self.time.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (took, is_long) = (time.began.elapsed(), time.is_long);
        self.turns.lock().long -= usize::from(is_long);
        self.turns.end(time.weight, self.address, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Waker};

    const ONE: Most = Most {
        running: 1,
        begun: 1,
        running_of_address: 1,
        begun_of_address: 1,
        long: 1,
        gives_way: false,
    };

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
        let turns = Arc::new(FairQueue::new(1));
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
        let mut state = FairQueueState::default();
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
            let next = match state.next(ONE).unwrap() {
                NextTurn::Begins(_, address, _) | NextTurn::Resumes(address, _) => address,
            };
            let number = usize::from(next == address(1));
            let took = Duration::from_millis([1, 10][number]);
            had[number] += took;
            state.leave(Weight::Heavy, next, took);
            state.end(next);
            if round > 100 {
                let (less, more) = (had[0].min(had[1]), had[0].max(had[1]));
                assert!(more - less <= Duration::from_millis(11), "{round}: {had:?}");
            }
        }
    }

    #[test]
    fn addresses_that_want_nothing_are_forgotten_when_there_are_many() {
        let turns = Arc::new(FairQueue::new(1));
        for number in 0..3 * MOST_IDLE_ADDRESSES as u32 {
            drop(poll(pin!(turns.take(address(number)))).unwrap());
            assert!(turns.lock().lines.len() <= MOST_IDLE_ADDRESSES + 1);
        }
    }

    #[test]
    fn an_address_has_half_of_the_turns_and_never_are_there_more_than_all() {
        let turns = Arc::new(FairQueue::new(4));
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

    /// However long a query takes, another address gets its turn, and the query goes on afterwards.
    #[test]
    fn a_query_lets_others_work_and_goes_on() {
        let turns = Arc::new(FairQueue::for_queries(1, 8));
        let query = poll(pin!(turns.take(address(1)))).unwrap();
        let mut other = pin!(turns.take(address(2)));
        assert!(poll(other.as_mut()).is_none());
        std::thread::scope(|scope| {
            let (give, done) = std::sync::mpsc::channel();
            scope.spawn(move || {
                // Works until there is nobody left who waits.
                while done.try_recv().is_err() {
                    assert!(!query.give_way());
                }
                drop(query);
            });
            let other = loop {
                if let Some(turn) = poll(other.as_mut()) {
                    break turn;
                }
            };
            {
                let state = turns.lock();
                assert_eq!((state.running, state.begun), (1, 2));
            }
            drop(other);
            give.send(()).unwrap();
        });
        let state = turns.lock();
        assert_eq!((state.running, state.begun), (0, 0));
        assert!(state.lines.values().all(AddressQueue::wants_nothing) && state.waiting.is_empty());
    }

    /// It begins though all turns are taken, and they are given up until it is done.
    #[test]
    fn heavy_queries_give_way_to_a_light_one() {
        let turns = Arc::new(FairQueue::for_queries(4, 16));
        let take = |number| poll(pin!(turns.take(address(number))));
        for number in [1, 2] {
            turns.lock().line(address(number)).stands_at += 10 * CREDIT;
        }
        let heavy = [1, 1, 2, 2].map(|number| take(number).unwrap());
        assert!(take(1).is_none());
        let light = take(3).unwrap();
        let running = || {
            let state = turns.lock();
            (state.running - state.light, state.light)
        };
        assert_eq!(running(), (4, 1));
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for query in heavy {
                let is_done = &is_done;
                scope.spawn(move || {
                    while !is_done.load(Ordering::Relaxed) {
                        assert!(!query.give_way());
                    }
                });
            }
            while running() != (1, 1) {
                std::thread::yield_now();
            }
            // None of those that gave way goes on, and none begins.
            assert!(take(2).is_none());
            assert_eq!(running(), (1, 1));
            is_done.store(true, Ordering::Relaxed);
            drop(light);
        });
        assert_eq!(running(), (0, 0));
    }

    /// Where as many have begun as may, those that have worked for long make room.
    #[test]
    fn a_long_query_ends_where_others_cannot_begin() {
        let turns = Arc::new(FairQueue::for_queries(1, 2));
        let query = poll(pin!(turns.take(address(1)))).unwrap();
        // One of an address, and two in all.
        assert!(poll(pin!(turns.take(address(1)))).is_none());
        let mut second = Box::pin(turns.take(address(2)));
        assert!(poll(second.as_mut()).is_none());
        let has_begun = AtomicBool::new(false);
        let work = &|query: QueuePermit| {
            while !query.give_way() && !has_begun.load(Ordering::Relaxed) {}
        };
        std::thread::scope(|scope| {
            scope.spawn(move || work(query));
            let second = loop {
                if let Some(turn) = poll(second.as_mut()) {
                    break turn;
                }
            };
            let mut third = pin!(turns.take(address(3)));
            assert!(poll(third.as_mut()).is_none());
            scope.spawn(move || work(second));
            while poll(third.as_mut()).is_none() {}
            has_begun.store(true, Ordering::Relaxed);
        });
    }
}
