//! Inputs made from a corpus: pieces of it changed, moved, repeated and put together.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::path::Path;

/// An input grows no longer.
const MOST_BYTES: usize = 16 << 10;
/// How many changes one input gets at the most.
const MOST_CHANGES: usize = 6;

/// What stands in texts and is read in a special way, between spaces.
const WORDS: &str = concat!(
    "[ ] { } , : \" \\ \\u0000 \\ud800 \\\" \u{0} \u{feff} é \u{1f98a} \n null true 0 -1 1e400 0.5 ",
    "65536 18446744073709551616 9223372036854775808 {} [] [[]] \"6100000200\" ",
    r##""EVENT", "REQ", "COUNT", "CLOSE", "AUTH", "NEG-OPEN", "NEG-MSG", "NEG-CLOSE", "##,
    r##""ids": "limit": "since": "until": "kinds":[ "#e":[ "#": "id": "tags":[["##,
);

/// What stands in negentropy messages and is read in a special way.
const FIELDS: [&[u8]; 14] = [
    &[0x61],
    &[0x60],
    &[0],
    &[0, 0],
    &[0, 0, 0],
    &[0, 0, 1],
    &[0, 0, 2, 0],
    &[1, 0, 0],
    &[0x80],
    &[0x80, 0x01],
    &[0xff, 0x7f],
    &[32],
    &[33],
    &[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
];

/// A corpus and where its mutations come from.
pub struct Mutator {
    corpus: Vec<Vec<u8>>,
    is_text: bool,
    known: Vec<&'static [u8]>,
    rng: StdRng,
}

impl Mutator {
    /// The committed corpus of a target.
    pub fn new(name: &str, is_text: bool, seed: u64) -> Self {
        let corpus = corpus(name).into_iter().map(|(_, input)| input).collect();
        let known =
            if is_text { WORDS.split(' ').map(str::as_bytes).collect() } else { FIELDS.to_vec() };
        Self { corpus, is_text, known, rng: StdRng::seed_from_u64(seed) }
    }

    /// Fills `input` with the next one.
    pub fn next(&mut self, input: &mut Vec<u8>) {
        input.clear();
        let chosen = self.any();
        input.extend_from_slice(&self.corpus[chosen]);
        for _ in 0..self.rng.random_range(1..=MOST_CHANGES) {
            self.change(input);
        }
        input.truncate(MOST_BYTES);
    }

    fn any(&mut self) -> usize {
        self.rng.random_range(0..self.corpus.len())
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.random_range(0..=input.len());
        let most = [4, 40, 400][self.rng.random_range(0..3)];
        let len = self.rng.random_range(0..=most);
        let end = input.len().min(at + len);
        match self.rng.random_range(0..9) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => {
                let piece = input[at..end].to_vec();
                let to = self.rng.random_range(0..=input.len());
                input.splice(to..to, piece);
            }
            // A piece of another input, at the end of this one or in the middle.
            3 => {
                let other = self.any();
                let other = &self.corpus[other];
                let from = self.rng.random_range(0..=other.len());
                let to = other.len().min(from + len);
                input.splice(at..at, other[from..to].iter().copied());
            }
            4 | 5 => self.splice_known(input, at, end),
            _ => self.change_byte(input, at),
        }
    }

    /// Puts something that means something in the place of a piece, or before it.
    fn splice_known(&mut self, input: &mut Vec<u8>, at: usize, end: usize) {
        let end = if self.rng.random() { at } else { end };
        let known = self.known[self.rng.random_range(0..self.known.len())];
        let times = if self.rng.random_ratio(1, 50) { 300 } else { 1 };
        input.splice(at..end, known.iter().copied().cycle().take(known.len() * times));
    }

    fn change_byte(&mut self, input: &mut [u8], at: usize) {
        let Some(byte) = input.get_mut(at) else { return };
        // Of text nearly all must stay UTF-8 to be read at all.
        let bits = if self.is_text && self.rng.random_ratio(49, 50) { 7 } else { 8 };
        match self.rng.random_range(0..3) {
            0 => *byte ^= 1 << self.rng.random_range(0..bits),
            1 => *byte = byte.wrapping_add(1) & (0xff >> (8 - bits)),
            _ => *byte = self.rng.next_u32() as u8 & (0xff >> (8 - bits)),
        }
    }
}

/// The committed inputs of a target with their names, in order of these.
pub fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<(String, Vec<u8>)> = files
        .map(|file| {
            let path = file.expect("a file of the corpus").path();
            let input = std::fs::read(&path).expect("a file that can be read");
            (path.display().to_string(), input)
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", folder.display());
    inputs
}
