use super::schedule::{AddressQueue, CREDIT, MOST_IDLE_ADDRESSES};
use super::*;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

const ONE: QueueLimits = QueueLimits {
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
    // Others, which have had nothing yet, go before all of them, in the order they came in.
    let mut others: Vec<_> = (2..5).map(|number| Box::pin(turns.take(address(number)))).collect();
    assert!(others.iter_mut().all(|it| poll(it.as_mut()).is_none()));
    drop(running);
    for mut other in others {
        assert!(poll(greedy[0].as_mut()).is_none());
        drop(poll(other.as_mut()).unwrap());
    }
    // Those that have gone are passed over.
    drop(poll(greedy[0].as_mut()).unwrap());
    greedy.drain(..40);
    for mut waiting in greedy.drain(..) {
        drop(poll(waiting.as_mut()).unwrap());
    }
    let schedule = turns.lock();
    assert!(schedule.waiting.is_empty() && schedule.running == 0);
}

/// Two that always want a turn get the same time, though one asks for ten times as long.
#[test]
fn time_is_shared_and_not_turns() {
    let mut schedule = TurnSchedule::default();
    let mut had = [Duration::ZERO; 2];
    let mut receivers = Vec::new();
    for round in 0..1_000 {
        for number in 0..2_u32 {
            let queue = schedule.queue_of(address(number));
            if queue.waiting.is_empty() {
                let (give, receive) = oneshot::channel();
                queue.waiting.push_back(give);
                receivers.push(receive);
                schedule.requeue(address(number));
            }
        }
        let next = match schedule.next(ONE).unwrap() {
            NextTurn::Begins(_, address, _) | NextTurn::Resumes(address, _) => address,
        };
        let number = usize::from(next == address(1));
        let took = Duration::from_millis([1, 10][number]);
        had[number] += took;
        schedule.leave(Weight::Heavy, next, took);
        schedule.end(next);
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
        assert!(turns.lock().queues.len() <= MOST_IDLE_ADDRESSES + 1);
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
            // Works until nobody waits any more.
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
            let schedule = turns.lock();
            assert_eq!((schedule.running, schedule.begun), (1, 2));
        }
        drop(other);
        give.send(()).unwrap();
    });
    let schedule = turns.lock();
    assert_eq!((schedule.running, schedule.begun), (0, 0));
    assert!(
        schedule.queues.values().all(AddressQueue::wants_nothing) && schedule.waiting.is_empty()
    );
}

/// It begins though all turns are taken, and they are given up until it is done.
#[test]
fn heavy_queries_give_way_to_a_light_one() {
    let turns = Arc::new(FairQueue::for_queries(4, 16));
    let take = |number| poll(pin!(turns.take(address(number))));
    for number in [1, 2] {
        turns.lock().queue_of(address(number)).virtual_time += 10 * CREDIT;
    }
    let heavy = [1, 1, 2, 2].map(|number| take(number).unwrap());
    assert!(take(1).is_none());
    let light = take(3).unwrap();
    let running = || {
        let schedule = turns.lock();
        (schedule.running - schedule.light, schedule.light)
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
