//! One snapshot's row: the value, its text on disk, and the changes that rows go through.
//!
//! Invariant: [`Change::encode`] and [`Change::decode`] are inverse, and what does not decode is
//! refused as `DataLoss`, never half understood.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use types::{Error, Labels, Result, SnapshotInfo, SnapshotKey, SnapshotKind, Usage};

/// What the index knows about one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Name of its directory.
    pub(crate) id: u64,
    /// Kind.
    pub(crate) kind: SnapshotKind,
    /// Name of the committed parent.
    pub(crate) parent: Option<SnapshotKey>,
    /// Labels.
    pub(crate) labels: Labels,
    /// When it was made or committed.
    pub(crate) created_at: SystemTime,
    /// When it last changed.
    pub(crate) updated_at: SystemTime,
    /// What a committed one takes.
    pub(crate) usage: Usage,
    /// What its tree must look like, where that is known.
    pub(crate) print: Option<u64>,
    /// Nobody has touched it before it was committed, and its directory was not flushed: to whom the root
    /// of its tree belongs, which is all there is of it.
    pub(crate) bare: Option<Owner>,
}

/// User and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Row {
    /// The public facts of the snapshot at `key`.
    pub(crate) fn info(&self, key: &SnapshotKey) -> SnapshotInfo {
        SnapshotInfo {
            kind: self.kind,
            name: key.clone(),
            parent: self.parent.clone(),
            labels: self.labels.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

/// One step of the index: a row set or, with `None`, taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Key of the row.
    pub(crate) key: SnapshotKey,
    /// Its new value.
    pub(crate) row: Option<Row>,
}

impl Change {
    /// The steps that take the active `key` away and make `row` that of `name`.
    pub(super) fn to_name(key: &SnapshotKey, name: &SnapshotKey, row: Row) -> Vec<Self> {
        let gone = Self {
            key: key.clone(),
            row: None,
        };
        let made = Self {
            key: name.clone(),
            row: Some(row),
        };
        vec![gone, made]
    }
}

/// Only what is active can be committed, or take another's place.
///
/// # Errors
/// `FailedPrecondition`.
pub(super) fn not_active(key: &SnapshotKey, row: &Row) -> Result<()> {
    if row.kind == SnapshotKind::Active {
        return Ok(());
    }
    Err(Error::failed_precondition(format_args!(
        "snapshot {:?} is not active",
        key.as_str()
    )))
}

/// The text form of a row. Field names are the disk format.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: u64,
    kind: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    created: SystemTime,
    updated: SystemTime,
    #[serde(default)]
    inodes: u64,
    #[serde(default)]
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    print: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bare: Option<Owner>,
}

/// A change as it stands in the log.
#[derive(Serialize, Deserialize)]
struct StoredChange {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    row: Option<Stored>,
}

/// A group of changes that take effect together, with its place in the order of all groups. A field
/// that is not known is a name that was damaged.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredGroup {
    seq: u64,
    next: u64,
    changes: Vec<StoredChange>,
    /// Of what stands before it; [`seal`] writes it.
    #[serde(default, skip_serializing)]
    crc: Option<String>,
}

/// What stands before a line's checksum, and behind it.
const SEAL: (&[u8], &[u8]) = (b",\"crc\":\"", b"\"}");
/// Length of a line's checksum.
const DIGITS: usize = 8;

/// Ends the object in `line` with a checksum: a flipped digit would give a snapshot another's directory.
fn seal(line: &mut Vec<u8>) {
    let brace = line.pop();
    debug_assert_eq!(brace, Some(b'}'), "a group is an object");
    let crc = format!("{:0DIGITS$x}", crc32fast::hash(line));
    for part in [SEAL.0, crc.as_bytes(), SEAL.1] {
        line.extend_from_slice(part);
    }
}

/// Whether the line's checksum is right; `None` when it has none.
fn is_sealed(line: &[u8]) -> Option<bool> {
    let line = line.trim_ascii_end().strip_suffix(SEAL.1)?;
    let (line, crc) = line.split_at_checked(line.len().checked_sub(DIGITS)?)?;
    let body = line.strip_suffix(SEAL.0)?;
    let crc = u32::from_str_radix(str::from_utf8(crc).ok()?, 16).ok()?;
    Some(crc == crc32fast::hash(body))
}

/// A group read back from the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// Place in the order of all groups.
    pub(crate) seq: u64,
    /// First id that was free after it.
    pub(crate) next: u64,
    /// Its changes.
    pub(crate) changes: Vec<Change>,
}

impl From<&Row> for Stored {
    fn from(row: &Row) -> Self {
        Self {
            id: row.id,
            kind: row.kind as u8,
            parent: row.parent.as_ref().map(ToString::to_string),
            labels: row
                .labels
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            created: row.created_at,
            updated: row.updated_at,
            inodes: row.usage.inodes,
            size: row.usage.size,
            print: row.print,
            bare: row.bare,
        }
    }
}

impl TryFrom<Stored> for Row {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self> {
        let kind = match stored.kind {
            1 => SnapshotKind::View,
            2 => SnapshotKind::Active,
            3 => SnapshotKind::Committed,
            other => return Err(Error::data_loss(format_args!("snapshot kind {other}"))),
        };
        Ok(Self {
            id: stored.id,
            kind,
            parent: stored.parent.map(SnapshotKey::try_from).transpose()?,
            labels: stored.labels.into_iter().collect(),
            created_at: stored.created,
            updated_at: stored.updated,
            usage: Usage {
                inodes: stored.inodes,
                size: stored.size,
            },
            print: stored.print,
            bare: stored.bare,
        })
    }
}

fn damaged(error: serde_json::Error) -> Error {
    Error::data_loss("snapshot record is damaged").with_source(error)
}

impl Row {
    /// The row's text.
    ///
    /// # Errors
    /// `Internal`, when a time does not fit.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&Stored::from(self))
            .map_err(|e| Error::internal("encode snapshot record").with_source(e))
    }

    /// The row of a text.
    ///
    /// # Errors
    /// `DataLoss`.
    pub(crate) fn decode(text: &[u8]) -> Result<Self> {
        serde_json::from_slice::<Stored>(text)
            .map_err(damaged)?
            .try_into()
    }
}

impl Group {
    /// The row that it has made, with its key.
    pub(crate) fn made(&self) -> Option<(&SnapshotKey, &Row)> {
        let mut changes = self.changes.iter();
        changes.find_map(|change| Some((&change.key, change.row.as_ref()?)))
    }

    /// One line for the log.
    ///
    /// # Errors
    /// `Internal`, when a time does not fit.
    pub(crate) fn encode(seq: u64, next: u64, changes: &[Change]) -> Result<Vec<u8>> {
        let changes = changes
            .iter()
            .map(|change| StoredChange {
                key: change.key.to_string(),
                row: change.row.as_ref().map(Stored::from),
            })
            .collect();
        let group = StoredGroup {
            seq,
            next,
            changes,
            crc: None,
        };
        let mut line = serde_json::to_vec(&group)
            .map_err(|e| Error::internal("encode snapshot record").with_source(e))?;
        seal(&mut line);
        line.push(b'\n');
        Ok(line)
    }

    /// The group of a line.
    ///
    /// # Errors
    /// `DataLoss`.
    pub(crate) fn decode(line: &[u8]) -> Result<Self> {
        let is_sealed = is_sealed(line);
        if is_sealed == Some(false) {
            return Err(Error::data_loss("snapshot record is damaged: its checksum"));
        }
        let stored: StoredGroup = serde_json::from_slice(line).map_err(damaged)?;
        // Lines of older versions have none; one that cannot be read is not one of these.
        if stored.crc.is_some() != is_sealed.is_some() {
            return Err(Error::data_loss("snapshot record is damaged: its end"));
        }
        let changes = stored
            .changes
            .into_iter()
            .map(|change| {
                Ok(Change {
                    key: change.key.try_into()?,
                    row: change.row.map(Row::try_from).transpose()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            seq: stored.seq,
            next: stored.next,
            changes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            id: 7,
            kind: SnapshotKind::Committed,
            parent: Some("a b/c\n".parse().unwrap()),
            labels: Labels::new().with("k", "v"),
            created_at: SystemTime::UNIX_EPOCH + std::time::Duration::new(5, 9),
            updated_at: SystemTime::now(),
            usage: Usage { inodes: 3, size: 4 },
            print: Some(u64::MAX),
            bare: Some(Owner { uid: 1, gid: 2 }),
        }
    }

    #[test]
    fn rows_and_groups_survive_their_text_form() {
        let row = row();
        assert_eq!(Row::decode(&row.encode().unwrap()).unwrap(), row);
        let changes = vec![
            Change {
                key: "gone".parse().unwrap(),
                row: None,
            },
            Change {
                key: "here".parse().unwrap(),
                row: Some(row),
            },
        ];
        let line = Group::encode(4, 8, &changes).unwrap();
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(
            Group::decode(&line).unwrap(),
            Group {
                seq: 4,
                next: 8,
                changes
            }
        );
    }

    #[test]
    fn no_flipped_bit_of_a_line_is_taken_for_another_row() {
        let changes = vec![Change {
            key: "here".parse().unwrap(),
            row: Some(row()),
        }];
        let line = Group::encode(4, 8, &changes).unwrap();
        let whole = Group::decode(&line).unwrap();
        for (at, bit) in (0..line.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut damaged = line.clone();
            damaged[at] ^= 1 << bit;
            if let Ok(read) = Group::decode(&damaged) {
                assert_eq!(read, whole, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_line_without_a_checksum_is_read_as_older_versions_wrote_it() {
        let line = b"{\"seq\":4,\"next\":8,\"changes\":[{\"key\":\"gone\"}]}\n";
        let group = Group::decode(line).unwrap();
        assert_eq!((group.seq, group.next, group.changes.len()), (4, 8, 1));
    }

    #[test]
    fn damaged_text_is_data_loss() {
        for text in [
            "",
            "{",
            "{\"id\":1}",
            "{\"id\":1,\"kind\":9,\"created\":{\"secs_since_epoch\":0,\"nanos_since_epoch\":0},\"updated\":{\"secs_since_epoch\":0,\"nanos_since_epoch\":0}}",
        ] {
            let error = Row::decode(text.as_bytes()).unwrap_err();
            assert!(error.is(types::Code::DataLoss), "{text}: {error}");
        }
        Group::decode(b"{\"seq\":1,\"next\":2,\"changes\":[{\"key\":\"\"}]}").unwrap_err();
    }
}
