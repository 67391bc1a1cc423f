//! Events as values: an id and a time, from which the JSON is generated.

use negsync::item::Item;

/// Length of an event as JSON, in bytes: a short note.
const EVENT_BYTES: usize = 700;

/// The event of an item, with only the fields that a relay and the sync machine read.
pub fn json(item: &Item) -> String {
    let id = faster_hex::hex_string(&item.id);
    let (pubkey, sig) = ("0a".repeat(32), "0".repeat(128));
    let head = format!(
        r#"{{"id":"{id}","pubkey":"{pubkey}","created_at":{},"kind":1,"tags":[],"sig":"{sig}","content":""#,
        item.created_at
    );
    let content = "x".repeat(EVENT_BYTES.saturating_sub(head.len() + 2));
    format!(r#"{head}{content}"}}"#)
}

/// The item of an event that [`json`] made.
pub fn item(json: &str) -> Item {
    let after = |key: &str| json.split_once(key).expect("an event of this network").1;
    let second: String =
        after(r#""created_at":"#).chars().take_while(char::is_ascii_digit).collect();
    Item::new(second.parse().expect("digits"), id(&after(r#""id":""#)[..64]))
}

/// The id with this hex.
pub fn id(hex: &str) -> [u8; 32] {
    let mut id = [0; 32];
    faster_hex::hex_decode(hex.as_bytes(), &mut id).expect("64 hexadecimal digits");
    id
}
