//! Schnorr signatures (BIP-340), with a cache of parsed public keys: parsing a key from its 32
//! bytes takes a tenth of a verification.

use nostr::SECP256K1;
use nostr::secp256k1::schnorr::Signature;
use nostr::secp256k1::{Message, XOnlyPublicKey};
use std::cell::RefCell;

/// Keys that each thread caches. Each key has one slot; a new key replaces the old one.
const KEYS: usize = 4_096;

type Place = Option<([u8; 32], XOnlyPublicKey)>;

thread_local! {
    static PLACES: RefCell<Vec<Place>> = RefCell::new(vec![None; KEYS]);
}

/// Whether `signature` is valid for the id and the public key.
pub(super) fn is_valid(signature: &[u8; 64], id: &[u8; 32], pubkey: &[u8; 32]) -> bool {
    let Ok(signature) = Signature::from_slice(signature) else { return false };
    let message = Message::from_digest(*id);
    key(pubkey).is_some_and(|key| SECP256K1.verify_schnorr(&signature, &message, &key).is_ok())
}

/// The curve point of a public key; `None` if the key is invalid.
fn key(bytes: &[u8; 32]) -> Option<XOnlyPublicKey> {
    // Keys are as random as hashes: two of their bytes choose the slot.
    let place = usize::from(u16::from_le_bytes([bytes[30], bytes[31]])) % KEYS;
    PLACES.with_borrow_mut(|places| match places.get_mut(place) {
        Some(Some((known, key))) if known == bytes => Some(*key),
        other => {
            let key = XOnlyPublicKey::from_slice(bytes).ok()?;
            if let Some(place) = other {
                *place = Some((*bytes, key));
            }
            Some(key)
        }
    })
}
