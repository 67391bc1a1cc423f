//! Sessions without a socket: many peers, both roles, restarts, lost and late packets. A session
//! that reports completion has always found exactly the differences.

use negsync_reconcile::item::Item;
use negsync_reconcile::sessions::{
    OpenError, Packet, PacketKind, SessionEnd, SessionLimits, Sessions,
};
use negsync_reconcile::{InitiatorOptions, RangeSet, SortedItems};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeSet, HashMap, VecDeque};

type Ids = BTreeSet<[u8; 32]>;

struct Peer {
    set: SortedItems,
    sessions: Sessions<usize, SortedItems>,
    // The differences found so far, by peer.
    found: HashMap<usize, (Ids, Ids)>,
}

fn ids(set: &SortedItems) -> Ids {
    let mut ids = Ids::new();
    set.for_each(0..set.len(), &mut |item| {
        ids.insert(item.id);
    });
    ids
}

fn set(rng: &mut StdRng, shared: &[Item]) -> SortedItems {
    let mut items: Vec<Item> = shared.iter().filter(|_| rng.random_bool(0.95)).copied().collect();
    let own = rng.random_range(0..100);
    items.extend((0..own).map(|_| Item::new(rng.random_range(0..1_000), rng.random())));
    SortedItems::new(items)
}

#[test]
fn what_a_complete_session_found_is_what_differs() {
    let mut complete = 0;
    for seed in 0..15 {
        let mut rng = StdRng::seed_from_u64(seed);
        let shared: Vec<Item> = (0..rng.random_range(0..2_000))
            .map(|_| Item::new(rng.random_range(0..1_000), rng.random()))
            .collect();
        let limits = SessionLimits::default().with_frame_limit_bytes(4_096).with_idle_s(20);
        let mut number = 0;
        let mut peers: Vec<Peer> = (0..4)
            .map(|_| {
                number += 1_000;
                let sessions = Sessions::new(limits, number);
                Peer { set: set(&mut rng, &shared), sessions, found: HashMap::new() }
            })
            .collect();
        // One queue for each pair, because a transport keeps the order of a pair.
        let mut queues: HashMap<(usize, usize), VecDeque<Packet>> = HashMap::new();
        for now_s in 0..400 {
            let (one, other) = (rng.random_range(0..4), rng.random_range(0..4));
            match rng.random_range(0..100) {
                // Sometimes both at the same time.
                0..6 if one != other => {
                    let both = [(one, other), (other, one)];
                    let count = if rng.random_bool(0.5) { 2 } else { 1 };
                    for (from, to) in both.into_iter().take(count) {
                        let set = peers[from].set.clone();
                        let opened = peers[from]
                            .sessions
                            .open(to, set, InitiatorOptions::default(), now_s)
                            .unwrap();
                        peers[from].found.insert(to, Default::default());
                        queues.entry((from, to)).or_default().push_back(opened);
                    }
                }
                6 => {
                    if let Some(close) = peers[one].sessions.cancel(&other) {
                        queues.entry((one, other)).or_default().push_back(close);
                    }
                }
                // One restarts without its state.
                7 => {
                    number += 1_000;
                    peers[one].sessions = Sessions::new(limits, number);
                }
                8 => {
                    queues.get_mut(&(one, other)).map(VecDeque::pop_front);
                }
                _ => {}
            }
            for _ in 0..6 {
                let ready: Vec<(usize, usize)> = queues
                    .iter()
                    .filter(|(_, queue)| !queue.is_empty())
                    .map(|(pair, _)| *pair)
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect();
                let Some(&(from, to)) = ready.get(rng.random_range(0..ready.len().max(1))) else {
                    break;
                };
                let packet = queues.get_mut(&(from, to)).unwrap().pop_front().unwrap();
                let packet = Packet::from_bytes(&packet.to_bytes()).unwrap();
                let theirs = peers[from].set.clone();
                let peer = &mut peers[to];
                let ours = peer.set.clone();
                let received = peer.sessions.receive(&from, &packet, now_s, || Some(ours.clone()));
                if let Some(reply) = received.reply {
                    queues.entry((to, from)).or_default().push_back(reply);
                }
                if !received.found.is_empty() {
                    let found = peer.found.get_mut(&from).unwrap();
                    found.0.extend(received.found.have);
                    found.1.extend(received.found.need);
                }
                if received.ended == Some(SessionEnd::Complete) {
                    let (have, need) = &peer.found[&from];
                    let (ours, theirs) = (ids(&ours), ids(&theirs));
                    assert_eq!(have, &(&ours - &theirs), "seed {seed}");
                    assert_eq!(need, &(&theirs - &ours), "seed {seed}");
                    complete += 1;
                }
                assert!(!matches!(received.ended, Some(SessionEnd::Failed(_))), "seed {seed}");
            }
            for peer in &mut peers {
                peer.sessions.expire(now_s);
            }
        }
        for peer in &mut peers {
            peer.sessions.expire(1_000);
            let statistics = peer.sessions.statistics();
            assert!(statistics.completed + statistics.abandoned <= statistics.started);
            assert!((0..4).all(|other| !peer.sessions.is_asking(&other)), "seed {seed}");
        }
    }
    assert!(complete > 125, "only {complete} sessions were complete");
}

#[test]
fn sessions_are_bounded_and_replaced() {
    let limits = SessionLimits::default().with_sessions(2);
    let mut sessions: Sessions<u8, SortedItems> = Sessions::new(limits, 7);
    let empty = || Some(SortedItems::new(Vec::new()));
    let open = |sessions: &mut Sessions<u8, SortedItems>, peer| {
        sessions.open(peer, SortedItems::new(Vec::new()), InitiatorOptions::default(), 0)
    };
    assert!(open(&mut sessions, 1).is_ok() && open(&mut sessions, 2).is_ok());
    assert_eq!(open(&mut sessions, 3), Err(OpenError::TooMany { limit: 2 }));
    let again = open(&mut sessions, 1).unwrap();
    assert_eq!((again.session, sessions.statistics().abandoned), (9, 1));
    // An answer to the replaced session is ignored.
    let stale = Packet { kind: PacketKind::Answer, session: 7, payload: vec![0x61] };
    assert_eq!(sessions.receive(&1, &stale, 0, empty), Default::default());
    assert!(sessions.is_asking(&1));
    // A question in an unknown session is refused.
    let unknown = Packet { kind: PacketKind::Question, session: 5, payload: vec![0x61] };
    let reply = sessions.receive(&1, &unknown, 0, empty).reply.unwrap();
    assert_eq!((reply.kind, reply.session), (PacketKind::Refused, 5));
    for peer in 1..=3 {
        let opening = Packet { kind: PacketKind::Open, session: 1, payload: vec![0x61] };
        let reply = sessions.receive(&peer, &opening, 0, empty).reply.unwrap();
        assert_eq!(reply.kind, if peer <= 2 { PacketKind::Answer } else { PacketKind::Refused });
    }
}

#[test]
fn what_is_no_packet_is_none() {
    for bytes in [&[][..], &[0], &[0; 8], &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0x61]] {
        assert_eq!(Packet::from_bytes(bytes), None, "{bytes:?}");
    }
}
