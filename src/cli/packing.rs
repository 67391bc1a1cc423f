//! Standard output, packed or not.

use anyhow::Context;
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::{self, BufWriter, StdoutLock, Write};

type Out = BufWriter<StdoutLock<'static>>;

/// How an output is packed.
#[derive(clap::Args)]
pub(super) struct PackingArguments {
    /// Pack what is written by gzip.
    #[arg(long, conflicts_with = "zstd")]
    gzip: bool,
    /// Pack what is written by zstd.
    #[arg(long)]
    zstd: bool,
}

/// Standard output.
pub(super) enum PackedOutput {
    Plain(Out),
    Gzip(GzEncoder<Out>),
    Zstd(zstd::Encoder<'static, Out>),
}

impl PackingArguments {
    pub(super) fn standard_output(&self) -> anyhow::Result<PackedOutput> {
        let out = BufWriter::new(io::stdout().lock());
        Ok(match (self.gzip, self.zstd) {
            (true, _) => PackedOutput::Gzip(GzEncoder::new(out, Compression::default())),
            (_, true) => PackedOutput::Zstd(
                zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL).context("zstd")?,
            ),
            _ => PackedOutput::Plain(out),
        })
    }
}

impl PackedOutput {
    /// Writes the rest; without it a packed output is incomplete.
    pub(super) fn finish(self) -> io::Result<()> {
        let mut out = match self {
            Self::Plain(out) => out,
            Self::Gzip(gzip) => gzip.finish()?,
            Self::Zstd(zstd) => zstd.finish()?,
        };
        out.flush()
    }
}

impl Write for PackedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Zstd(zstd) => zstd.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(gzip) => gzip.flush(),
            Self::Zstd(zstd) => zstd.flush(),
        }
    }
}
