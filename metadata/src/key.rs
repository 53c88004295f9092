//! Keys of records: one byte of bucket, then names joined by NUL.
//!
//! Invariant: no name holds a NUL (the types forbid it, free strings are checked with
//! [`types::Identifier::check_free`]), so keys of one parent are one range, ordered by the bytes of their
//! names.

use types::{Namespace, Result};

use crate::codec::damaged;

/// Kinds of records. Numbers are on disk: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bucket {
    /// Facts of the store itself: schema version, sequence.
    Store = 0,
    /// namespace
    Namespace = 1,
    /// namespace, name
    Image = 2,
    /// namespace, id
    Container = 3,
    /// namespace, id
    Lease = 4,
    /// namespace, lease, kind, id…
    Leased = 5,
    /// namespace, digest
    Blob = 6,
    /// namespace, ref
    Ingest = 7,
    /// namespace, snapshotter, key
    Snapshot = 8,
    /// namespace, snapshotter, parent, child
    Child = 9,
    /// snapshotter, its own name of a commit
    Redo = 10,
    /// snapshotter, its own name of a snapshot whose record was removed
    Removed = 11,
}

/// The key of one record.
pub(crate) fn key(bucket: Bucket, names: &[&str]) -> Vec<u8> {
    let mut key = vec![bucket as u8];
    key.extend_from_slice(names.join("\0").as_bytes());
    key
}

/// The prefix of all records below `names`.
pub(crate) fn below(bucket: Bucket, names: &[&str]) -> Vec<u8> {
    let mut prefix = vec![bucket as u8];
    for name in names {
        prefix.extend_from_slice(name.as_bytes());
        prefix.push(0);
    }
    prefix
}

/// The key of a record with one name in a namespace.
pub(crate) fn own(bucket: Bucket, namespace: &Namespace, name: &str) -> Vec<u8> {
    key(bucket, &[namespace.as_str(), name])
}

/// The prefix of a namespace's records.
pub(crate) fn all(bucket: Bucket, namespace: &Namespace) -> Vec<u8> {
    below(bucket, &[namespace.as_str()])
}

/// The names in what a scan left of a key.
pub(crate) fn names<const N: usize>(rest: &[u8]) -> Result<[&str; N]> {
    let text = std::str::from_utf8(rest).map_err(|_| damaged())?;
    let mut names = [""; N];
    let mut parts = text.splitn(N, '\0');
    for name in &mut names {
        *name = parts.next().ok_or_else(damaged)?;
    }
    Ok(names)
}

/// A key taken apart: its bucket, its namespace, and the names below that. `None` when it is not below
/// a namespace.
pub(crate) fn split(key: &[u8]) -> Result<Option<(Bucket, Namespace, &str)>> {
    const ALL: [Bucket; 10] = [
        Bucket::Store,
        Bucket::Namespace,
        Bucket::Image,
        Bucket::Container,
        Bucket::Lease,
        Bucket::Leased,
        Bucket::Blob,
        Bucket::Ingest,
        Bucket::Snapshot,
        Bucket::Child,
    ];
    let (first, rest) = key.split_first().ok_or_else(damaged)?;
    if [Bucket::Redo as u8, Bucket::Removed as u8].contains(first) {
        return Ok(None);
    }
    let bucket = ALL.get(usize::from(*first)).ok_or_else(damaged)?;
    let text = std::str::from_utf8(rest).map_err(|_| damaged())?;
    let Some((namespace, rest)) = text.split_once('\0') else {
        return Ok(None);
    };
    let namespace = namespace.parse().map_err(|_| damaged())?;
    Ok(Some((*bucket, namespace, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_below_a_name_are_no_others() {
        let prefix = below(Bucket::Image, &["a"]);
        assert!(key(Bucket::Image, &["a", "x"]).starts_with(&prefix));
        assert!(!key(Bucket::Image, &["ab", "x"]).starts_with(&prefix));
        assert!(!key(Bucket::Container, &["a", "x"]).starts_with(&prefix));
        let key = key(Bucket::Snapshot, &["ns", "sn", "k/e y"]);
        assert_eq!(names(&key[1..]).unwrap(), ["ns", "sn", "k/e y"]);
        names::<4>(&key[1..]).unwrap_err();
    }
}
