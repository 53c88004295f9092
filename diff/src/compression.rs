//! Which compression a layer has and gets, and the decoder for it.
//!
//! Invariant: the bytes decide, not the media type, among the compressions of the known layer types;
//! a decoder's memory is bounded ([`Windows`]).

use std::io::{BufRead, BufReader, Cursor, Read};

pub(crate) use compression::{Compression, Encoder};
use types::{Error, Result, media_type};

use crate::windows::Windows;

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
pub(crate) fn wanted(media_type: &str) -> Result<(Compression, &str)> {
    if media_type.is_empty() {
        return Ok((Compression::Gzip, media_type::OCI_LAYER_GZIP));
    }
    let known = Compression::of_layers(media_type);
    let unknown =
        || Error::not_implemented(format_args!("unsupported diff media type: {media_type}"));
    Ok((known.ok_or_else(unknown)?, media_type))
}

/// The compression of a blob by its first bytes, which stay unread.
///
/// # Errors
/// I/O.
pub(crate) fn begins_as<R: BufRead + ?Sized>(blob: &mut R) -> std::io::Result<Compression> {
    // A short first buffer is a short blob: readers here fill theirs, or are [`begun`].
    Ok(Compression::of(blob.fill_buf()?))
}

/// A stream whose first buffer has what [`begins_as`] wants to see, however little it gives at a
/// time.
///
/// # Errors
/// I/O of the first bytes.
pub(crate) fn begun<R: Read>(mut stream: R, buffer: usize) -> std::io::Result<impl BufRead> {
    let mut head = Vec::with_capacity(Compression::MAGIC);
    let most = u64::try_from(Compression::MAGIC).unwrap_or(0);
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
    let compression = begins_as(&mut blob)?;
    compression::decoder(compression, blob, windows.admission())
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

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
            assert_eq!(begins_as(&mut stream).unwrap(), compression);
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
            check(known).unwrap();
        }
        for unknown in [
            "",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "text/plain",
        ] {
            let error = check(unknown).unwrap_err();
            assert!(error.is(types::Code::NotImplemented));
        }
        let error = wanted("text/plain").unwrap_err();
        assert!(error.is(types::Code::NotImplemented));
    }
}
