//! The bytes of records: little, ordered by nothing, versioned by their first byte.
//!
//! Invariant: what [`Encoder`] wrote, [`Decoder`] reads back; damaged bytes are `DataLoss`, never a
//! panic and never an allocation beyond the input. Lengths and numbers are LEB128 varints.

use std::time::{Duration, SystemTime};

use types::{Any, Error, Labels, Result};

/// Writes one record.
pub(crate) struct Encoder(Vec<u8>);

impl Encoder {
    /// A record of this version.
    pub(crate) fn new(version: u8) -> Self {
        Self(vec![version])
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    /// What was written so far.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length of what was written so far.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn number(&mut self, mut value: u64) {
        loop {
            let [low, ..] = (value & 0x7f).to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return;
            }
            self.0.push(low | 0x80);
        }
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// Seconds as zig-zag (times before 1970 exist in reproducible images), then nanoseconds.
    pub(crate) fn time(&mut self, value: SystemTime) {
        let (before, distance) = match value.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => (0, after),
            Err(e) => (1, e.duration()),
        };
        self.number(distance.as_secs() << 1 | before);
        self.number(distance.subsec_nanos().into());
    }

    pub(crate) fn labels(&mut self, labels: &Labels) {
        self.number(labels.len() as u64);
        for (key, value) in labels.iter() {
            self.text(key);
            self.text(value);
        }
    }

    /// Presence, then the value.
    pub(crate) fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.number(value.is_some().into());
        if let Some(value) = value {
            put(self, value);
        }
    }

    pub(crate) fn any(&mut self, value: &Any) {
        self.text(&value.type_url);
        self.bytes(&value.value);
    }
}

/// Reads one record.
pub(crate) struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    /// The record's version and its reader.
    pub(crate) fn new(record: &'a [u8]) -> Result<(u8, Self)> {
        let (version, rest) = record.split_first().ok_or_else(damaged)?;
        Ok((*version, Self(rest)))
    }

    /// True when all was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn number(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or_else(damaged)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = usize::try_from(self.number()?).map_err(|_| damaged())?;
        let (value, rest) = self.0.split_at_checked(len).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(value)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| damaged())
    }

    pub(crate) fn time(&mut self) -> Result<SystemTime> {
        let seconds = self.number()?;
        let nanos = u32::try_from(self.number()?).map_err(|_| damaged())?;
        if nanos >= 1_000_000_000 {
            return Err(damaged());
        }
        let distance = Duration::new(seconds >> 1, nanos);
        let value = if seconds & 1 == 0 {
            SystemTime::UNIX_EPOCH.checked_add(distance)
        } else {
            SystemTime::UNIX_EPOCH.checked_sub(distance)
        };
        value.ok_or_else(damaged)
    }

    pub(crate) fn labels(&mut self) -> Result<Labels> {
        let mut labels = Labels::new();
        for _ in 0..self.number()? {
            let key = self.text()?.to_owned();
            labels.insert(key, self.text()?.to_owned());
        }
        Ok(labels)
    }

    /// A count, then so many values.
    pub(crate) fn list<T>(&mut self, get: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for _ in 0..self.number()? {
            all.push(get(self)?);
        }
        Ok(all)
    }

    pub(crate) fn option<T>(
        &mut self,
        get: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.number()? {
            0 => Ok(None),
            1 => get(self).map(Some),
            _ => Err(damaged()),
        }
    }

    pub(crate) fn any(&mut self) -> Result<Any> {
        Ok(Any {
            type_url: self.text()?.to_owned(),
            value: self.bytes()?.to_vec(),
        })
    }
}

/// A record that no version of ours wrote.
pub(crate) fn damaged() -> Error {
    Error::data_loss("metadata record is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_read_back(
            numbers in prop::collection::vec(any::<u64>(), 0..5),
            texts in prop::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
            seconds in -100_000_000_000_i64..100_000_000_000,
            nanos in 0_u32..1_000_000_000,
            bytes in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
        ) {
            let whole = Duration::new(seconds.unsigned_abs(), nanos);
            let time = if seconds < 0 {
                SystemTime::UNIX_EPOCH - whole
            } else {
                SystemTime::UNIX_EPOCH + whole
            };
            let labels: Labels = texts.into_iter().collect();
            let mut e = Encoder::new(9);
            for n in &numbers {
                e.number(*n);
            }
            e.labels(&labels);
            e.time(time);
            e.option(bytes.as_ref(), |e, b| e.bytes(b));
            let record = e.finish();
            let (version, mut d) = Decoder::new(&record).unwrap();
            prop_assert_eq!(version, 9);
            for n in &numbers {
                prop_assert_eq!(d.number().unwrap(), *n);
            }
            prop_assert_eq!(d.labels().unwrap(), labels);
            prop_assert_eq!(d.time().unwrap(), time);
            prop_assert_eq!(d.option(|d| Ok(d.bytes()?.to_vec())).unwrap(), bytes);
            prop_assert!(d.0.is_empty());
        }

        #[test]
        fn damaged_bytes_are_errors_not_panics(record in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((_, mut d)) = Decoder::new(&record) {
                drop(d.labels());
                drop(d.time());
                drop(d.any());
                drop(d.option(Decoder::number));
            }
        }
    }
}
