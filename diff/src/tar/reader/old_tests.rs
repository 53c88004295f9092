//! Headers that no writer of today makes: prefixes where times stand, and records without an end.

use super::tests::raw;
use super::*;

fn all(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok(entries)
}

/// What is read of a header of GNU's format with these bytes where times stand.
fn with_times(times: &[u8]) -> Result<(Vec<u8>, Option<i64>)> {
    let block = raw(b"name", b'0', 0, |block| {
        block[345..345 + times.len()].copy_from_slice(times);
    });
    let entry = all(&block)?.swap_remove(0);
    Ok((entry.name, entry.atime.map(|time| time.seconds)))
}

#[test]
fn a_prefix_that_stands_where_times_do_is_one() {
    let long = "d/".repeat(77);
    let prefixed = |prefix: &str| [prefix.as_bytes(), b"/name"].concat();
    for (times, name, atime) in [
        (&b""[..], b"name".to_vec(), None),
        (b"00000000012\x0000000000013\0", b"name".to_vec(), Some(10)),
        // No time of access, and a time of change.
        (
            b"\0\0\0\0\0\0\0\0\0\0\0\x0000000000013\0",
            b"name".to_vec(),
            None,
        ),
        (b"usr/lib", prefixed("usr/lib"), None),
        (long.as_bytes(), prefixed(&long), None),
        // The first twelve could be a time, what follows could not.
        (b"777777777777/lib", prefixed("777777777777/lib"), None),
        // No text: neither a time nor a prefix.
        (b"\x7f\xe9\xff", b"name".to_vec(), None),
    ] {
        let shown = String::from_utf8_lossy(times);
        assert_eq!(with_times(times).unwrap(), (name, atime), "{shown}");
    }
}

#[test]
fn a_prefix_and_a_sparse_map_do_not_fit_into_one_header() {
    let sparse = raw(b"s", b'S', 0, |block| {
        block[345..348].copy_from_slice(b"usr");
    });
    let error = all(&sparse).unwrap_err();
    assert!(error.is(types::Code::InvalidArgument), "{error}");
}

#[test]
fn records_before_an_entry_are_counted() {
    let file = raw(b"f", b'0', 0, |_| {});
    for flag in [b'x', b'g', b'L', b'K'] {
        let record = raw(b"r", flag, 0, |_| {});
        let mut bytes = record.repeat(MAX_SPECIALS);
        bytes.extend(file);
        // The count begins anew with each entry.
        bytes.extend(bytes.clone());
        assert_eq!(all(&bytes).unwrap().len(), 2);
        let mut endless = record.repeat(MAX_SPECIALS + 1);
        endless.extend(file);
        let error = all(&endless).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
    }
}
