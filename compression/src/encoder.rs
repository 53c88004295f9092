//! The encoder in front of a writer, one type for all compressions.

use std::fmt;
use std::io::{Result, Write};

use flate2::write::GzEncoder;

use crate::Compression;

/// zstd's own default: three times gzip's speed at its ratio.
const ZSTD_LEVEL: i32 = zstd::DEFAULT_COMPRESSION_LEVEL;

/// An encoder in front of a writer.
pub enum Encoder<W: Write> {
    /// Passes on what it gets.
    Plain(W),
    /// gzip.
    Gzip(GzEncoder<W>),
    /// zstd.
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl<W: Write> Encoder<W> {
    /// Starts one.
    ///
    /// # Errors
    /// That of the library.
    pub fn new(compression: Compression, to: W) -> Result<Self> {
        Ok(match compression {
            Compression::Plain => Self::Plain(to),
            Compression::Gzip => Self::Gzip(GzEncoder::new(to, flate2::Compression::default())),
            Compression::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(to, ZSTD_LEVEL)?),
        })
    }

    /// Writes what is left and returns the writer, which may have some of it in a buffer of its own.
    ///
    /// # Errors
    /// That of the writer.
    pub fn finish(self) -> Result<W> {
        match self {
            Self::Plain(to) => Ok(to),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> Result<usize> {
        match self {
            Self::Plain(to) => to.write(data),
            Self::Gzip(encoder) => encoder.write(data),
            Self::Zstd(encoder) => encoder.write(data),
        }
    }

    fn flush(&mut self) -> Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
