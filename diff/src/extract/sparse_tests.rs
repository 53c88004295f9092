//! Sparse files that are not what they should be, as an archive can say it: the writer makes none.

use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use types::Code;

use super::*;
use crate::testing::{archive, file};

/// A file of the archive: how long it is, and where its data goes.
type Sparse<'a> = (u64, &'a [(u64, u64)]);
/// One way of writing it.
type Format = fn(Sparse<'_>, &[u8]) -> Vec<u8>;

fn checksummed(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The old GNU format: numbers of twelve bytes in the header, four pairs of them.
fn gnu((size, map): Sparse<'_>, data: &[u8]) -> Vec<u8> {
    let mut block = archive(&[(file("f"), b"")])[..512].to_vec();
    let number = |block: &mut [u8], at: usize, value: u64| {
        // Binary: eleven octal digits are not enough.
        block[at..at + 4].copy_from_slice(&[0x80, 0, 0, 0]);
        block[at + 4..at + 12].copy_from_slice(&value.to_be_bytes());
    };
    block[156] = b'S';
    block[257..265].copy_from_slice(b"ustar  \0");
    block[345..512].fill(0);
    number(&mut block, 124, data.len() as u64);
    for (index, (offset, len)) in map.iter().enumerate() {
        number(&mut block, 386 + 24 * index, *offset);
        number(&mut block, 398 + 24 * index, *len);
    }
    number(&mut block, 483, size);
    checksummed(&mut block);
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block.extend_from_slice(&[0; 1024]);
    block
}

/// PAX records in front of a file of this name and data.
fn pax(records: &[(&str, String)], name: &str, data: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let len = (rest + 1..).find(|len| len - len.to_string().len() == rest);
        writeln!(all, "{} {key}={value}", len.unwrap()).unwrap();
    }
    let head = archive(&[(file("head"), &all)]);
    let mut head = head[..512 + all.len().next_multiple_of(512)].to_vec();
    head[156] = b'x';
    checksummed(&mut head);
    [head, archive(&[(file(name), data)])].concat()
}

/// PAX 1.0: the map in front of the data.
fn inline((size, map): Sparse<'_>, data: &[u8]) -> Vec<u8> {
    let mut body = format!("{}\n", map.len());
    for (offset, len) in map {
        body.push_str(&format!("{offset}\n{len}\n"));
    }
    let mut body = body.into_bytes();
    body.resize(body.len().next_multiple_of(512), 0);
    body.extend_from_slice(data);
    let records = [
        ("GNU.sparse.major", "1".to_owned()),
        ("GNU.sparse.minor", "0".to_owned()),
        ("GNU.sparse.name", "f".to_owned()),
        ("GNU.sparse.realsize", size.to_string()),
    ];
    pax(&records, "GNUSparseFile.0/f", &body)
}

/// PAX 0.1: the map in one record.
fn record((size, map): Sparse<'_>, data: &[u8]) -> Vec<u8> {
    let numbers = map.iter().flat_map(|(offset, len)| [offset, len]);
    let numbers: Vec<_> = numbers.map(ToString::to_string).collect();
    let records = [
        ("GNU.sparse.size", size.to_string()),
        ("GNU.sparse.numblocks", map.len().to_string()),
        ("GNU.sparse.map", numbers.join(",")),
    ];
    pax(&records, "f", data)
}

const FORMATS: [(&str, Format); 3] = [("gnu", gnu), ("inline", inline), ("record", record)];
/// The ceiling here, within what the file systems of tests hold.
const MOST: u64 = 1 << 40;

/// Unpacks `tar` with a ceiling, and returns what became of the file.
fn unpacked(tar: &[u8], most: u64) -> Result<std::fs::File> {
    let temp = tempfile::tempdir().unwrap();
    let opts = TreeOpts {
        limits: Limits {
            bytes: most,
            ..Limits::default()
        },
        ..TreeOpts::default()
    };
    apply_tar(tar, &Root::open(temp.path()).unwrap(), &opts)?;
    Ok(std::fs::File::open(temp.path().join("f")).unwrap())
}

#[test]
fn a_sparse_file_may_be_as_long_as_the_ceiling_and_stores_its_data() {
    for (name, format) in FORMATS {
        let sparse: Sparse<'_> = (MOST, &[(100, 5), (MOST - 5, 5)]);
        let file = unpacked(&format(sparse, b"helloworld"), MOST).unwrap();
        let facts = file.metadata().unwrap();
        assert_eq!(facts.size(), MOST, "{name}");
        assert!(facts.blocks() * 512 < 1 << 20, "{name}: holes are stored");
        for (at, want) in [(100, b"hello"), (MOST - 5, b"world")] {
            let mut read = [0; 5];
            file.read_exact_at(&mut read, at).unwrap();
            assert_eq!(read, *want, "{name}");
        }
        // Nothing at all.
        let file = unpacked(&format((MOST, &[(MOST, 0)]), b""), MOST).unwrap();
        let facts = file.metadata().unwrap();
        assert_eq!((facts.size(), facts.blocks()), (MOST, 0), "{name}");
    }
}

#[test]
fn a_longer_one_is_refused_however_little_it_stores() {
    for (name, format) in FORMATS {
        for size in [MOST + 1, 1 << 62, (1 << 63) - 1] {
            let maps: [&[(u64, u64)]; 3] = [&[(0, 5)], &[(size - 5, 5)], &[(size, 0)]];
            for map in maps {
                let data: &[u8] = if map[0].1 == 0 { b"" } else { b"hello" };
                let error = unpacked(&format((size, map), data), MOST).unwrap_err();
                assert!(error.is(Code::ResourceExhausted), "{name} {size}: {error}");
            }
            if size >= 1 << 62 {
                // Without a ceiling it is the file system that has one.
                let error = unpacked(&format((size, &[(size, 0)]), b""), u64::MAX).unwrap_err();
                assert!(error.is(Code::InvalidArgument), "{name} {size}: {error}");
            }
        }
    }
}

#[test]
fn lengths_and_maps_that_do_not_add_up_are_refused() {
    let bad: [Sparse<'_>; 8] = [
        (1 << 63, &[(0, 5)]),
        (u64::MAX, &[(0, 5)]),
        // Beyond its end, or that of all numbers.
        (100, &[(96, 5)]),
        (100, &[(1 << 62, 5)]),
        (100, &[((1 << 63) - 1, 5)]),
        (100, &[(u64::MAX - 4, 5)]),
        // Data twice, and backwards.
        (100, &[(0, 3), (2, 2)]),
        (100, &[(50, 3), (0, 2)]),
    ];
    for (name, format) in FORMATS {
        for sparse in bad {
            let done = unpacked(&format(sparse, b"hello"), u64::MAX).map(drop);
            let error = done.unwrap_err();
            assert!(
                error.is(Code::InvalidArgument),
                "{name} {sparse:?}: {error}"
            );
        }
        // More data is said to be there than there is, and less.
        for len in [4, 6, 1 << 62] {
            let tar = format((1 << 62, &[(0, len)]), b"hello");
            let error = unpacked(&tar, u64::MAX).map(drop).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{name} {len}: {error}");
        }
    }
}

#[test]
fn a_byte_here_and_there_counts_for_the_block_that_it_takes() {
    const BLOCKS: u64 = 1000;
    let map: Vec<_> = (0..BLOCKS).map(|n| (n * 4096, 1)).collect();
    let tar = inline((BLOCKS * 4096, &map), &vec![b'x'; map.len()]);
    let with = |stored| -> Result<u64> {
        let temp = tempfile::tempdir().unwrap();
        let limits = Limits {
            stored,
            ..Limits::default()
        };
        let opts = TreeOpts {
            limits,
            ..TreeOpts::default()
        };
        apply_tar(&tar[..], &Root::open(temp.path()).unwrap(), &opts)?;
        Ok(std::fs::metadata(temp.path().join("f")).unwrap().blocks() * 512)
    };
    let taken = with(BLOCKS * 4096).unwrap();
    assert!(taken >= BLOCKS * 4096, "{taken} bytes are stored");
    let error = with(BLOCKS * 4096 - 1).unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
}
