//! WebSocket frames as a client sends them (RFC 6455, section 5.2).

/// A mask that changes nothing.
pub const NO_MASK: [u8; 4] = [0; 4];

/// The head of a frame with a payload of `length` bytes.
pub fn head(first: u8, length: usize, mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        ..126 => bytes.push(0x80 | length as u8),
        126..65_536 => {
            bytes.push(0xfe);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0xff);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes
}

/// A whole frame.
pub fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = head(first, payload.len(), mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}
