//! A file gives the same answers as a sorted vector, and a damaged file is refused.

use super::layout::{BLOCK_BYTES, ENTRY_BYTES, TRAILER_BYTES};
use super::*;
use negsync_reconcile::SortedItems;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use tempfile::TempDir;

const IDENTITY: FileIdentity = FileIdentity { set: [3; 32], mark: [5; 16] };

/// `count` items of a few seconds, in order.
fn some_items(rng: &mut StdRng, count: usize) -> Vec<Item> {
    let mut items = BTreeSet::new();
    while items.len() < count {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&rng.random::<[u8; 2]>());
        id[31] = rng.random();
        items.insert(Item::new(rng.random_range(10..40), id));
    }
    items.into_iter().collect()
}

fn write(path: &Path, items: &[Item]) {
    let mut writer = FileWriter::begin(path).unwrap();
    items.iter().for_each(|item| writer.push(*item).unwrap());
    writer.finish(IDENTITY).unwrap();
}

fn written(items: &[Item]) -> (TempDir, SortedFile) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("items");
    write(&path, items);
    let file = SortedFile::open(&path, &IDENTITY).unwrap();
    (folder, file)
}

#[test]
fn a_file_answers_as_a_sorted_vector() {
    for (seed, count) in (0..).zip([0, 1, 2, 127, 128, 129, 255, 256, 1_000, 5_000]) {
        let mut rng = StdRng::seed_from_u64(seed);
        let items = some_items(&mut rng, count);
        let (_folder, file) = written(&items);
        let model: SortedItems = items.iter().copied().collect();
        assert_eq!(file.len(), count);
        let mut ranks: Vec<usize> = (0..300).map(|_| rng.random_range(0..=count + 2)).collect();
        ranks.extend([0, 127, 128, 129, count]);
        let mut probes = some_items(&mut rng, 200);
        probes.extend(ranks.iter().filter_map(|rank| items.get(*rank)));
        probes.extend([0, 10, 39, 40, u64::MAX].map(|second| Item::new(second, [0; 32])));
        for probe in &probes {
            let context = format!("seed {seed}, {probe:?}");
            assert_eq!(file.place(probe), model.place(probe), "{context}");
            assert_eq!(file.lower_bound(probe), model.lower_bound(probe), "{context}");
            assert_eq!(file.contains(probe), items.binary_search(probe).is_ok(), "{context}");
        }
        let places: Vec<RangePosition> = probes.iter().map(|probe| model.place(probe)).collect();
        assert_eq!(file.places(&probes), places, "seed {seed}");
        for rank in &ranks {
            let context = format!("seed {seed}, rank {rank}");
            assert_eq!(file.item(*rank), items.get(*rank).copied(), "{context}");
            assert_eq!(file.sum_below(*rank), model.sum_below(*rank), "{context}");
            assert_eq!(file.cut(*rank), model.cut(*rank), "{context}");
        }
        for pair in ranks.windows(2) {
            let range = pair[0].min(pair[1])..pair[0].max(pair[1]);
            let mut visited = Vec::new();
            file.for_each(range.clone(), &mut |item| visited.push(item));
            let end = range.end.min(count);
            assert_eq!(visited, items[range.start.min(end)..end], "seed {seed}, {range:?}");
        }
        assert!(file.is_readable());
    }
}

#[test]
fn a_walk_of_many_blocks_reads_each_item_once_and_ends_where_it_is_told() {
    let items: Vec<Item> = (0..40_000).map(|second| Item::new(second, [1; 32])).collect();
    let (_folder, file) = written(&items);
    let mut visited = Vec::new();
    file.for_each(100..39_900, &mut |item| visited.push(item));
    assert_eq!(visited, items[100..39_900]);
    let mut seen = 0;
    let flow = file.try_for_each(0..usize::MAX, &mut |_| {
        seen += 1;
        if seen == 20_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(flow.is_break());
    assert_eq!(seen, 20_000);
}

/// For some bytes of each kind: a bit is flipped, or the file ends there.
#[test]
fn a_file_that_is_not_as_it_was_written_is_refused() {
    let mut rng = StdRng::seed_from_u64(17);
    let items = some_items(&mut rng, 700);
    let (folder, _file) = written(&items);
    let path = folder.path().join("items");
    let whole = std::fs::read(&path).unwrap();
    let index_at = 6 * BLOCK_BYTES + (items.len() - 6 * BLOCK_ITEMS) * ITEM_BYTES;
    let trailer_at = index_at + 7 * ENTRY_BYTES;
    assert_eq!(whole.len(), trailer_at + TRAILER_BYTES);
    // A time and an id in the first, a middle and the last block, and padding; each field of the
    // index; each byte of the trailer.
    let mut places = vec![0, 7, 8, 39, 40, 4_090, 4_096, 12_500, index_at - 40, index_at - 1];
    places.extend((index_at..trailer_at).step_by(5));
    places.extend(trailer_at..whole.len());
    for place in places {
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << rng.random_range(0..8);
        std::fs::write(&path, &bytes).unwrap();
        let opened = SortedFile::open(&path, &IDENTITY);
        assert!(matches!(opened, Err(IndexFileError::Damaged(_))), "byte {place}: {opened:?}");
        std::fs::write(&path, &whole[..place]).unwrap();
        let opened = SortedFile::open(&path, &IDENTITY);
        assert!(matches!(opened, Err(IndexFileError::Damaged(_))), "cut at {place}: {opened:?}");
    }
    for added in [1, 40, 136] {
        let longer = [whole.as_slice(), &vec![0; added]].concat();
        std::fs::write(&path, &longer).unwrap();
        assert!(matches!(SortedFile::open(&path, &IDENTITY), Err(IndexFileError::Damaged(_))));
    }
    // Two files in one, and a block in the place of another.
    std::fs::write(&path, [whole.clone(), whole.clone()].concat()).unwrap();
    assert!(matches!(SortedFile::open(&path, &IDENTITY), Err(IndexFileError::Damaged(_))));
    let mut swapped = whole.clone();
    swapped.copy_within(0..BLOCK_BYTES, BLOCK_BYTES);
    std::fs::write(&path, &swapped).unwrap();
    assert!(matches!(SortedFile::open(&path, &IDENTITY), Err(IndexFileError::Damaged(_))));

    std::fs::write(&path, &whole).unwrap();
    assert!(SortedFile::open(&path, &IDENTITY).is_ok());
    let others =
        [FileIdentity { set: [4; 32], ..IDENTITY }, FileIdentity { mark: [6; 16], ..IDENTITY }];
    for other in others {
        assert!(matches!(SortedFile::open(&path, &other), Err(IndexFileError::Foreign)));
    }
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(SortedFile::open(&path, &IDENTITY), Err(IndexFileError::Missing)));
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(SortedFile::open(&path, &IDENTITY), Err(IndexFileError::Damaged(_))));
}

/// Lookups after a part of the file is gone do not pretend that it is there.
#[test]
fn a_file_that_can_no_longer_be_read_says_so() {
    let items: Vec<Item> = (0..100_000).map(|second| Item::new(second, [1; 32])).collect();
    let (folder, file) = written(&items);
    let cut = std::fs::OpenOptions::new().write(true).open(folder.path().join("items")).unwrap();
    cut.set_len(2_000_000).unwrap();
    assert_eq!(file.item(1_001), Some(items[1_001]));
    assert!(file.is_readable());
    assert_eq!(file.item(90_001), None);
    assert!(!file.is_readable());
    // A walk must end too.
    let mut visited = 0;
    file.for_each(0..100_000, &mut |_| visited += 1);
    assert!(visited < 100_000, "{visited}");
}

#[test]
fn a_file_that_is_not_finished_leaves_the_one_before_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("items");
    write(&path, &[Item::new(1, [1; 32])]);
    let before = std::fs::read(&path).unwrap();
    let mut writer = FileWriter::begin(&path).unwrap();
    writer.push(Item::new(2, [1; 32])).unwrap();
    assert!(matches!(writer.push(Item::new(2, [1; 32])), Err(WriteError::Order)));
    assert!(matches!(writer.push(Item::new(1, [9; 32])), Err(WriteError::Order)));
    drop(writer);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
