//! The end of a connection after a close frame: further input is read and dropped, so that the last
//! messages reach the client before the connection is reset.

use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How long input is read.
pub(crate) const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum number of bytes that are read.
const LINGER_BYTES: usize = 64 << 20;
/// RFC 6455, section 5.5: maximum payload of a control frame, and its head.
const CONTROL_BYTES: usize = 125;
const HEAD_BYTES: usize = 6;

/// Reads and drops input for a while, until the client answers with a close frame or disconnects.
pub(crate) async fn linger(raw: &mut (impl AsyncRead + Unpin)) {
    let _ = tokio::time::timeout(LINGER_TIMEOUT, drain(raw)).await;
}

async fn drain(raw: &mut (impl AsyncRead + Unpin)) {
    let mut buffer = [0; 4_096];
    let mut last = Vec::new();
    let mut left = LINGER_BYTES;
    while left > 0 {
        let read = match raw.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        left = left.saturating_sub(read);
        last.extend_from_slice(buffer.get(..read).unwrap_or_default());
        last.drain(..last.len().saturating_sub(HEAD_BYTES + CONTROL_BYTES));
        if ends_with_close(&last) {
            return;
        }
    }
}

/// Whether the last bytes are a close frame: a client sends nothing after it. After a protocol
/// error the frame boundaries are unknown, so the frame must have one of the codes of RFC 6455,
/// section 7.4.1; other bytes hardly ever match.
fn ends_with_close(bytes: &[u8]) -> bool {
    (2..=CONTROL_BYTES).any(|length| {
        let frame = bytes.len().checked_sub(HEAD_BYTES + length).and_then(|at| bytes.get(at..));
        let Some([0x88, second, first_key, second_key, _, _, high, low, ..]) = frame else {
            return false;
        };
        let code = u16::from_be_bytes([high ^ first_key, low ^ second_key]);
        usize::from(*second) == 0x80 | length && (1_000..=1_015).contains(&code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use tokio::io::AsyncWriteExt;

    fn close(code: u16, reason: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let payload = [&code.to_be_bytes()[..], reason].concat();
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key);
        [0x88, 0x80 | payload.len() as u8].into_iter().chain(mask).chain(masked).collect()
    }

    /// For any previous bytes and any division of the stream, it ends exactly at the close frame.
    #[tokio::test]
    async fn it_ends_with_the_close_frame() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut client, mut raw) = tokio::io::duplex(1 << 20);
            let mut sent: Vec<u8> =
                (0..rng.random_range(0..20_000)).map(|_| rng.random()).collect();
            let reason = vec![b'x'; rng.random_range(0..=123)];
            sent.extend(close(rng.random_range(1_000..=1_015), &reason, rng.random()));
            let last = sent.pop().unwrap();
            let draining = tokio::spawn(async move {
                drain(&mut raw).await;
                raw
            });
            for part in sent.chunks(rng.random_range(sent.len() / 20 + 1..=sent.len())) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert!(!draining.is_finished(), "seed {seed}");
            client.write_all(&[last]).await.unwrap();
            let drained = tokio::time::timeout(Duration::from_secs(60), draining).await;
            drained.unwrap_or_else(|_| panic!("seed {seed}")).unwrap();
        }
    }

    #[tokio::test]
    async fn it_ends_with_the_client_and_with_too_much() {
        let (mut client, mut raw) = tokio::io::duplex(1 << 20);
        client.write_all(&close(4_000, b"", [0; 4])).await.unwrap();
        drop(client);
        drain(&mut raw).await;
        let mut endless = tokio::io::repeat(b'x');
        drain(&mut endless).await;
    }
}
