//! What stands for a range of items on the wire: 16 bytes of a hash over the
//! sum of its ids (negentropy v1, "Fingerprint Algorithm").

use sha2::{Digest, Sha256};

/// The sum of ids, each read as a 256-bit little-endian number, modulo 2^256.
/// Being a sum, it can be kept for any part of a set and added and taken apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum([u64; 4]);

/// The 16 bytes that a Fingerprint range carries.
pub type Fingerprint = [u8; 16];

impl Sum {
    /// The sum of no ids.
    pub const ZERO: Self = Self([0; 4]);

    /// The sum of one id.
    pub fn of(id: &[u8; 32]) -> Self {
        let (words, _) = id.as_chunks::<8>();
        let mut sum = [0; 4];
        for (limb, word) in sum.iter_mut().zip(words) {
            *limb = u64::from_le_bytes(*word);
        }
        Self(sum)
    }

    /// Adds `other`, modulo 2^256.
    pub fn add(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, term) in self.0.iter_mut().zip(other.0) {
            let (partial, over) = limb.overflowing_add(term);
            let (total, over_again) = partial.overflowing_add(u64::from(carry));
            *limb = total;
            carry = over | over_again;
        }
    }

    /// Takes `other` away, modulo 2^256.
    pub fn subtract(&mut self, other: &Self) {
        let mut borrow = false;
        for (limb, term) in self.0.iter_mut().zip(other.0) {
            let (partial, under) = limb.overflowing_sub(term);
            let (total, under_again) = partial.overflowing_sub(u64::from(borrow));
            *limb = total;
            borrow = under | under_again;
        }
    }

    /// The fingerprint of the `count` ids that this is the sum of: the first
    /// 16 bytes of SHA-256 over the sum and the count as a varint.
    pub fn fingerprint(&self, count: usize) -> Fingerprint {
        let mut hash = Sha256::new();
        for limb in self.0 {
            hash.update(limb.to_le_bytes());
        }
        let mut varint = [0u8; 10];
        let mut start = varint.len();
        let mut rest = count as u64;
        loop {
            start -= 1;
            let more = if start == varint.len() - 1 { 0 } else { 0x80 };
            varint[start] = (rest & 0x7f) as u8 | more;
            rest >>= 7;
            if rest == 0 {
                break;
            }
        }
        hash.update(&varint[start..]);
        let digest = hash.finalize();
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&digest[..16]);
        fingerprint
    }
}
