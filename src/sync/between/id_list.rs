//! The ids of a relay's events: in memory while they are few, otherwise in an unnamed temporary
//! file.

use super::super::machine::Id;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Ids in memory (4 MiB); when it is full they are sorted and written to the file.
const IN_MEMORY: usize = 1 << 17;
/// Maximum number of ids of a relay, above that of the largest relay. They take 3.2 GB on disk.
const MOST_IDS: u64 = 100_000_000;
/// Ids of a sorted run that are read at a time.
const READ_IDS: usize = 256;
const ID_BYTES: usize = 32;

/// Collects ids in any order.
#[derive(Default)]
pub(super) struct IdListBuilder {
    fresh: Vec<Id>,
    file: Option<File>,
    /// The end of each sorted run in the file, counted in ids.
    ends: Vec<u64>,
}

impl IdListBuilder {
    pub(super) fn push(&mut self, id: Id) -> io::Result<()> {
        self.fresh.push(id);
        if self.fresh.len() < IN_MEMORY {
            return Ok(());
        }
        self.fresh.sort_unstable();
        self.fresh.dedup();
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(self.fresh.as_flattened())?;
        }
        let end = self.ends.last().copied().unwrap_or(0) + self.fresh.len() as u64;
        if end > MOST_IDS {
            return Err(io::Error::other(format!("it lists more than {MOST_IDS} events")));
        }
        self.ends.push(end);
        self.fresh.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> IdList {
        self.fresh.sort_unstable();
        self.fresh.dedup();
        let (fresh, file) = (self.fresh.into(), self.file.map(Arc::new));
        IdList { fresh, file, ends: self.ends.into() }
    }
}

/// Sorted ids. Clones share them.
#[derive(Clone)]
pub(super) struct IdList {
    fresh: Arc<[Id]>,
    file: Option<Arc<File>>,
    ends: Arc<[u64]>,
}

impl IdList {
    /// Reads the ids in order, without duplicates.
    pub(super) fn read(&self) -> io::Result<IdReader<'_>> {
        let mut runs = vec![SortedRun { ahead: self.fresh.to_vec(), ..SortedRun::default() }];
        let mut start = 0;
        for end in self.ends.iter().copied() {
            runs.push(SortedRun {
                file: self.file.as_deref(),
                at: start,
                end,
                ..SortedRun::default()
            });
            start = end;
        }
        let mut reader = IdReader { runs, next: BinaryHeap::new(), last: None };
        for place in 0..reader.runs.len() {
            reader.refill(place)?;
        }
        Ok(reader)
    }

    /// The union of these ids and those of `other`.
    pub(super) fn joined(&self, other: &Self) -> io::Result<Self> {
        let mut builder = IdListBuilder::default();
        for list in [self, other] {
            let mut reader = list.read()?;
            while let Some(id) = reader.next()? {
                builder.push(id)?;
            }
        }
        Ok(builder.finish())
    }
}

/// A sorted run, partly read.
#[derive(Default)]
struct SortedRun<'list> {
    file: Option<&'list File>,
    at: u64,
    end: u64,
    ahead: Vec<Id>,
    taken: usize,
}

impl SortedRun<'_> {
    fn next(&mut self) -> io::Result<Option<Id>> {
        if self.taken == self.ahead.len() && self.at < self.end {
            let count = usize::try_from(self.end - self.at).unwrap_or(READ_IDS).min(READ_IDS);
            self.ahead.resize(count, [0; ID_BYTES]);
            if let Some(file) = self.file {
                let place = self.at * ID_BYTES as u64;
                file.read_exact_at(self.ahead.as_flattened_mut(), place)?;
            }
            self.at += count as u64;
            self.taken = 0;
        }
        let id = self.ahead.get(self.taken).copied();
        self.taken += usize::from(id.is_some());
        Ok(id)
    }
}

/// Reads a list in order.
pub(super) struct IdReader<'list> {
    runs: Vec<SortedRun<'list>>,
    next: BinaryHeap<Reverse<(Id, usize)>>,
    last: Option<Id>,
}

impl IdReader<'_> {
    fn refill(&mut self, place: usize) -> io::Result<()> {
        if let Some(run) = self.runs.get_mut(place)
            && let Some(id) = run.next()?
        {
            self.next.push(Reverse((id, place)));
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Id>> {
        while let Some(Reverse((id, place))) = self.next.pop() {
            self.refill(place)?;
            if self.last.replace(id) != Some(id) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}

/// Calls `visit` with each id of any list, in order, and the set of lists that have it (the first
/// list is the lowest bit), until `visit` breaks off.
pub(super) fn compare(
    lists: &[Option<IdList>],
    mut visit: impl FnMut(Id, u32) -> bool,
) -> io::Result<()> {
    let mut readers = Vec::with_capacity(lists.len());
    let mut heads = BinaryHeap::new();
    for list in lists {
        let mut reader = list.as_ref().map(IdList::read).transpose()?;
        if let Some(reader) = &mut reader
            && let Some(id) = reader.next()?
        {
            heads.push(Reverse((id, readers.len())));
        }
        readers.push(reader);
    }
    let mut held: Option<(Id, u32)> = None;
    while let Some(Reverse((id, place))) = heads.pop() {
        if let Some(Some(reader)) = readers.get_mut(place)
            && let Some(next) = reader.next()?
        {
            heads.push(Reverse((next, place)));
        }
        let bit = 1 << place;
        match &mut held {
            Some((known, mask)) if *known == id => *mask |= bit,
            _ => {
                let before = held.replace((id, bit));
                if before.is_some_and(|(id, mask)| !visit(id, mask)) {
                    return Ok(());
                }
            }
        }
    }
    if let Some((id, mask)) = held {
        visit(id, mask);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::collections::BTreeMap;

    #[test]
    fn lists_are_compared_as_sets_are() {
        for (seed, most) in [(1, 0), (2, 50), (3, 1_000), (4, IN_MEMORY + 1_000)] {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut expected: BTreeMap<Id, u32> = BTreeMap::new();
            let mut lists = Vec::new();
            for place in 0..3 {
                let mut builder = IdListBuilder::default();
                for _ in 0..most {
                    let mut id = [0; 32];
                    let number: u32 = rng.random_range(0..(2 * most) as u32);
                    id[..4].copy_from_slice(&number.to_be_bytes());
                    *expected.entry(id).or_default() |= 1 << place;
                    builder.push(id).unwrap();
                }
                lists.push(Some(builder.finish()));
            }
            lists.insert(1, None);
            let mut found = BTreeMap::new();
            let bits = |mask: u32| mask & 1 | (mask & 6) << 1;
            compare(&lists, |id, mask| found.insert(id, mask).is_none()).unwrap();
            assert!(found.len() == expected.len(), "seed {seed}");
            assert!(expected.iter().all(|(id, mask)| found[id] == bits(*mask)), "seed {seed}");
            let joined = lists[0].as_ref().unwrap().joined(lists[2].as_ref().unwrap()).unwrap();
            let mut reader = joined.read().unwrap();
            let both = expected.iter().filter(|(_, mask)| **mask & 3 != 0);
            assert!(both.into_iter().all(|(id, _)| reader.next().unwrap() == Some(*id)));
            assert_eq!(reader.next().unwrap(), None);
        }
    }
}
