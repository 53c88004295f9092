//! Records of what was made: one JSON file each.
//!
//! ```text
//! records/<number>      written whole, renamed into place
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use types::network::{LinkName, MacAddr, Place};
use types::{Error, Labels, LeaseId, Namespace, Result};

/// How far a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Being made: nobody was told of it.
    Coming,
    /// There.
    Active,
    /// Being taken away.
    Going,
}

/// What is known of a thing whatever it is.
#[derive(Clone, Debug)]
pub(crate) struct Entry<T> {
    pub(crate) number: u64,
    pub(crate) phase: Phase,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) labels: Labels,
    pub(crate) created_at: SystemTime,
    pub(crate) updated_at: SystemTime,
    pub(crate) what: T,
}

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NsFacts {
    /// 0 while it is being made.
    pub(crate) inode: u64,
    pub(crate) adopted: PathBuf,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkFacts {
    /// 0 while it is being made.
    pub(crate) index: u32,
    /// Where it was, and is when its move was not finished.
    pub(crate) moved_from: Option<(Place, LinkName)>,
    /// Tells it from another one at the end of that move.
    pub(crate) moved_mac: Option<MacAddr>,
    /// Record of the other end.
    pub(crate) pair: Option<u64>,
}

/// Tenant and name.
pub(crate) type NsKey = (Namespace, String);
/// Tenant, place and name.
pub(crate) type LinkKey = (Namespace, Place, LinkName);

/// What one file has.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    Ns(NsKey, Entry<NsFacts>),
    Link(LinkKey, Entry<LinkFacts>),
}

#[derive(Serialize, Deserialize)]
struct Record {
    tenant: String,
    name: String,
    phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    /// Since 1970.
    created_at: Duration,
    updated_at: Duration,
    #[serde(flatten)]
    what: What,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum What {
    Netns {
        inode: u64,
        adopted: PathBuf,
    },
    Link {
        place: String,
        index: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        moved_from: Option<(String, String)>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        moved_mac: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pair: Option<u64>,
    },
}

fn since(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn write<T>(
    path: &Path,
    tenant: &Namespace,
    name: &str,
    entry: &Entry<T>,
    what: What,
) -> Result<()> {
    let record = Record {
        tenant: tenant.to_string(),
        name: name.to_owned(),
        phase: entry.phase,
        lease: entry.lease.as_ref().map(ToString::to_string),
        labels: entry
            .labels
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect(),
        created_at: since(entry.created_at),
        updated_at: since(entry.updated_at),
        what,
    };
    let text = serde_json::to_vec(&record)
        .map_err(|e| Error::internal("encode record of a network").with_source(e))?;
    sys::fs::write_atomic(path, &text, 0o600)
}

/// Writes the record of a network namespace. On disk when this returns.
pub(crate) fn write_ns(path: &Path, key: &NsKey, entry: &Entry<NsFacts>) -> Result<()> {
    let what = What::Netns {
        inode: entry.what.inode,
        adopted: entry.what.adopted.clone(),
    };
    write(path, &key.0, &key.1, entry, what)
}

/// Writes the record of an interface. On disk when this returns.
pub(crate) fn write_link(path: &Path, key: &LinkKey, entry: &Entry<LinkFacts>) -> Result<()> {
    let from = entry.what.moved_from.as_ref();
    let what = What::Link {
        place: key.1.name().to_owned(),
        index: entry.what.index,
        moved_from: from.map(|(place, name)| (place.name().to_owned(), name.to_string())),
        moved_mac: entry.what.moved_mac.map(|mac| mac.to_string()),
        pair: entry.what.pair,
    };
    write(path, &key.0, key.2.as_str(), entry, what)
}

/// Reads the record `number`.
pub(crate) fn read(path: &Path, number: u64) -> Result<Read> {
    let text =
        std::fs::read(path).map_err(|e| Error::os(format_args!("read {}", path.display()), e))?;
    let record: Record = serde_json::from_slice(&text).map_err(|e| {
        Error::data_loss(format_args!("record of a network {}", path.display())).with_source(e)
    })?;
    let tenant: Namespace = record.tenant.parse()?;
    let lease = record.lease.map(TryInto::try_into).transpose()?;
    let head = Entry {
        number,
        phase: record.phase,
        lease,
        labels: record.labels.into_iter().collect(),
        created_at: SystemTime::UNIX_EPOCH + record.created_at,
        updated_at: SystemTime::UNIX_EPOCH + record.updated_at,
        what: (),
    };
    match record.what {
        What::Netns { inode, adopted } => {
            let entry = head.with(NsFacts { inode, adopted });
            Ok(Read::Ns((tenant, record.name), entry))
        }
        What::Link {
            place,
            index,
            moved_from,
            moved_mac,
            pair,
        } => {
            let from = |(place, name): (String, String)| Ok((Place::of(place), name.try_into()?));
            let moved_from = moved_from.map(from).transpose()?;
            let moved_mac = moved_mac.map(|mac| mac.parse()).transpose()?;
            let entry = head.with(LinkFacts {
                index,
                moved_from,
                moved_mac,
                pair,
            });
            let key = (tenant, Place::of(place), record.name.try_into()?);
            Ok(Read::Link(key, entry))
        }
    }
}

impl<T> Entry<T> {
    /// The same about something else.
    fn with<U>(self, what: U) -> Entry<U> {
        Entry {
            number: self.number,
            phase: self.phase,
            lease: self.lease,
            labels: self.labels,
            created_at: self.created_at,
            updated_at: self.updated_at,
            what,
        }
    }

    /// True when it is there.
    pub(crate) fn is_active(&self) -> bool {
        self.phase == Phase::Active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<T>(what: T) -> Entry<T> {
        Entry {
            number: 3,
            phase: Phase::Active,
            lease: Some("l".parse().unwrap()),
            labels: Labels::new().with("a", "b"),
            created_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_000_001),
            updated_at: SystemTime::UNIX_EPOCH,
            what,
        }
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("3");
        let tenant: Namespace = "default".parse().unwrap();
        let facts = NsFacts {
            inode: 7,
            adopted: "/x".into(),
        };
        write_ns(&path, &(tenant.clone(), "n".into()), &entry(facts.clone())).unwrap();
        let Read::Ns(key, read_back) = read(&path, 3).unwrap() else {
            panic!("a namespace")
        };
        assert_eq!(
            (key, read_back.what.clone()),
            ((tenant.clone(), "n".into()), facts)
        );
        assert_eq!(
            format!("{:?}", read_back.with(())),
            format!("{:?}", entry(()))
        );
        let name: LinkName = "eth0".parse().unwrap();
        let facts = LinkFacts {
            index: 9,
            moved_from: Some((Place::Host, name.clone())),
            moved_mac: Some("02:00:00:00:00:11".parse().unwrap()),
            pair: Some(4),
        };
        let key = (tenant, Place::Named("n".into()), name);
        write_link(&path, &key, &entry(facts.clone())).unwrap();
        let Read::Link(read_key, read_back) = read(&path, 3).unwrap() else {
            panic!("an interface")
        };
        assert_eq!((read_key, read_back.what), (key, facts));
        std::fs::write(&path, "{").unwrap();
        assert!(read(&path, 3).unwrap_err().is(types::Code::DataLoss));
    }
}
