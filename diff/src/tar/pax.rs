//! PAX records: `length key=value\n`, and what of them we heed.
//!
//! Invariant: a record that does not add up fails the archive; the last record of a key wins; an empty
//! value takes the key away.

use std::collections::HashSet;

use types::Result;

use super::header::{id, size};
use super::{Extent, Time, damaged};

/// Prefix of extended attributes.
pub(super) const XATTR: &[u8] = b"SCHILY.xattr.";
/// The same with values in base64, which only some programs heed.
const FOREIGN_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

/// The records of one extended header that we heed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) atime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// There are extended attributes that are not heeded.
    pub(super) has_foreign_xattrs: bool,
    pub(super) sparse: Sparse,
}

/// `GNU.sparse.*`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) blocks: Option<u64>,
    /// Numbers of the map, in order (0.0 and 0.1).
    pub(super) map: Vec<u64>,
}

impl Records {
    /// Parses a header's data.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self> {
        let mut records = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            records.take(key, value)?;
            data = rest;
        }
        records.keep_last_attributes();
        Ok(records)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let text = || -> Result<Option<Vec<u8>>> {
            if value.contains(&0) {
                return Err(damaged("NUL byte in a name"));
            }
            Ok((!value.is_empty()).then(|| value.to_vec()))
        };
        let optional = !value.is_empty();
        match key {
            b"path" => self.path = text()?,
            b"linkpath" => self.link = text()?,
            b"size" => self.size = optional.then(|| decimal(value)).transpose()?,
            b"uid" => self.uid = optional.then(|| id(signed(value)?)).transpose()?,
            b"gid" => self.gid = optional.then(|| id(signed(value)?)).transpose()?,
            b"mtime" => self.mtime = optional.then(|| time(value)).transpose()?,
            b"atime" => self.atime = optional.then(|| time(value)).transpose()?,
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = text()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(decimal(value)?);
            }
            b"GNU.sparse.numblocks" => self.sparse.blocks = Some(decimal(value)?),
            b"GNU.sparse.offset" => {
                if !self.sparse.map.len().is_multiple_of(2) {
                    return Err(damaged("sparse map out of order"));
                }
                self.sparse.map.push(decimal(value)?);
            }
            b"GNU.sparse.numbytes" => {
                if self.sparse.map.len().is_multiple_of(2) {
                    return Err(damaged("sparse map out of order"));
                }
                self.sparse.map.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                let parts = value.split(|b| *b == b',').filter(|part| !part.is_empty());
                self.sparse.map = parts.map(decimal).collect::<Result<_>>()?;
            }
            _ => self.attribute(key, value),
        }
        Ok(())
    }

    fn attribute(&mut self, key: &[u8], value: &[u8]) {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattrs.push((name.to_vec(), value.to_vec()));
        } else if key.starts_with(FOREIGN_XATTR) {
            self.has_foreign_xattrs = true;
        }
    }

    /// Of attributes that come twice the last, in one pass: a header can hold fifty thousand.
    fn keep_last_attributes(&mut self) {
        let mut seen = HashSet::new();
        self.xattrs.reverse();
        self.xattrs.retain(|(name, _)| seen.insert(name.clone()));
        self.xattrs.reverse();
    }
}

/// True for records that say nothing of any entry.
pub(super) fn is_comment(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        match record(data) {
            Ok((b"comment", _, rest)) => data = rest,
            _ => return false,
        }
    }
    true
}

/// Splits the first record off: key, value, rest.
fn record(data: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let bad = || damaged("invalid PAX record");
    // A length has few digits: do not search the whole megabyte for the space.
    let head = &data[..data.len().min(20)];
    let space = head.iter().position(|b| *b == b' ').ok_or_else(bad)?;
    let len = usize::try_from(decimal(&data[..space])?).map_err(|_| bad())?;
    if len <= space + 1 || len > data.len() || data[len - 1] != b'\n' {
        return Err(bad());
    }
    let body = &data[space + 1..len - 1];
    let equals = body.iter().position(|b| *b == b'=').ok_or_else(bad)?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(bad());
    }
    Ok((key, value, &data[len..]))
}

/// A non-negative decimal number that fits 63 bits.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn decimal(text: &[u8]) -> Result<u64> {
    size(signed(text)?)
}

fn signed(text: &[u8]) -> Result<i64> {
    let bad = || damaged("invalid number in PAX record");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    if text.starts_with('+') {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

/// `[-]seconds[.fraction]`.
fn time(text: &[u8]) -> Result<Time> {
    let bad = || damaged("invalid time in PAX record");
    let mut parts = text.splitn(2, |b| *b == b'.');
    let whole = parts.next().unwrap_or_default();
    let seconds = signed(whole)?;
    let mut nanos = 0_u32;
    let mut scale = 100_000_000;
    for digit in parts.next().unwrap_or_default() {
        if !digit.is_ascii_digit() {
            return Err(bad());
        }
        nanos += u32::from(digit - b'0') * scale;
        scale /= 10;
    }
    if whole.starts_with(b"-") && nanos > 0 {
        let seconds = seconds.checked_sub(1).ok_or_else(bad)?;
        return Ok(Time {
            seconds,
            nanos: 1_000_000_000 - nanos,
        });
    }
    Ok(Time { seconds, nanos })
}

/// Checks a sparse map against the file's size and the data that follows.
///
/// # Errors
/// `InvalidArgument` unless the runs ascend, lie in the file and sum up to `data`.
pub(super) fn sparse_map(pairs: &[(u64, u64)], real: u64, data: u64) -> Result<Vec<Extent>> {
    let bad = || damaged("invalid sparse map");
    let (mut end, mut sum) = (0_u64, 0_u64);
    let mut map = Vec::with_capacity(pairs.len());
    for (offset, len) in pairs.iter().copied() {
        if offset < end {
            return Err(bad());
        }
        end = offset
            .checked_add(len)
            .filter(|end| *end <= real)
            .ok_or_else(bad)?;
        sum = sum.checked_add(len).ok_or_else(bad)?;
        if len > 0 {
            map.push(Extent { offset, len });
        }
    }
    if sum != data {
        return Err(bad());
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_the_last_wins() {
        let data = b"12 path=abc\n12 path=abd\n9 size=7\n28 mtime=1350244992.0239605\n\
            22 SCHILY.xattr.a=x=y\n7 uid=\n";
        let records = Records::parse(data).unwrap();
        assert_eq!(records.path.unwrap(), b"abd");
        assert_eq!(records.size, Some(7));
        assert_eq!(records.uid, None);
        assert_eq!(
            records.mtime,
            Some(Time {
                seconds: 1_350_244_992,
                nanos: 23_960_500
            })
        );
        assert_eq!(records.xattrs, [(b"a".to_vec(), b"x=y".to_vec())]);
    }

    #[test]
    fn a_header_full_of_attributes_is_read_in_one_pass() {
        let mut data = Vec::new();
        for _ in 0..2 {
            for number in 10_000..70_000 {
                data.extend_from_slice(format!("26 SCHILY.xattr.u.{number}=v\n").as_bytes());
            }
        }
        data.extend_from_slice(b"26 SCHILY.xattr.u.10000=w\n");
        let started = std::time::Instant::now();
        let records = Records::parse(&data).unwrap();
        assert_eq!(records.xattrs.len(), 60_000);
        assert_eq!(
            records.xattrs.last().unwrap(),
            &(b"u.10000".to_vec(), b"w".to_vec())
        );
        // One comparison with each other took tens of seconds for a fourth of them.
        assert!(started.elapsed().as_secs() < 30);
    }

    #[test]
    fn records_that_do_not_add_up_are_refused() {
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"6 a b\n\n",
            b"5 =b\n",
            b"11 size=-1\n",
            b"25 size=99999999999999999999\n",
            b"12 path=a\0b\n",
            b"21 uid=99999999999999\n",
            b"99999999999999999999999 a=b\n",
        ] {
            Records::parse(bad).unwrap_err();
        }
    }

    #[test]
    fn times_before_1970_have_positive_nanoseconds() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("-1", -1, 0),
            ("-1.5", -2, 500_000_000),
            ("-0.5", -1, 500_000_000),
            ("1.1234567899", 1, 123_456_789),
            ("1.", 1, 0),
        ] {
            assert_eq!(
                time(text.as_bytes()).unwrap(),
                Time { seconds, nanos },
                "{text}"
            );
        }
        time(b"1.x").unwrap_err();
        time(b"").unwrap_err();
    }

    #[test]
    fn sparse_maps_ascend_and_sum_up() {
        let map = sparse_map(&[(0, 2), (10, 3), (20, 0)], 20, 5).unwrap();
        assert_eq!(map.len(), 2);
        for (pairs, real, data) in [
            (&[(0, 2), (1, 2)][..], 20, 4),
            (&[(0, 30)], 20, 30),
            (&[(0, 2)], 20, 3),
            (&[(u64::MAX, 2)], u64::MAX, 2),
        ] {
            sparse_map(pairs, real, data).unwrap_err();
        }
    }
}
