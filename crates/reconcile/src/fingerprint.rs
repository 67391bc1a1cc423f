//! Fingerprints and sums of ranges. A fingerprint is 16 bytes of a hash over the sum of the ids
//! (negentropy v1, "Fingerprint Algorithm").

use sha2::block_api::compress256;

/// The sum of ids modulo 2^256, each id read as a 256-bit little-endian number. Sums of parts of a
/// set can be stored, added and subtracted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum([u64; 4]);

/// The 16 bytes that a Fingerprint range carries.
pub type Fingerprint = [u8; 16];

impl Sum {
    /// The sum of no ids.
    pub const ZERO: Self = Self([0; 4]);

    /// The sum of one id.
    #[must_use]
    pub fn of(id: &[u8; 32]) -> Self {
        let (words, _) = id.as_chunks::<8>();
        let mut sum = [0; 4];
        for (limb, word) in sum.iter_mut().zip(words) {
            *limb = u64::from_le_bytes(*word);
        }
        Self(sum)
    }

    /// The sum in the byte order of an id: little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (word, limb) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *word = limb.to_le_bytes();
        }
        bytes
    }

    /// Adds `other`, modulo 2^256.
    pub fn add(&mut self, other: &Self) {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        let (w, carry) = a.carrying_add(e, false);
        let (x, carry) = b.carrying_add(f, carry);
        let (y, carry) = c.carrying_add(g, carry);
        let (z, _) = d.carrying_add(h, carry);
        self.0 = [w, x, y, z];
    }

    /// Subtracts `other`, modulo 2^256.
    pub fn subtract(&mut self, other: &Self) {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        let (w, borrow) = a.borrowing_sub(e, false);
        let (x, borrow) = b.borrowing_sub(f, borrow);
        let (y, borrow) = c.borrowing_sub(g, borrow);
        let (z, _) = d.borrowing_sub(h, borrow);
        self.0 = [w, x, y, z];
    }

    /// The fingerprint of the `count` ids that add up to this sum: the first 16 bytes of SHA-256
    /// over the sum and the count as a varint.
    ///
    /// A session spends most of its time here, so the single SHA-256 block is laid out directly
    /// instead of in a buffer.
    pub fn fingerprint(&self, count: usize) -> Fingerprint {
        let mut block = [0u8; 64];
        let (words, _) = block.as_chunks_mut::<8>();
        for (word, limb) in words.iter_mut().zip(self.0) {
            *word = limb.to_le_bytes();
        }
        // Base 128, most significant digit first: at most 10 bytes.
        let count = count as u64;
        let digits = (u64::BITS - count.leading_zeros()).div_ceil(7).max(1);
        let bytes = words.as_flattened_mut().iter_mut().skip(SUM_BYTES);
        for (byte, digit) in bytes.zip((0..digits).rev().map(Some).chain([None])) {
            *byte = match digit {
                Some(0) => count as u8 & 0x7f,
                Some(digit) => (count >> (7 * digit)) as u8 | 0x80,
                // SHA-256's padding: a one bit, zeros, and the length in bits.
                None => 0x80,
            };
        }
        let hashed_bits = (SUM_BYTES as u64 + u64::from(digits)) * 8;
        if let Some(last) = words.last_mut() {
            *last = hashed_bits.to_be_bytes();
        }
        let mut state = SHA256_START;
        compress256(&mut state, &[block]);
        let mut fingerprint = [0; 16];
        for (word, half) in fingerprint.as_chunks_mut::<4>().0.iter_mut().zip(state) {
            *word = half.to_be_bytes();
        }
        fingerprint
    }
}

const SUM_BYTES: usize = 32;

/// The initial state of SHA-256 (FIPS 180-4, section 5.3.3).
const SHA256_START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

#[cfg(test)]
mod tests {
    use super::Sum;
    use alloc::vec::Vec;
    use sha2::{Digest, Sha256};

    #[test]
    fn a_fingerprint_is_sha256_of_the_sum_and_the_count() {
        let mut sum = Sum::of(&[0x81; 32]);
        for shift in 0..64 {
            for count in [(1usize << shift) - 1, 1 << shift] {
                sum.add(&Sum::of(&[shift as u8; 32]));
                let mut hash = Sha256::new();
                sum.0.iter().for_each(|limb| hash.update(limb.to_le_bytes()));
                let digits = (0..10).rev().map(|digit| (count >> (7 * digit)) as u8);
                let kept: Vec<u8> = digits
                    .enumerate()
                    .filter(|(index, _)| *index == 9 || count >> (7 * (9 - index)) != 0)
                    .map(|(index, digit)| if index == 9 { digit & 0x7f } else { digit | 0x80 })
                    .collect();
                hash.update(&kept);
                assert_eq!(sum.fingerprint(count), hash.finalize()[..16], "{count}");
            }
        }
    }
}
