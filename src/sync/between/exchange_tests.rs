use super::super::driver::OurEvents;
use super::super::machine::{Id, Loaded};
use super::exchange::{Exchange, MoveOrders};
use super::id_list::{IdList, IdListBuilder};
use std::collections::HashMap;

const OLD: Id = [1; 32];
const NEW: Id = [2; 32];

fn list(ids: &[Id]) -> IdList {
    let mut builder = IdListBuilder::default();
    ids.iter().for_each(|id| builder.push(*id).unwrap());
    builder.finish()
}

/// Both relays list their ids, each waiting for the other.
fn both_list(exchange: &Exchange, first: &[Id], second: &[Id]) -> (MoveOrders, MoveOrders) {
    let listed =
        |relay, ids| exchange.listed(relay, list(ids), true, true, exchange.losses(relay)).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| listed(1, second));
        (listed(0, first), other.join().unwrap())
    })
}

#[test]
fn the_list_of_a_connection_that_is_gone_counts_for_nothing() {
    let exchange = Exchange::new(2, true, HashMap::new());
    let live = exchange.listen().unwrap();
    both_list(&exchange, &[OLD], &[OLD]);
    let losses = exchange.losses(1);
    exchange.lost(1, false);
    let late = exchange.listed(1, list(&[OLD]), false, true, losses).unwrap();
    assert!(late.have.is_empty() && late.need.is_empty());
    let orders = std::thread::scope(|scope| {
        let back = || exchange.listed(1, list(&[OLD]), false, true, exchange.losses(1)).unwrap();
        let back = scope.spawn(back);
        // The other relay has to list again, because it may have received events meanwhile.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let told = runtime.block_on(exchange.next(0, &live));
        assert!(matches!(told, OurEvents::Missed));
        let own = exchange.listed(0, list(&[OLD, NEW]), false, true, exchange.losses(0)).unwrap();
        assert_eq!(own.need, [NEW]);
        back.join().unwrap()
    });
    assert_eq!(orders.have, [NEW]);
}

#[test]
fn what_came_live_before_the_lists_are_compared_is_passed_on_by_them() {
    let exchange = Exchange::new(2, true, HashMap::new());
    let event = Loaded { id: NEW, kind: 1, json: "{}".to_owned() };
    assert!(exchange.pass_on(0, event).unwrap());
    let (first, second) = both_list(&exchange, &[OLD, NEW], &[OLD]);
    // Its relay has sent it; it is not requested again.
    assert!(first.need.is_empty());
    assert_eq!(second.have, [NEW]);
    let delivery = exchange.load(1, &second.have, exchange.losses(1)).unwrap();
    assert_eq!(delivery.events, [(NEW, "{}".to_owned())]);
}
