//! Sessions of many peers with arbitrary packets in any order: the number of open sessions and the
//! length of answers stay within their limits, and the statistics add up.

use super::input::Input;
use super::sets::{FRAME_LIMITS, sets};
use negsync::reconcile::sessions::{Packet, PacketKind, SessionLimits};
use negsync::reconcile::{InitiatorOptions, Sessions, SortedItems};

const MOST_STEPS: usize = 64;
const PEERS: u8 = 4;

pub fn target(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let limits = SessionLimits::default()
        .with_sessions(2)
        .with_idle_s(100)
        .with_frame_limit_bytes(input.choose(&FRAME_LIMITS));
    let mut sessions: Sessions<u8, &SortedItems> = Sessions::new(limits, 0);
    let mut now_s = 0;
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        let peer = input.byte() % PEERS;
        match input.byte() % 8 {
            0 => {
                let set = set(&mut input);
                let had_room = sessions.is_asking(&peer) || asking(&sessions) < limits.sessions;
                let opened = sessions.open(peer, set, InitiatorOptions::default(), now_s);
                assert_eq!(opened.is_ok(), had_room);
            }
            1 => drop(sessions.cancel(&peer)),
            2 => sessions.forget(&peer),
            3 => {
                now_s += u64::from(input.byte());
                drop(sessions.expire(now_s));
            }
            _ => receive(&mut sessions, peer, &mut input, limits, now_s),
        }
        let open = (0..PEERS).filter(|peer| !sessions.has_room_for(peer)).count();
        assert!(open == 0 || open == usize::from(PEERS) - limits.sessions);
        assert!(asking(&sessions) <= limits.sessions);
    }
    let statistics = sessions.statistics();
    assert!(statistics.completed + statistics.abandoned <= statistics.started);
}

fn receive(
    sessions: &mut Sessions<u8, &'static SortedItems>,
    peer: u8,
    input: &mut Input<'_>,
    limits: SessionLimits,
    now_s: u64,
) {
    let set = set(input);
    let len = input.number() % 512;
    // Rarely more than a few sessions: the numbers are mostly those of open sessions.
    let Some(mut packet) = Packet::from_bytes(input.take(len)) else { return };
    packet.session %= 8;
    let received = sessions.receive(&peer, &packet, now_s, || Some(set));
    if let Some(reply) = received.reply {
        assert_eq!(Packet::from_bytes(&reply.to_bytes()), Some(reply.clone()));
        assert_eq!(reply.session, packet.session);
        if reply.kind == PacketKind::Answer {
            let limit_bytes = limits.frame_limit_bytes;
            assert!(limit_bytes == 0 || reply.payload.len() <= limit_bytes);
        }
    }
    assert!(received.ended.is_none() || !sessions.is_asking(&peer));
}

fn set(input: &mut Input<'_>) -> &'static SortedItems {
    &sets()[usize::from(input.byte()) % sets().len()]
}

fn asking(sessions: &Sessions<u8, &SortedItems>) -> usize {
    (0..PEERS).filter(|peer| sessions.is_asking(peer)).count()
}
