//! Archives by hand: dialects, ends, bombs.

use super::*;
use crate::tar::Writer;

/// A header block with these fields, checksum right.
pub(crate) fn raw(
    name: &[u8],
    flag: u8,
    size: u64,
    edit: impl Fn(&mut [u8; BLOCK]),
) -> [u8; BLOCK] {
    let mut block = [0_u8; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar  \0");
    edit(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn all(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok(entries)
}

fn refused(bytes: &[u8]) {
    let error = all(bytes).unwrap_err();
    assert!(error.is(types::Code::InvalidArgument), "{error}");
}

#[test]
fn gnu_long_names_come_before_pax_names() {
    let long = vec![b'n'; 300];
    let mut bytes = raw(b"././@LongLink", b'L', 301, |_| {}).to_vec();
    bytes.extend(padded(&[long.as_slice(), b"\0"].concat()));
    bytes.extend(raw(b"x", b'x', 12, |_| {}));
    bytes.extend(padded(b"12 path=pax\n"));
    bytes.extend(raw(b"short", b'0', 0, |_| {}));
    assert_eq!(all(&bytes).unwrap()[0].name, long);
}

#[test]
fn pax_size_counts_and_not_the_headers() {
    let mut bytes = raw(b"x", b'x', 9, |_| {}).to_vec();
    bytes.extend(padded(b"9 size=5\n"));
    bytes.extend(raw(b"f", b'0', 0, |_| {}));
    bytes.extend(padded(b"hello"));
    bytes.extend(raw(b"g", b'0', 0, |_| {}));
    let entries = all(&bytes).unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (entries[0].size, entries[1].name.as_slice()),
        (5, &b"g"[..])
    );
}

#[test]
fn ends_are_clean_or_told() {
    let file = raw(b"f", b'0', 3, |_| {}).to_vec();
    let data = [file.as_slice(), &padded(b"abc")].concat();
    assert!(all(b"").unwrap().is_empty());
    assert_eq!(all(&data).unwrap().len(), 1);
    assert_eq!(
        all(&[data.as_slice(), &[0; 512]].concat()).unwrap().len(),
        1
    );
    let junk_after_end = [data.as_slice(), &[0; 1024], b"junk"].concat();
    assert_eq!(all(&junk_after_end).unwrap().len(), 1);
    // The padding of the last entry may be missing.
    assert_eq!(all(&data[..515]).unwrap().len(), 1);
    for cut in [1, 511, 512, 514] {
        refused(&data[..cut]);
    }
    refused(&[data.as_slice(), &[0; 512], &file].concat());
}

#[test]
fn special_records_are_bounded() {
    for flag in [b'x', b'g', b'L', b'K'] {
        refused(&raw(b"x", flag, MAX_SPECIAL + 1, |_| {}));
    }
    // A chain of extension blocks without an end.
    let mut sparse = raw(b"s", b'S', 0, |block| block[482] = 1).to_vec();
    let mut extension = [b'0'; BLOCK];
    extension[504] = 1;
    for _ in 0..5000 {
        sparse.extend(extension);
    }
    refused(&sparse);
    // PAX 1.0 with a count that the data does not hold.
    let records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.realsize=9\n";
    let mut bytes = [
        &raw(b"x", b'x', records.len() as u64, |_| {})[..],
        &padded(records),
    ]
    .concat();
    bytes.extend(raw(b"f", b'0', 512, |_| {}));
    bytes.extend(padded(b"9999999999\n"));
    refused(&bytes);
}

#[test]
fn pax_sparse_files_are_understood() {
    let records: &[u8] = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n\
        24 GNU.sparse.name=real\n29 GNU.sparse.realsize=10000\n";
    let mut bytes = [
        &raw(b"x", b'x', records.len() as u64, |_| {})[..],
        &padded(records),
    ]
    .concat();
    let map = padded(b"2\n0\n3\n9000\n2\n");
    bytes.extend(raw(
        b"GNUSparseFile.0/real",
        b'0',
        map.len() as u64 + 5,
        |_| {},
    ));
    bytes.extend(map);
    bytes.extend(padded(b"abcde"));
    let mut reader = Reader::new(&bytes[..]);
    let entry = reader.next().unwrap().unwrap();
    assert_eq!((entry.name.as_slice(), entry.size), (&b"real"[..], 10_000));
    let want = [
        Extent { offset: 0, len: 3 },
        Extent {
            offset: 9000,
            len: 2,
        },
    ];
    assert_eq!(extents(&entry), want);
    assert_eq!(reader.fill().unwrap(), b"abcde");
    assert!(reader.next().unwrap().is_none());
}

#[test]
fn old_types_are_mapped_and_unknown_ones_refused() {
    let entries = all(&raw(b"old/", 0, 0, |_| {})).unwrap();
    assert_eq!(entries[0].kind, Kind::Directory);
    // A hard link with a size has no data.
    let bytes = [raw(b"l", b'1', 4096, |_| {}), raw(b"f", b'0', 0, |_| {})].concat();
    assert_eq!(all(&bytes).unwrap().len(), 2);
    for flag in [b'M', b'V', b'D', b'Z', 0xff] {
        refused(&raw(b"x", flag, 0, |_| {}));
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    refused(&raw(b"f", b'0', 0, |b| b[124..136].fill(0xff)));
    refused(&raw(b"f", b'0', 0, |b| {
        b[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }));
    refused(&raw(b"d", b'3', 0, |b| {
        b[329..337].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]);
    }));
    refused(&raw(b"f", b'0', 0, |b| {
        b[124..136].copy_from_slice(&[
            0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ]);
    }));
}

#[test]
fn random_bytes_and_damaged_archives_never_panic() {
    use proptest::prelude::*;
    let mut writer = Writer::new(Vec::new());
    for entry in all(&raw(b"f", b'0', 0, |_| {})).unwrap() {
        writer
            .entry(&Entry {
                name: vec![b'n'; 200],
                ..entry
            })
            .unwrap();
    }
    let good = writer.finish().unwrap();
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(edits in proptest::collection::vec((0..good.len(), any::<u8>()), 0..20),
                        cut in 0..=good.len())| {
        let mut bytes = good.clone();
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        if let Err(error) = all(&bytes) {
            prop_assert!(error.is(types::Code::InvalidArgument), "{}", error);
        }
    });
}
