//! A byte stream with a limit on bytes per second in each direction.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Maximum burst after a pause, as one part of a second in this many.
const BURST_PARTS: u64 = 4;
/// Minimum wait, as one part of a second in this many, so that a slow stream is not woken for each
/// byte.
const WAIT_PARTS: u64 = 20;

/// The stream with its two limits.
pub(super) struct RateLimited<S> {
    stream: S,
    up: Option<Allowance>,
    down: Option<Allowance>,
}

impl<S> RateLimited<S> {
    /// `up` and `down` are in bytes per second.
    pub(super) fn new(stream: S, up: Option<u64>, down: Option<u64>) -> Self {
        Self { stream, up: up.map(Allowance::new), down: down.map(Allowance::new) }
    }
}

/// The bytes that may be moved now.
struct Allowance {
    bytes_per_s: u64,
    bytes: u64,
    counted_at: Instant,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Allowance {
    fn new(bytes_per_s: u64) -> Self {
        let bytes_per_s = bytes_per_s.max(1);
        Self { bytes_per_s, bytes: burst(bytes_per_s), counted_at: Instant::now(), waiting: None }
    }

    /// The number of bytes that may be moved; pending while it is zero.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(context));
                self.waiting = None;
            }
            let now = Instant::now();
            let passed_us = u64::try_from((now - self.counted_at).as_micros()).unwrap_or(u64::MAX);
            let earned = passed_us.saturating_mul(self.bytes_per_s) / 1_000_000;
            if earned > 0 {
                self.bytes = self.bytes.saturating_add(earned).min(burst(self.bytes_per_s));
                self.counted_at = now;
            }
            if self.bytes > 0 {
                return Poll::Ready(usize::try_from(self.bytes).unwrap_or(usize::MAX));
            }
            let wait = Duration::from_millis(1_000 / WAIT_PARTS);
            self.waiting = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

fn burst(bytes_per_s: u64) -> u64 {
    (bytes_per_s / BURST_PARTS).max(1)
}

impl<S: AsyncRead + Unpin> AsyncRead for RateLimited<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(allowance) = &mut this.down else {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        };
        let most = ready!(allowance.poll_bytes(context)).min(buffer.remaining());
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        allowance.spend(read);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RateLimited<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let Some(allowance) = &mut this.up else {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        };
        let most = ready!(allowance.poll_bytes(context)).min(bytes.len());
        let part = bytes.get(..most).unwrap_or(bytes);
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, part))?;
        allowance.spend(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// In 20 s of tokio's paused time, which advances only while there is no work.
    #[tokio::test(start_paused = true)]
    async fn as_many_bytes_pass_as_the_limit_says_each_way() {
        const RATE: u64 = 32 << 10;
        const SECONDS: u64 = 20;
        for (up, down) in [(Some(RATE), None), (None, Some(RATE)), (None, None)] {
            let (near, far) = tokio::io::duplex(1 << 20);
            let (mut near_read, mut near_write) =
                tokio::io::split(RateLimited::new(near, up, down));
            let (mut far_read, mut far_write) = tokio::io::split(far);
            let (mut sent, mut received) = (0, 0);
            let limited = async {
                let chunk = [7; 5_000];
                let (mut up_buffer, mut down_buffer) = ([0; 5_000], [0; 5_000]);
                loop {
                    tokio::select! {
                        Ok(count) = near_write.write(&chunk), if sent < 4 << 20 => sent += count as u64,
                        Ok(count) = near_read.read(&mut down_buffer), if received < 4 << 20 => received += count as u64,
                        Ok(_) = far_write.write(&chunk) => {}
                        Ok(_) = far_read.read(&mut up_buffer) => {}
                    }
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(SECONDS), limited).await;
            for (moved, limit) in [(sent, up), (received, down)] {
                let expected = match limit {
                    Some(rate) => rate * SECONDS * 9 / 10..=rate * (SECONDS + 1),
                    None => 4 << 20..=u64::MAX,
                };
                assert!(expected.contains(&moved), "{moved} of {expected:?}: {up:?}, {down:?}");
            }
        }
    }
}
