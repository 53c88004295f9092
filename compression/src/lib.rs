//! How a stream is compressed, and the decoders and encoders for that.
//!
//! ```text
//!   first bytes -> Compression -> decoder: gzip | zstd, each window let pass by the caller | as it is
//!   media type  -> Compression -> Encoder
//! ```
//! Invariant: a decoder has no more memory than its caller lets pass; of those whose callers take a turn for a
//! large window ([`Turns`]) there are two in the process at most. Called by `diff` for layers that are
//! unpacked and compared, and by `images` for archives that come in and layers that are converted.

mod encoder;
mod turns;
mod zstd_frames;

use std::io::{BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use types::{Error, Result, media_type};

pub use encoder::Encoder;
pub use turns::{Turn, Turns};
use zstd_frames::Frames;

/// Windows that everybody gets: what the builders write at any level (klauspost/compress: 8 MiB at most),
/// zstd itself up to level 19, and what RFC 8878 asks of each decoder.
pub const COMMON_WINDOW: u64 = 8 << 20;
/// The largest one that anybody gets unless told otherwise: what `zstd --ultra -22` writes, and what
/// `zstd -d` takes. Go's decoder takes four times as much.
pub const LARGEST_WINDOW: u64 = 128 << 20;

/// Compression of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// None.
    #[default]
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// Bytes that tell.
    pub const MAGIC: usize = 4;

    /// That of a stream which begins like this.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        match head {
            // The one method that there is.
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // A frame, or a skippable one, as some writers put in front.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// That of layers of this type; `None` for types that are not known well enough.
    #[must_use]
    pub fn of_layers(media_type: &str) -> Option<Self> {
        match media_type {
            media_type::OCI_LAYER | media_type::DOCKER_LAYER => Some(Self::Plain),
            media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => Some(Self::Gzip),
            media_type::OCI_LAYER_ZSTD | media_type::DOCKER_LAYER_ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The type of Docker's layers with it.
    #[must_use]
    pub fn of_docker(self) -> &'static str {
        match self {
            Self::Plain => media_type::DOCKER_LAYER,
            Self::Gzip => media_type::DOCKER_LAYER_GZIP,
            Self::Zstd => media_type::DOCKER_LAYER_ZSTD,
        }
    }

    /// The type of OCI layers with it.
    #[must_use]
    pub fn of_oci(self) -> &'static str {
        match self {
            Self::Plain => media_type::OCI_LAYER,
            Self::Gzip => media_type::OCI_LAYER_GZIP,
            Self::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }
}

/// The uncompressed stream of `blob`. `admit` is asked about the window of each frame of zstd before the
/// decoder makes it: what it refuses, reading fails with. It is dropped behind the decoder, which keeps what
/// it has for the frames that follow: so a turn lives in it.
///
/// # Errors
/// That of the library.
pub fn decoder<'a>(
    compression: Compression,
    blob: impl BufRead + 'a,
    admit: impl FnMut(u64) -> Result<()> + 'a,
) -> std::io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::Plain => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Compression::Zstd => Box::new(Frames::new(blob, admit)?),
    })
}

/// Lets no window pass that is larger than `most`.
///
/// # Errors
/// `ResourceExhausted`.
pub fn within(window: u64, most: u64) -> Result<()> {
    if window > most {
        return Err(Error::resource_exhausted(format_args!(
            "zstd window of {window} bytes, more than {most}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ALL: [Compression; 3] = [Compression::Plain, Compression::Gzip, Compression::Zstd];

    fn decoded(blob: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut stream = decoder(Compression::of(blob), blob, |_| Ok(())).unwrap();
        stream.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn the_bytes_decide() {
        let text = b"some text that is long enough to be compressed, compressed, compressed";
        for compression in ALL {
            let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
            encoder.write_all(text).unwrap();
            let mut blob = encoder.finish().unwrap();
            assert_eq!(Compression::of(&blob), compression);
            assert_eq!(Compression::of(&blob[..Compression::MAGIC]), compression);
            // Two members are one stream.
            blob.extend(blob.clone());
            assert_eq!(decoded(&blob), [text.as_slice(), text].concat());
        }
        for plain in [&b""[..], b"\x1f\x8b", b"\x1f\x8b\x07\0", b"\x28\xb5\x2f"] {
            assert_eq!(decoded(plain), plain);
        }
    }

    #[test]
    fn a_type_says_what_its_layers_have() {
        for compression in ALL {
            for kind in [compression.of_docker(), compression.of_oci()] {
                assert_eq!(Compression::of_layers(kind), Some(compression), "{kind}");
            }
        }
        for unknown in ["", media_type::OCI_CONFIG, "application/x-tar"] {
            assert_eq!(Compression::of_layers(unknown), None);
        }
    }

    #[test]
    fn no_window_is_larger_than_allowed() {
        within(LARGEST_WINDOW, LARGEST_WINDOW).unwrap();
        let error = within(LARGEST_WINDOW + 1, LARGEST_WINDOW).unwrap_err();
        assert!(error.is(types::Code::ResourceExhausted), "{error}");
    }
}
