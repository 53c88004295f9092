//! Hashing into a [`Digest`] with any of the known algorithms.

use sha2::Digest as _;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use types::{Algorithm, Digest, Result};

/// A running hash.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// SHA-256.
    Sha256(sha2::Sha256),
    /// SHA-384.
    Sha384(sha2::Sha384),
    /// SHA-512.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// The hash of nothing yet.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha384 => Self::Sha384(sha2::Sha384::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    /// The algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha384(_) => Algorithm::Sha384,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Takes in more data.
    pub fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(data),
            Self::Sha384(hash) => hash.update(data),
            Self::Sha512(hash) => hash.update(data),
        }
    }

    /// The digest of all that was taken in.
    ///
    /// # Errors
    /// None in practice: the length always fits.
    pub fn finish(self) -> Result<Digest> {
        match self {
            Self::Sha256(hash) => Digest::from_bytes(Algorithm::Sha256, &hash.finalize()),
            Self::Sha384(hash) => Digest::from_bytes(Algorithm::Sha384, &hash.finalize()),
            Self::Sha512(hash) => Digest::from_bytes(Algorithm::Sha512, &hash.finalize()),
        }
    }

    /// The digest so far; hashing can go on.
    ///
    /// # Errors
    /// As [`Hasher::finish`].
    pub fn current(&self) -> Result<Digest> {
        self.clone().finish()
    }

    /// How far it is, for [`Hasher::restore`] in another process.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        match self {
            Self::Sha256(hash) => hash.serialize().to_vec(),
            Self::Sha384(hash) => hash.serialize().to_vec(),
            Self::Sha512(hash) => hash.serialize().to_vec(),
        }
    }

    /// One that goes on from what [`Hasher::save`] gave; None for what cannot be such.
    #[must_use]
    pub fn restore(algorithm: Algorithm, saved: &[u8]) -> Option<Self> {
        Some(match algorithm {
            Algorithm::Sha256 => Self::Sha256(restore(saved)?),
            Algorithm::Sha384 => Self::Sha384(restore(saved)?),
            Algorithm::Sha512 => Self::Sha512(restore(saved)?),
        })
    }

    /// The sha256 digest of `data`.
    ///
    /// # Errors
    /// As [`Hasher::finish`].
    pub fn digest(data: &[u8]) -> Result<Digest> {
        let mut hasher = Self::new(Algorithm::Sha256);
        hasher.update(data);
        hasher.finish()
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new(Algorithm::Sha256)
    }
}

fn restore<T: SerializableState>(saved: &[u8]) -> Option<T> {
    let saved = SerializedState::<T>::try_from(saved).ok()?;
    T::deserialize(&saved).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        for (algorithm, want) in [
            (
                Algorithm::Sha256,
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                Algorithm::Sha384,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                Algorithm::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
        ] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"a");
            assert_ne!(hasher.current().unwrap().hex(), want);
            hasher.update(b"bc");
            assert_eq!(hasher.current().unwrap().hex(), want);
            assert_eq!(hasher.algorithm(), algorithm);
            assert_eq!(hasher.finish().unwrap().hex(), want);
        }
    }

    #[test]
    fn one_that_was_saved_anywhere_goes_on_as_if_it_had_not_been() {
        let data: Vec<u8> = (0..=255).cycle().take(300).collect();
        for algorithm in Algorithm::ALL {
            let mut whole = Hasher::new(algorithm);
            whole.update(&data);
            let whole = whole.finish().unwrap();
            for cut in 0..data.len() {
                let mut first = Hasher::new(algorithm);
                first.update(&data[..cut]);
                let saved = first.save();
                let mut second = Hasher::restore(algorithm, &saved).unwrap();
                second.update(&data[cut..]);
                assert_eq!(second.finish().unwrap(), whole, "at {cut}");
                assert!(Hasher::restore(algorithm, &saved[1..]).is_none());
            }
        }
        let other = Hasher::new(Algorithm::Sha256).save();
        assert!(Hasher::restore(Algorithm::Sha512, &other).is_none());
    }
}
