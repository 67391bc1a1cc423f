//! Every behaviour of relays seen in the field, tested in four ways: by `sync`, by `diff`, by a
//! scheduled peer, and by a live one. Each has its verdict and proof, and ends within the bound on
//! its own clock.

use super::model_peer::{Faults, Flood, Neg, PeerPlan};
use super::model_sync::{Ended, sync_once};
use negsync::sync::machine::Settings;
use negsync::sync::{Direction, Options, PeerFilter, Proof, Verdict};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::Duration;

/// Maximum time of each on the model's clock, and the time for stopping.
const MOST: Duration = Duration::from_secs(35);
const STOP: Duration = Duration::from_millis(200);
/// Maximum number of bytes, and of notes for people.
const MOST_BYTES: u64 = 2_000_000;
const MOST_NOTES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Sync,
    Diff,
    Peer,
    LivePeer,
}

/// The expected result, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Equal, or for `diff` different with the same proof.
    Equal(Proof),
    /// Equal as far as is known, over several connections.
    CaughtUp,
    /// Some events stay different, with a reason.
    Differs(Proof),
    /// Reported as not seen or not moved.
    Incomplete,
}

use Expected::{CaughtUp, Differs, Equal, Incomplete};

struct Row {
    name: &'static str,
    neg: Neg,
    faults: Faults,
    /// Changes of the plan other than its faults.
    change: fn(&mut PeerPlan),
    has_key: bool,
    expected: Expected,
    /// The result of `diff`, which moves nothing.
    diff: Expected,
    /// The result of a live peer; one without progress is stopped at the end.
    live: Expected,
    /// Text that the report or the log must contain.
    says: &'static str,
    most: Duration,
    most_bytes: u64,
}

fn row(name: &'static str, neg: Neg, faults: Faults, expected: Expected) -> Row {
    let diff = match expected {
        Equal(proof) | Differs(proof) => Differs(proof),
        CaughtUp => Differs(Proof::Read),
        Incomplete => Incomplete,
    };
    Row {
        name,
        neg,
        faults,
        change: |_| {},
        has_key: true,
        expected,
        diff,
        live: expected,
        says: "",
        most: MOST,
        most_bytes: MOST_BYTES,
    }
}

impl Row {
    fn says(self, says: &'static str) -> Self {
        Self { says, ..self }
    }

    fn within(self, seconds: u64) -> Self {
        Self { most: Duration::from_secs(seconds), ..self }
    }

    fn with(self, change: fn(&mut PeerPlan)) -> Self {
        Self { change, ..self }
    }

    fn without_key(self) -> Self {
        Self { has_key: false, ..self }
    }

    fn bytes(self, most_bytes: u64) -> Self {
        Self { most_bytes, ..self }
    }

    fn live(self, live: Expected) -> Self {
        Self { live, ..self }
    }

    fn diff(self, diff: Expected) -> Self {
        Self { diff, ..self }
    }

    /// Tests the peer in one way. Returns the number of bytes.
    fn meet(&self, way: Way) -> u64 {
        let (mut peer, mut store) = self.plan().populate(&mut StdRng::seed_from_u64(7));
        let ended = sync_once(&mut peer, &mut store, self.settings(way), Some(MOST));
        self.check(way, &ended, peer.resent().len());
        let (ours, theirs) = (store.ids("{}"), peer.shown("{}"));
        let hidden = |id: &&[u8; 32]| peer.hides(id) || store.is_private(id);
        let compares = |id: &&[u8; 32]| ended.report.not_compared.is_empty() || !hidden(id);
        let differ = ours.symmetric_difference(&theirs).filter(compares).count();
        let is_equal = ended.report.verdict == Verdict::Equal;
        assert!(!is_equal || differ == 0, "{}, {way:?}: equal, and {differ} differ", self.name);
        let open = if way == Way::LivePeer { 0 } else { peer.open_sessions() };
        assert_eq!(
            open,
            0,
            "{}, {way:?}: NEG sessions left open: {}",
            self.name,
            ended.log.join("\n")
        );
        ended.report.bytes_up + ended.report.bytes_down
    }

    fn plan(&self) -> PeerPlan {
        let mut plan = PeerPlan {
            neg: self.neg,
            faults: self.faults.clone(),
            told_cap: None,
            tells_auth: false,
            is_mute: false,
            latency_us: 2_000,
            shared: 120,
            ours: 30,
            theirs: 40,
            seconds: 5_000,
        };
        (self.change)(&mut plan);
        plan
    }

    fn settings(&self, way: Way) -> Settings {
        let is_live = way == Way::LivePeer;
        Settings {
            filter: PeerFilter::parse("{}").unwrap(),
            direction: Direction::Both,
            dry_run: way == Way::Diff,
            exact: false,
            live: is_live,
            attempts: if is_live { None } else { Options::default().attempts },
            by: None,
            key: self.has_key.then_some([9; 32]),
            full_interval_s: 7 * 86_400,
            nonce: 1,
        }
    }

    fn check(&self, way: Way, ended: &Ended, resent: usize) {
        let Ended { report, at, log } = ended;
        let about = format!("{}, {way:?}: {report:#?}\n{}", self.name, log.join("\n"));
        let expected = match way {
            Way::Sync | Way::Peer => self.expected,
            Way::Diff => self.diff,
            Way::LivePeer => self.live,
        };
        let found = match (report.verdict, report.proof) {
            (Verdict::Equal, Some(proof)) => Equal(proof),
            (Verdict::CaughtUp, Some(_)) if report.connections > 1 => CaughtUp,
            (Verdict::Differs, Some(proof)) => Differs(proof),
            (Verdict::Incomplete, None) => Incomplete,
            other => panic!("{other:?}: {about}"),
        };
        assert_eq!(found, expected, "{about}");
        assert!(*at <= self.most + STOP, "{at:?}: {about}");
        let why = report.error.clone().unwrap_or_default();
        assert!(expected != Incomplete || !why.is_empty(), "no reason: {about}");
        let says =
            format!("{:?} {:?} {why}\n{}", report.differs, report.not_compared, log.join("\n"));
        assert!(
            way == Way::Diff || says.contains(self.says),
            "{:?} is not said: {about}",
            self.says
        );
        assert_eq!(resent, 0, "sent again: {about}");
        assert!(report.bytes_up + report.bytes_down < self.most_bytes, "{about}");
        let notes = log.iter().filter(|line| line.contains(" note: ")).count();
        assert!(notes <= MOST_NOTES, "{notes} notes: {about}");
    }
}

/// The numbers are those in the list of behaviours of relays.
fn rows() -> Vec<Row> {
    let plain = Faults::default;
    let read = Equal(Proof::Read);
    let negentropy = Equal(Proof::Negentropy);
    let cap = |most| Faults { cap: Some(most), ..plain() };
    vec![
        row("0 with NIP-77", Neg::Works, plain(), negentropy),
        row("1 NEG-OPEN refused by NOTICE", Neg::Notice, plain(), read)
            .says("does not reconcile")
            .within(5),
        row("1 late", Neg::LateNotice, plain(), read).within(6),
        row("2 NEG-OPEN not answered", Neg::Silent, plain(), read).within(10),
        row("3 NEG-OPEN hung up on", Neg::HangUp, plain(), read).within(10),
        row("3 NEG-MSG is answered by an error", Neg::FailsLater, plain(), negentropy)
            .with(|plan| plan.shared = 600)
            .diff(Differs(Proof::Read))
            .within(15),
        row("3 NEG-MSG is not answered", Neg::SilentLater, plain(), read)
            .with(|plan| plan.shared = 600)
            .within(25),
        row("3 NEG-MSG is hung up on", Neg::HangUpLater, plain(), read)
            .with(|plan| plan.shared = 600)
            .says("hangs up at NEG-MSG")
            .within(10),
        row("NEG-MSG is answered as if all were equal", Neg::SkipsLater, plain(), read)
            .with(|plan| plan.shared = 600)
            .says("contradict")
            .within(10),
        row("4 NEG-OPEN is put off by NOTICE", Neg::PutOff, plain(), negentropy).within(5),
        row(
            "4 one REQ of a connection is answered",
            Neg::Closed,
            Faults { most_reqs: Some(1), ..plain() },
            CaughtUp,
        )
        .live(Incomplete),
        row(
            "4 the others by NOTICE",
            Neg::Closed,
            Faults { most_reqs: Some(1), req_notice: true, ..plain() },
            CaughtUp,
        )
        .live(Incomplete),
        row(
            "4 no REQ is answered",
            Neg::Silent,
            Faults { most_reqs: Some(0), ..plain() },
            Incomplete,
        )
        .says("not answered"),
        row(
            "4 and it chats",
            Neg::Silent,
            Faults { most_reqs: Some(0), chats: true, ..plain() },
            Incomplete,
        )
        .says("not answered"),
        row("5 pages are capped", Neg::Closed, cap(50), read),
        row("5 a second holds more than a page", Neg::Closed, cap(60), read)
            .with(|plan| plan.seconds = 2),
        row("5 and the kind does, too", Neg::Closed, cap(10), Incomplete)
            .with(|plan| plan.seconds = 1)
            .says("one second holds more events of one kind than a page"),
        row(
            "5 a filter with kinds has a smaller cap",
            Neg::Closed,
            Faults { kinds_cap: Some(10), ..cap(60) },
            Incomplete,
        )
        .with(|plan| plan.seconds = 1)
        .says("one second holds more events of one kind than a page"),
        row("5 says a larger cap than it has", Neg::Closed, cap(60), read)
            .with(|plan| (plan.seconds, plan.told_cap) = (2, Some(10_000))),
        row("5 too little at a time", Neg::Closed, cap(1), Incomplete).says("too few events"),
        row("5 says its cap, which a second does not reach", Neg::Closed, cap(400), read)
            .with(|plan| (plan.seconds, plan.told_cap) = (1, Some(400)))
            .bytes(100_000),
        row("EVENT fails for now", Neg::Closed, Faults { fails: true, ..plain() }, Incomplete)
            .diff(Differs(Proof::Read))
            .says("could not be moved"),
        row(
            "6 a bare filter is answered with nothing",
            Neg::Closed,
            Faults { bare_empty: true, ..plain() },
            read,
        ),
        row("7 hints", Neg::Closed, Faults { hints: true, cap: Some(30), ..plain() }, read),
        row(
            "7 hints that are not true",
            Neg::Closed,
            Faults { hints: true, finishes: true, cap: Some(30), ..plain() },
            read,
        ),
        row(
            "8 kinds are asked for",
            Neg::Closed,
            Faults { need_kinds: true, ..plain() },
            Incomplete,
        )
        .says("blocked: filters must specify")
        .within(1),
        row(
            "9 events are not kept",
            Neg::Closed,
            Faults { drops: 10, ..plain() },
            Differs(Proof::Read),
        )
        .says("NotKept"),
        row(
            "9 with NIP-77",
            Neg::Works,
            Faults { drops: 10, ..plain() },
            Differs(Proof::Negentropy),
        )
        .says("NotKept"),
        row("10 greets with AUTH", Neg::Closed, Faults { auth: Some(true), ..plain() }, read),
        row("10 with NIP-77", Neg::Works, Faults { auth: Some(true), ..plain() }, negentropy),
        row(
            "10 AUTH for EVENT alone, refused without an id",
            Neg::Closed,
            Faults { auth: Some(false), unnamed: true, ..plain() },
            read,
        ),
        row(
            "10 the same with NIP-77",
            Neg::Works,
            Faults { auth: Some(true), unnamed: true, ..plain() },
            negentropy,
        ),
        row(
            "10 AUTH for EVENT alone, a new challenge with each refusal",
            Neg::Closed,
            Faults { auth: Some(false), auth_events: true, new_challenges: true, ..plain() },
            read,
        ),
        row(
            "10 the same with NIP-77",
            Neg::Works,
            Faults { auth: Some(false), auth_events: true, new_challenges: true, ..plain() },
            negentropy,
        ),
        row(
            "10 AUTH for EVENT alone, refused as restricted",
            Neg::Works,
            Faults {
                auth: Some(false),
                auth_events: true,
                auth_text: Some("restricted: members only"),
                ..plain()
            },
            negentropy,
        ),
        row(
            "10 AUTH for EVENT alone, and no challenge",
            Neg::Works,
            Faults { auth: Some(false), auth_events: true, never_asks: true, ..plain() },
            Incomplete,
        )
        .diff(Differs(Proof::Negentropy))
        .says("and does not ask"),
        row("11 no NIP-77", Neg::Closed, plain(), read),
        row(
            "12 hides private kinds",
            Neg::Works,
            Faults { hides_private: true, auth: Some(true), ..plain() },
            negentropy,
        )
        .with(|plan| plan.tells_auth = true)
        .says("1059"),
        row(
            "13 lists what it does not send",
            Neg::Works,
            Faults { unsent: 10, ..plain() },
            Incomplete,
        )
        .diff(Differs(Proof::Negentropy))
        .says("could not be moved"),
        row(
            "14 lists thousands that nobody has",
            Neg::Works,
            Faults { unsent: 10, ..plain() },
            Incomplete,
        )
        .with(|plan| plan.theirs = 10_500)
        .diff(Differs(Proof::Negentropy))
        .says("no progress: the peer lists events and sends none"),
        row("17 says nothing of itself", Neg::Works, plain(), negentropy)
            .with(|plan| plan.is_mute = true),
        row("17 and does not reconcile", Neg::Closed, plain(), read)
            .with(|plan| plan.is_mute = true),
        row(
            "18 events do not parse",
            Neg::Closed,
            Faults { garbled: true, ..plain() },
            Differs(Proof::Read),
        )
        .says("Invalid"),
        row(
            "18 an event of the last second",
            Neg::Closed,
            Faults { far_future: true, ..plain() },
            Differs(Proof::Read),
        )
        .says("Invalid")
        .within(1),
        row(
            "EOSE comes early",
            Neg::Closed,
            Faults { late: 5, cap: Some(40), ..plain() },
            Incomplete,
        )
        .says("after the end of a page"),
        row(
            "one REQ of each of two relays is answered",
            Neg::Closed,
            Faults { elsewhere: 3, most_reqs: Some(1), ..plain() },
            Incomplete,
        )
        .diff(Differs(Proof::Read)),
        row(
            "CLOSED comes in place of EOSE",
            Neg::Closed,
            Faults { no_eose: true, ..plain() },
            Incomplete,
        )
        .says("does not answer REQ"),
        row("CLOSED comes after EOSE", Neg::Closed, Faults { closes: true, ..plain() }, read),
        row(
            "CLOSED comes after EOSE, NIP-77",
            Neg::Works,
            Faults { closes: true, ..plain() },
            negentropy,
        ),
        row(
            "hangs up at some events",
            Neg::Closed,
            Faults { hangs_up_at_events: 1, ..plain() },
            Differs(Proof::Read),
        )
        .says("HungUp"),
        row(
            "hangs up at some events, NIP-77",
            Neg::Works,
            Faults { hangs_up_at_events: 1, ..plain() },
            Differs(Proof::Negentropy),
        )
        .says("HungUp"),
        row(
            "hangs up at each event",
            Neg::Works,
            Faults { hangs_up_at_events: 10, ..plain() },
            Incomplete,
        )
        .diff(Differs(Proof::Negentropy))
        .says("could not be moved"),
        row(
            "shows late what it takes",
            Neg::Works,
            Faults { indexes_late: true, ..plain() },
            negentropy,
        ),
        row(
            "shows late what it takes, read",
            Neg::Closed,
            Faults { indexes_late: true, ..plain() },
            read,
        ),
        row(
            "23 REQs are limited",
            Neg::Closed,
            Faults { reqs_per_s: true, cap: Some(60), ..plain() },
            read,
        ),
        row(
            "23 REQs are limited, and events are listed that never come",
            Neg::Works,
            Faults { reqs_per_s: true, unsent: 2, ..plain() },
            Incomplete,
        )
        .diff(Differs(Proof::Negentropy))
        .says("could not be moved"),
        row(
            "23 REQs are limited by NOTICE",
            Neg::Closed,
            Faults { reqs_per_s: true, req_notice: true, cap: Some(60), ..plain() },
            read,
        ),
        row("a limit is refused", Neg::Closed, Faults { most_limit: Some(100), ..plain() }, read)
            .within(5),
        row("19 order of arrival", Neg::Closed, Faults { by_arrival: true, ..plain() }, read),
        row("19 capped", Neg::Closed, Faults { by_arrival: true, cap: Some(40), ..plain() }, read),
        row(
            "until leaves out its second",
            Neg::Closed,
            Faults { until_excludes: true, cap: Some(40), ..plain() },
            read,
        )
        .with(|plan| plan.seconds = 50),
        row(
            "until leaves out its second, which holds more than a page",
            Neg::Closed,
            Faults { until_excludes: true, cap: Some(60), ..plain() },
            read,
        )
        .with(|plan| plan.seconds = 2),
        row(
            "until leaves out its second, in order of arrival",
            Neg::Closed,
            Faults { until_excludes: true, by_arrival: true, cap: Some(40), ..plain() },
            read,
        ),
        row(
            "20 AUTH after the refusal",
            Neg::Closed,
            Faults { auth: Some(false), ..plain() },
            read,
        ),
        row("20 with NIP-77", Neg::Works, Faults { auth: Some(false), ..plain() }, negentropy),
        row(
            "20 refuses as blocked before AUTH",
            Neg::Closed,
            Faults { auth: Some(false), auth_text: Some("blocked: show a key"), ..plain() },
            read,
        ),
        row(
            "20 with NIP-77, refuses as restricted",
            Neg::Works,
            Faults { auth: Some(false), auth_text: Some("restricted: members"), ..plain() },
            negentropy,
        ),
        row(
            "21 long lists are not answered",
            Neg::Closed,
            Faults { most_values: Some(20), ..plain() },
            read,
        ),
        row(
            "21 hangs up at long lists",
            Neg::Closed,
            Faults { most_values: Some(20), hangs_up: true, ..plain() },
            read,
        ),
        row("22 answers from a cache", Neg::Closed, Faults { caches: true, ..plain() }, read),
        row("23 limits the rate", Neg::Closed, Faults { rate: Some(10), ..plain() }, read)
            .says("rate limit"),
        row("23 takes none", Neg::Works, Faults { limits_all: true, ..plain() }, Incomplete)
            .diff(Differs(Proof::Negentropy))
            .says("could not be moved"),
        row(
            "23 takes none, by NOTICE",
            Neg::Closed,
            Faults { limits_all: true, req_notice: true, ..plain() },
            Incomplete,
        )
        .diff(Differs(Proof::Read))
        .says("could not be moved"),
        row("25 is verbose", Neg::Closed, Faults { verbose: true, ..plain() }, read),
        row(
            "27 wants AUTH, no key",
            Neg::Closed,
            Faults { auth: Some(false), ..plain() },
            Incomplete,
        )
        .without_key()
        .says("authentication")
        .within(3),
        row(
            "27 the key is refused",
            Neg::Works,
            Faults { auth: Some(true), refuses_key: true, ..plain() },
            Incomplete,
        )
        .says("authentication"),
        row(
            "events come under another subscription",
            Neg::Closed,
            Faults { mislabels: true, ..plain() },
            Incomplete,
        )
        .says("showed no event"),
        row("28 pings", Neg::Closed, Faults { flood: Some(Flood::Pings), ..plain() }, read),
        row(
            "28 empty messages",
            Neg::Silent,
            Faults { flood: Some(Flood::Empty), ..plain() },
            read,
        ),
        row("28 NOTICEs", Neg::Silent, Faults { flood: Some(Flood::Notices), ..plain() }, read),
        row(
            "28 unasked events",
            Neg::Closed,
            Faults { flood: Some(Flood::Unasked), ..plain() },
            read,
        ),
    ]
}

#[test]
fn each_way_of_a_peer_has_its_verdict_in_four_ways() {
    let mut wrong = Vec::new();
    for row in rows() {
        for way in [Way::Sync, Way::Diff, Way::Peer, Way::LivePeer] {
            match std::panic::catch_unwind(|| row.meet(way)) {
                Ok(bytes) => println!("{:45} {way:10?} {bytes:8} bytes", row.name),
                Err(_) => wrong.push(format!("{} {way:?}", row.name)),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The second that `until` excludes is requested separately: the page that reveals this counts.
#[test]
fn no_page_is_read_twice_of_a_peer_that_leaves_out_the_second_of_until() {
    const CAP: usize = 40;
    let read = |until_excludes| {
        let faults = Faults { until_excludes, cap: Some(CAP), ..Faults::default() };
        let row = row("", Neg::Closed, faults, Differs(Proof::Read)).with(|it| it.seconds = 50);
        let (mut peer, mut store) = row.plan().populate(&mut StdRng::seed_from_u64(7));
        let ended = sync_once(&mut peer, &mut store, row.settings(Way::Diff), Some(MOST));
        assert_eq!(ended.report.verdict, Verdict::Differs, "{:#?}", ended.report);
        ended.log.iter().filter(|line| line.contains(r#"< ["EVENT""#)).count()
    };
    let (plain, odd) = (read(false), read(true));
    println!("{plain} events of a plain peer, {odd} of an odd one");
    assert!(odd < plain + CAP / 2, "{odd} events are read in place of {plain}");
}

/// The mark of a peer stays while it lacks events that it could not accept: the next sync sends
/// them.
#[test]
fn what_a_peer_could_not_take_is_sent_by_the_next_sync() {
    let row = row("", Neg::Closed, Faults { fails: true, ..Faults::default() }, Incomplete);
    let (mut peer, mut store) = row.plan().populate(&mut StdRng::seed_from_u64(8));
    let first = sync_once(&mut peer, &mut store, row.settings(Way::Sync), None).report;
    assert_eq!((first.verdict, first.uploaded), (Verdict::Incomplete, 0), "{first:#?}");
    peer.plan.faults.fails = false;
    let again = Settings { nonce: 2, ..row.settings(Way::Sync) };
    let second = sync_once(&mut peer, &mut store, again, None).report;
    assert_eq!((second.verdict, second.uploaded), (Verdict::Equal, 30), "{second:#?}");
    assert_eq!(store.ids("{}"), peer.ids("{}"));
}
