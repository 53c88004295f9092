//! One 512-byte header block: numbers, texts, the four dialects.
//!
//! Invariant: nothing here believes a field; out of range is an error, not a wrap.

use types::Result;

use super::{BLOCK, Time, damaged};

/// A header block with a good checksum.
#[derive(Debug)]
pub(super) struct Block<'a>(&'a [u8; BLOCK]);

/// A sparse map so far, whether more blocks follow, and the size of the file.
pub(super) type GnuSparse = (Vec<(u64, u64)>, bool, u64);

/// Which dialect wrote the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Block<'a> {
    /// Checks the checksum; `None` for a block of zeroes.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Option<Self>> {
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let stored = number(&block[148..156])?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored != unsigned && stored != signed {
            return Err(damaged("invalid tar header"));
        }
        Ok(Some(Self(block)))
    }

    fn bytes(&self, at: usize, len: usize) -> &'a [u8] {
        &self.0[at..at + len]
    }

    fn text(&self, at: usize, len: usize) -> &'a [u8] {
        c_text(self.bytes(at, len))
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.bytes(257, 8) {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if self.bytes(508, 4) == b"tar\0" {
                    Dialect::Star
                } else {
                    Dialect::Ustar
                }
            }
            _ => Dialect::V7,
        }
    }

    pub(super) fn flag(&self) -> u8 {
        self.0[156]
    }

    /// Name with the prefix of the dialects that have one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = match self.dialect() {
            Dialect::Ustar => self.text(345, 155),
            Dialect::Star => self.text(345, 131),
            Dialect::Gnu if self.has_prefix_over_times() => {
                let text = self.text(345, 155);
                if text.is_ascii() { text } else { &[] }
            }
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    /// Parity: archive/tar: before Go 1.8 the writer put a prefix into headers of GNU's format, where times
    /// stand. One that reads as two times cannot be told from them.
    fn has_prefix_over_times(&self) -> bool {
        let is_time = |at| {
            let field = self.bytes(at, 12);
            field[0] == 0 || number(field).is_ok()
        };
        self.dialect() == Dialect::Gnu && !(is_time(345) && is_time(357))
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157, 100).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32> {
        let mode = number(self.bytes(100, 8))? & 0o7777;
        u32::try_from(mode).map_err(|_| damaged("mode out of range"))
    }

    pub(super) fn uid(&self) -> Result<u32> {
        id(number(self.bytes(108, 8))?)
    }

    pub(super) fn gid(&self) -> Result<u32> {
        id(number(self.bytes(116, 8))?)
    }

    pub(super) fn size(&self) -> Result<u64> {
        size(number(self.bytes(124, 12))?)
    }

    pub(super) fn mtime(&self) -> Result<Time> {
        Ok(Time {
            seconds: number(self.bytes(136, 12))?,
            nanos: 0,
        })
    }

    pub(super) fn atime(&self) -> Result<Option<Time>> {
        let at = match self.dialect() {
            Dialect::Gnu => 345,
            Dialect::Star => 476,
            Dialect::V7 | Dialect::Ustar => return Ok(None),
        };
        let field = self.bytes(at, 12);
        if field[0] == 0 || self.has_prefix_over_times() {
            return Ok(None);
        }
        Ok(Some(Time {
            seconds: number(field)?,
            nanos: 0,
        }))
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(u32, u32)> {
        if self.dialect() == Dialect::V7 {
            return Ok((0, 0));
        }
        let part = |at| -> Result<u32> {
            u32::try_from(number(self.bytes(at, 8))?)
                .map_err(|_| damaged("device number out of range"))
        };
        Ok((part(329)?, part(337)?))
    }

    /// The sparse map of an old GNU header: entries, whether more blocks follow, the real size.
    pub(super) fn gnu_sparse(&self) -> Result<GnuSparse> {
        if self.has_prefix_over_times() {
            return Err(damaged("sparse entry without a GNU header"));
        }
        let entries = sparse_entries(self.bytes(386, 96))?;
        let real = size(number(self.bytes(483, 12))?)?;
        Ok((entries, self.0[482] != 0, real))
    }
}

/// Offset and length pairs of 12 bytes each, up to the first empty one.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn sparse_entries(bytes: &[u8]) -> Result<Vec<(u64, u64)>> {
    let mut entries = Vec::new();
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        entries.push((size(number(&pair[..12])?)?, size(number(&pair[12..])?)?));
    }
    Ok(entries)
}

/// Bytes up to the first NUL.
pub(super) fn c_text(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// A user or group id.
///
/// # Errors
/// `InvalidArgument` for what the kernel has no room for (`u32::MAX` means "do not change" there).
pub(super) fn id(value: i64) -> Result<u32> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(damaged(format_args!("owner {value} out of range"))),
    }
}

/// A length.
///
/// # Errors
/// `InvalidArgument` for a negative one.
pub(super) fn size(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| damaged(format_args!("negative size {value}")))
}

/// A numeric field: octal text, or base 256 when the first bit is set.
fn number(field: &[u8]) -> Result<i64> {
    let bad = || damaged("invalid number in tar header");
    if field[0] & 0x80 != 0 {
        let invert: u8 = if field[0] & 0x40 == 0 { 0 } else { 0xff };
        let mut value = 0_u64;
        for (at, byte) in field.iter().enumerate() {
            let byte = byte ^ invert;
            if value >> 56 != 0 {
                return Err(bad());
            }
            value = (value << 8) | u64::from(if at == 0 { byte & 0x7f } else { byte });
        }
        let value = i64::try_from(value).map_err(|_| bad())?;
        return Ok(if invert == 0 { value } else { !value });
    }
    let text = c_text(field);
    let digits = text.trim_ascii();
    let mut value = 0_i64;
    for digit in digits {
        if !matches!(digit, b'0'..=b'7') {
            return Err(bad());
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(digit - b'0')))
            .ok_or_else(bad)?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let table: &[(&[u8], i64)] = &[
            (b"0000644\0", 0o644),
            (b"    644 ", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"77777777", 0o77_777_777),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], 256),
            (&[0xff; 12], -1),
            (
                &[
                    0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                ],
                i64::MAX,
            ),
        ];
        for (field, want) in table {
            assert_eq!(number(field).unwrap(), *want, "{field:?}");
        }
        for bad in [
            &b"8       "[..],
            b"0x10    ",
            b"-1      ",
            &[0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ] {
            number(bad).unwrap_err();
        }
    }

    #[test]
    fn ids_and_sizes_stay_in_range() {
        assert_eq!(id(4_294_967_294).unwrap(), u32::MAX - 1);
        id(-1).unwrap_err();
        id(4_294_967_295).unwrap_err();
        size(-1).unwrap_err();
    }

    #[test]
    fn a_wrong_checksum_is_refused() {
        let mut block = [0; BLOCK];
        assert!(Block::parse(&block).unwrap().is_none());
        block[0] = b'a';
        Block::parse(&block).unwrap_err();
        block[148..154].copy_from_slice(b"000541");
        // 8 spaces and 'a'.
        assert_eq!(Block::parse(&block).unwrap().unwrap().name(), b"a");
    }
}
