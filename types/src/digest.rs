//! Content digests: algorithm and hex, validated.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Hash algorithm of a digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, the default.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// Name as in `sha256:…`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the digest in hex digits.
    #[must_use]
    pub const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha384 => 96,
            Self::Sha512 => 128,
        }
    }
}

/// A valid digest, `algorithm:lower-case hex` (OCI image-spec, descriptor.md).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    text: Box<str>,
}

impl Digest {
    /// A digest from raw hash bytes.
    ///
    /// # Errors
    /// `InvalidArgument` when the length does not fit the algorithm.
    pub fn from_bytes(algorithm: Algorithm, hash: &[u8]) -> Result<Self> {
        use fmt::Write as _;
        let mut text = String::with_capacity(8 + hash.len() * 2);
        text.push_str(algorithm.name());
        text.push(':');
        for byte in hash {
            write!(text, "{byte:02x}").map_err(|_| Error::internal("format digest"))?;
        }
        text.parse()
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hex part.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid_argument(format_args!("{why}: {text:?}"));
        let (name, hex) = text
            .split_once(':')
            .ok_or_else(|| bad("invalid checksum digest format"))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|a| a.name() == name)
            .ok_or_else(|| bad("unsupported digest algorithm"))?;
        if hex.len() != algorithm.hex_len() {
            return Err(bad("invalid checksum digest length"));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad("invalid checksum digest format"));
        }
        Ok(Self {
            algorithm,
            text: text.into(),
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_algorithms_with_lower_case_hex_of_the_right_length_parse() {
        let good = format!("sha256:{}", "a".repeat(64));
        let digest: Digest = good.parse().unwrap();
        assert_eq!((digest.as_str(), digest.hex().len()), (good.as_str(), 64));
        for bad in [
            String::new(),
            "sha256".into(),
            "sha256:".into(),
            "sha256:../../etc".into(),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}", "a".repeat(63)),
            format!("sha256:{}/", "a".repeat(63)),
            format!("md5:{}", "a".repeat(32)),
            format!(" sha256:{}", "a".repeat(64)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn raw_bytes_become_hex() {
        let digest = Digest::from_bytes(Algorithm::Sha512, &[0xab; 64]).unwrap();
        assert_eq!(digest.hex(), "ab".repeat(64));
        Digest::from_bytes(Algorithm::Sha256, &[0; 20]).unwrap_err();
    }
}
