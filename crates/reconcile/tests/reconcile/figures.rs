//! Round trips and bytes of a fixed table of sessions, as exact numbers: any change of one shows
//! here.

use crate::support::{Case, crate_engine, crate_set, sorted};
use negsync_reconcile::item::Item;
use negsync_reconcile::{Difference, Initiator, InitiatorOptions, InitiatorStep};
use std::collections::BTreeSet;

/// A generator of our own, so that no release of a library changes the table.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn item(&mut self) -> Item {
        let mut id = [0; 32];
        id.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = self.next().to_le_bytes());
        Item::new(1_700_000_000 + self.next() % 1_000_000, id)
    }
}

#[derive(Clone, Copy)]
enum Missing {
    Scattered,
    Newest,
}

struct Row {
    name: &'static str,
    items: usize,
    missing: usize,
    extra: usize,
    which: Missing,
    sync_mark: bool,
    /// Ours and theirs.
    frames: (usize, usize),
    /// Round trips, bytes up, bytes down: by the reference rule, then ours.
    reference: (usize, usize, usize),
    adaptive: (usize, usize, usize),
}

impl Row {
    fn case(&self) -> Case {
        let mut random = SplitMix(self.items as u64);
        let all: BTreeSet<Item> = (0..self.items).map(|_| random.item()).collect();
        let missing: BTreeSet<Item> = match self.which {
            Missing::Newest => all.iter().rev().take(self.missing).copied().collect(),
            Missing::Scattered if self.missing == 0 => BTreeSet::new(),
            Missing::Scattered => {
                let step = self.items / self.missing;
                let near = all.iter().skip(step / 2).step_by(step);
                near.take(self.missing).copied().collect()
            }
        };
        let extra = (0..self.extra).map(|_| random.item());
        let ours = all.difference(&missing).copied().chain(extra).collect();
        Case::new(ours, all)
    }

    fn run(&self, case: &Case, options: InitiatorOptions) -> (usize, usize, usize) {
        let theirs = crate_set(case.theirs.items());
        let mut responder = crate_engine(&theirs, self.frames.1);
        let mut initiator = Initiator::new(&case.ours, options).unwrap();
        let mut found = Difference::new();
        let mut message = initiator.open();
        let (mut round_trips, mut up, mut down) = (0, 0, 0);
        loop {
            round_trips += 1;
            up += message.len();
            let answer = responder.reconcile(&message).unwrap();
            down += answer.len();
            match initiator.receive(&answer, &mut found).unwrap() {
                InitiatorStep::Send(next) => message = next,
                InitiatorStep::Done => break,
            }
        }
        assert!(sorted(&found.have) == case.have && sorted(&found.need) == case.need);
        (round_trips, up, down)
    }
}

#[rustfmt::skip]
fn table() -> Vec<Row> {
    use Missing::{Newest, Scattered};
    let row = |name, items, (missing, extra), which, sync_mark, frames, reference, adaptive| Row {
        name, items, missing, extra, which, sync_mark, frames, reference, adaptive,
    };
    vec![
        row("identical", 20_000, (0, 0), Scattered, false, (60_000, 500_000), (1, 337, 1), (1, 1302, 12)),
        row("all missing", 3_000, (3_000, 0), Newest, false, (60_000, 500_000), (1, 5, 96006), (1, 5, 96006)),
        row("1 missing", 20_000, (1, 0), Scattered, false, (60_000, 500_000), (2, 661, 502), (2, 1315, 958)),
        row("1 extra", 20_000, (0, 1), Scattered, false, (60_000, 500_000), (2, 661, 468), (2, 1314, 954)),
        row("200 newest, sync_mark", 20_000, (200, 0), Newest, true, (60_000, 500_000), (2, 667, 6877), (1, 343, 6445)),
        row("200 newest", 20_000, (200, 0), Newest, false, (60_000, 500_000), (2, 667, 6877), (1, 1297, 6413)),
        row("100 scattered", 20_000, (100, 0), Scattered, false, (60_000, 500_000), (2, 32548, 24810), (2, 2213, 83747)),
        row("100 and 100 extra", 20_000, (100, 100), Scattered, false, (60_000, 500_000), (2, 49314, 37541), (2, 2809, 141140)),
        row("2,000 scattered", 20_000, (2_000, 0), Scattered, false, (60_000, 500_000), (3, 65258, 445239), (3, 1370, 660613)),
        row("100 scattered, tight frames", 20_000, (100, 0), Scattered, false, (4096, 4096), (17, 40958, 57374), (22, 4173, 85088)),
        row("2,000 scattered, tight frames", 20_000, (2_000, 0), Scattered, false, (4096, 8192), (101, 257762, 620355), (83, 6911, 668152)),
        row("1,000 scattered of 100,000", 100_000, (1_000, 0), Scattered, false, (60_000, 60_000), (18, 485681, 573365), (11, 123244, 583004)),
    ]
}

#[test]
fn the_table_of_round_trips_and_bytes() {
    let mut differs = Vec::new();
    for row in table() {
        let case = row.case();
        let sync_mark = row.sync_mark.then(|| case.ours.items().last().unwrap().created_at);
        let reference = row.run(&case, InitiatorOptions::reference(row.frames.0));
        let options =
            InitiatorOptions::default().frame_limit_bytes(row.frames.0).sync_mark(sync_mark);
        let adaptive = row.run(&case, options);
        if (reference, adaptive) != (row.reference, row.adaptive) {
            differs.push(format!("{}: {reference:?}, {adaptive:?}", row.name));
        }
    }
    assert!(differs.is_empty(), "now:\n{}", differs.join("\n"));
}
