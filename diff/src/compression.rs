//! Which compression a layer has, and the decoders and encoders for it.
//!
//! Invariant: the bytes decide, not the media type, among the compressions of the known layer types;
//! a decoder's memory is bounded ([`Windows`]).

use std::io::{BufRead, BufReader, Cursor, Read, Write};

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use types::{Error, Result, media_type};

use crate::zstd_frames::{Frames, Windows};

/// Longest magic number.
const MAGIC: usize = 4;

/// Compression of a layer blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// Foreign and non-distributable layers unpack as others do.
const LAYERS: [&str; 11] = [
    media_type::OCI_LAYER,
    media_type::OCI_LAYER_GZIP,
    media_type::OCI_LAYER_ZSTD,
    media_type::DOCKER_LAYER,
    media_type::DOCKER_LAYER_GZIP,
    media_type::DOCKER_LAYER_ZSTD,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

impl Compression {
    /// Checks that the media type is one of a tar layer.
    ///
    /// # Errors
    /// `NotImplemented`.
    pub(crate) fn check(media_type: &str) -> Result<()> {
        if LAYERS.contains(&media_type) {
            return Ok(());
        }
        Err(Error::not_implemented(format_args!(
            "unsupported layer media type {media_type:?}"
        )))
    }

    /// The compression that a new layer of `media_type` gets; empty is gzip.
    ///
    /// # Errors
    /// `NotImplemented`.
    pub(crate) fn wanted(media_type: &str) -> Result<(Self, &str)> {
        match media_type {
            "" => Ok((Self::Gzip, media_type::OCI_LAYER_GZIP)),
            media_type::OCI_LAYER | media_type::DOCKER_LAYER => Ok((Self::Plain, media_type)),
            media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => {
                Ok((Self::Gzip, media_type))
            }
            media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => {
                Ok((Self::Zstd, media_type))
            }
            other => Err(Error::not_implemented(format_args!(
                "unsupported diff media type: {other}"
            ))),
        }
    }

    /// The compression of a blob by its first bytes, which stay unread.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn of<R: BufRead + ?Sized>(blob: &mut R) -> std::io::Result<Self> {
        // A short first buffer is a short blob: readers here fill theirs, or are [`begun`].
        let head = blob.fill_buf()?;
        Ok(Self::detect(&head[..head.len().min(MAGIC)]))
    }

    fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// A stream whose first buffer has what [`Compression::of`] wants to see, however little it gives at a
/// time.
///
/// # Errors
/// I/O of the first bytes.
pub(crate) fn begun<R: Read>(mut stream: R, buffer: usize) -> std::io::Result<impl BufRead> {
    let mut head = Vec::with_capacity(MAGIC);
    let most = u64::try_from(MAGIC).unwrap_or(0);
    stream.by_ref().take(most).read_to_end(&mut head)?;
    let whole = Cursor::new(head).chain(stream);
    Ok(BufReader::with_capacity(buffer, whole))
}

/// The uncompressed stream of `blob`.
///
/// # Errors
/// I/O of the first bytes.
pub(crate) fn decoder<'a>(
    mut blob: impl BufRead + 'a,
    windows: Windows,
) -> std::io::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::of(&mut blob)? {
        Compression::Plain => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Compression::Zstd => Box::new(Frames::new(blob, windows)?),
    })
}

/// An error of a decoder: the blob's own, or damage.
pub(crate) fn decode_error(error: std::io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => {
            Error::invalid_argument(format_args!("decompress layer: {error}")).with_source(error)
        }
    }
}

/// An encoder in front of a writer.
pub(crate) enum Encoder<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Starts one.
    ///
    /// # Errors
    /// That of the library.
    pub(crate) fn new(compression: Compression, to: W) -> std::io::Result<Self> {
        Ok(match compression {
            Compression::Plain => Self::Plain(to),
            Compression::Gzip => Self::Gzip(GzEncoder::new(to, flate2::Compression::default())),
            Compression::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(to, 0)?),
        })
    }

    /// Writes what is left and returns the writer.
    ///
    /// # Errors
    /// That of the writer.
    pub(crate) fn finish(self) -> std::io::Result<W> {
        match self {
            Self::Plain(to) => Ok(to),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(data),
            Self::Gzip(encoder) => encoder.write(data),
            Self::Zstd(encoder) => encoder.write(data),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zstd_frames::Large;

    fn decoded(blob: &[u8]) -> Vec<u8> {
        let windows = Windows {
            most: 8 << 20,
            large: Large::Free,
        };
        let mut out = Vec::new();
        let mut stream = decoder(blob, windows).unwrap();
        stream.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn the_bytes_decide() {
        let text = b"some text that is long enough to be compressed, compressed, compressed";
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
            encoder.write_all(text).unwrap();
            let mut blob = encoder.finish().unwrap();
            assert_eq!(Compression::detect(&blob), compression);
            // Two members are one stream.
            blob.extend(blob.clone());
            assert_eq!(decoded(&blob), [text.as_slice(), text].concat());
        }
        assert!(decoded(b"").is_empty());
    }

    /// Gives one byte at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let len = buffer.len().min(1);
            self.0.read(&mut buffer[..len])
        }
    }

    #[test]
    fn the_bytes_decide_also_when_they_come_one_by_one() {
        for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
            let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
            encoder.write_all(b"text").unwrap();
            let blob = encoder.finish().unwrap();
            let mut stream = begun(Drip(&blob), 64).unwrap();
            assert_eq!(Compression::of(&mut stream).unwrap(), compression);
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert_eq!(all, blob);
        }
        for short in [&b""[..], b"\x1f", b"abc"] {
            let mut all = Vec::new();
            begun(Drip(short), 64)
                .unwrap()
                .read_to_end(&mut all)
                .unwrap();
            assert_eq!(all, short);
        }
    }

    #[test]
    fn unknown_media_types_are_not_ours() {
        for known in LAYERS {
            Compression::check(known).unwrap();
        }
        for unknown in [
            "",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "text/plain",
        ] {
            let error = Compression::check(unknown).unwrap_err();
            assert!(error.is(types::Code::NotImplemented));
        }
        let error = Compression::wanted("text/plain").unwrap_err();
        assert!(error.is(types::Code::NotImplemented));
    }
}
