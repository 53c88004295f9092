//! Records of activations: one JSON file each.
//!
//! ```text
//! records/<number>      written whole, renamed into place
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use types::{Activation, ActiveMount, Error, Labels, LeaseId, Mount, Result};

use crate::Key;

/// How far an activation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Being mounted: nobody was told of it.
    Coming,
    /// All its mounts are there.
    Active,
    /// Being taken away.
    Going,
}

/// An activation, and what is known of it beside.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) phase: Phase,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) activation: Activation,
}

#[derive(Serialize, Deserialize)]
struct Record {
    namespace: String,
    name: String,
    phase: Phase,
    lease: Option<String>,
    labels: BTreeMap<String, String>,
    active: Vec<ActiveRecord>,
    system: Vec<MountRecord>,
}

#[derive(Serialize, Deserialize)]
struct MountRecord {
    kind: String,
    source: String,
    target: String,
    options: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct ActiveRecord {
    mount: MountRecord,
    /// Since 1970.
    mounted_at: Option<Duration>,
    mount_point: String,
    data: BTreeMap<String, String>,
}

/// Writes the record of `entry` to `path`. On disk when this returns.
pub(crate) fn write(path: &Path, namespace: &str, entry: &Entry) -> Result<()> {
    let Activation {
        name,
        active,
        system,
        labels,
    } = &entry.activation;
    let record = Record {
        namespace: namespace.to_owned(),
        name: name.clone(),
        phase: entry.phase,
        lease: entry.lease.as_ref().map(ToString::to_string),
        labels: labels
            .iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
        active: active.iter().map(active_record).collect(),
        system: system.iter().map(mount_record).collect(),
    };
    let text = serde_json::to_vec(&record)
        .map_err(|e| Error::internal("encode record of mounts").with_source(e))?;
    sys::fs::write_atomic(path, &text, 0o600)
}

/// Reads the record of the activation `number`.
pub(crate) fn read(path: &Path, number: u64) -> Result<(Key, Entry)> {
    let text =
        std::fs::read(path).map_err(|e| Error::os(format_args!("read {}", path.display()), e))?;
    let record: Record = serde_json::from_slice(&text).map_err(|e| {
        Error::data_loss(format_args!("record of mounts {}", path.display())).with_source(e)
    })?;
    let namespace = record.namespace.parse()?;
    let lease = record.lease.map(TryInto::try_into).transpose()?;
    let entry = Entry {
        number,
        phase: record.phase,
        lease,
        activation: Activation {
            name: record.name.clone(),
            active: record.active.into_iter().map(active_mount).collect(),
            system: record.system.into_iter().map(mount).collect(),
            labels: record.labels.into_iter().collect::<Labels>(),
        },
    };
    Ok(((namespace, record.name), entry))
}

fn mount_record(mount: &Mount) -> MountRecord {
    MountRecord {
        kind: mount.kind.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    }
}

fn mount(record: MountRecord) -> Mount {
    Mount {
        kind: record.kind,
        source: record.source,
        target: record.target,
        options: record.options,
    }
}

fn active_record(active: &ActiveMount) -> ActiveRecord {
    let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok();
    ActiveRecord {
        mount: mount_record(&active.mount),
        mounted_at: active.mounted_at.and_then(since),
        mount_point: active.mount_point.clone(),
        data: active.data.clone(),
    }
}

fn active_mount(record: ActiveRecord) -> ActiveMount {
    ActiveMount {
        mount: mount(record.mount),
        mounted_at: record
            .mounted_at
            .map(|since| SystemTime::UNIX_EPOCH + since),
        mount_point: record.mount_point,
        data: record.data,
    }
}
