//! Sections of the plugins that exist here: `[plugins."<uri>"]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use types::{Error, Platform, Result};

use super::checks::Checked;
use super::duration;
use super::seen::Restart;
use super::snapshotters::{Blockfile, Erofs, Overlay, RootPath};

/// `io.containerd.gc.v1.scheduler`: when the collector runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Scheduler {
    /// Greatest share of time in which writers may wait for the collector.
    pub(crate) pause_threshold: f64,
    /// As [`metadata::gc::SchedulerOpts::deletion_threshold`].
    pub(crate) deletion_threshold: u64,
    /// As [`metadata::gc::SchedulerOpts::mutation_threshold`].
    pub(crate) mutation_threshold: u64,
    /// Wait between a trigger and the run.
    #[serde(with = "duration")]
    pub(crate) schedule_delay: Duration,
    /// Wait after the start of the daemon.
    #[serde(with = "duration")]
    pub(crate) startup_delay: Duration,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            pause_threshold: 0.02,
            deletion_threshold: 0,
            mutation_threshold: 100,
            schedule_delay: Duration::ZERO,
            startup_delay: Duration::from_millis(100),
        }
    }
}

/// `io.containerd.metadata.v1.bolt`: the metadata database (the name is the wire's).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    /// May a namespace link a blob that another one brought, without showing it the bytes?
    pub(crate) content_sharing_policy: Sharing,
}

impl Default for Metadata {
    fn default() -> Self {
        Self {
            content_sharing_policy: Sharing::Shared,
        }
    }
}

/// Content sharing between namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sharing {
    /// A known digest is enough.
    Shared,
    /// The bytes must be sent.
    Isolated,
}

/// `io.containerd.service.v1.diff-service`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Diff {
    /// Ids of the differs, in the order in which they are asked.
    pub(crate) default: Vec<String>,
    /// Flush every unpacked layer, also when the client does not ask for it.
    pub(crate) sync_fs: bool,
}

impl Default for Diff {
    fn default() -> Self {
        Self {
            // Files as ever; the other one is asked for layers that are images.
            default: vec!["walking".into(), "erofs".into()],
            sync_fs: true,
        }
    }
}

/// `io.containerd.differ.v1.erofs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ErofsDiffer {
    /// Further options of `mkfs.erofs`, where it makes images of archives.
    pub(crate) mkfs_options: Vec<String>,
    /// Images that point into the archive: not available here, they are made in full.
    pub(crate) enable_tar_index: bool,
    /// Not available here.
    pub(crate) enable_dmverity: bool,
    /// Take layers that are images already.
    pub(crate) take_images: bool,
}

impl Default for ErofsDiffer {
    fn default() -> Self {
        let opts = diff::ErofsOpts::default();
        Self {
            mkfs_options: opts.mkfs_options,
            enable_tar_index: false,
            enable_dmverity: false,
            take_images: opts.take_images,
        }
    }
}

impl ErofsDiffer {
    /// As the differ takes them.
    ///
    /// # Errors
    /// `InvalidArgument` for a protection that there is not: a layer without it is worse than none.
    pub(crate) fn opts(self) -> Result<diff::ErofsOpts> {
        if let Some(key) = self.unsupported() {
            return Err(Error::invalid_argument(format_args!(
                "the erofs differ does not support {key}"
            )));
        }
        if self.enable_tar_index {
            tracing::info!("enable_tar_index: images of archives are made in full");
        }
        Ok(diff::ErofsOpts {
            mkfs_options: self.mkfs_options,
            take_images: self.take_images,
        })
    }
}

/// `io.containerd.differ.v1.walking`: what one layer may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Walking {
    /// Most bytes of the archive, which is what a compressed blob unpacks to.
    pub(crate) max_archive_bytes: u64,
    /// Most files, directories and links.
    pub(crate) max_entries: u64,
    /// Most bytes that files take, in whole blocks, without zeroes that become holes.
    pub(crate) max_stored_bytes: u64,
    /// Most bytes of files for each byte of the blob, beyond the first GiB; the archive may have ten times
    /// as many, beyond a 64th of `max_archive_bytes`.
    pub(crate) max_ratio: u64,
    /// Most bytes of a window of zstd, which are memory.
    pub(crate) max_zstd_window: u64,
}

impl Walking {
    /// As the differ takes them.
    pub(crate) fn limits(&self) -> diff::Limits {
        diff::Limits {
            bytes: self.max_archive_bytes,
            entries: self.max_entries,
            stored: self.max_stored_bytes,
            ratio: self.max_ratio,
            window: self.max_zstd_window,
            ..diff::Limits::default()
        }
    }
}

impl Default for Walking {
    fn default() -> Self {
        let limits = diff::Limits::default();
        Self {
            max_archive_bytes: limits.bytes,
            max_entries: limits.entries,
            max_stored_bytes: limits.stored,
            max_ratio: limits.ratio,
            max_zstd_window: limits.window,
        }
    }
}

/// `io.containerd.runtime.v2.task`: what keeps tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Tasks {
    /// Platforms that containers can be of, as clients are told.
    pub(crate) platforms: Vec<String>,
    /// Give each container a core scheduling domain of its own.
    pub(crate) sched_core: bool,
    /// Creates of tasks and starts of execs at a time, of all containers together; 0: any number.
    pub(crate) max_concurrent_starts: usize,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            platforms: vec![Platform::host().to_string()],
            sched_core: false,
            // Far more than a machine does at once, and few enough that a storm leaves it memory.
            max_concurrent_starts: 64,
        }
    }
}

/// `io.containerd.network.v1.cni`: networks whose work programs do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Cni {
    /// Configurations of networks.
    pub(crate) conf_dir: PathBuf,
    /// Where the programs are, first place first.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Time of each call of one.
    #[serde(with = "duration")]
    pub(crate) timeout: Duration,
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            timeout: Duration::from_mins(1),
        }
    }
}

/// `io.containerd.transfer.v1.local`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Transfer {
    /// Connections over which all pulls together fetch layers; 0: so many of each pull; left out: fitted
    /// to processors and disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_concurrent_downloads: Option<usize>,
    /// Blobs that all pushes together send at a time, in the same way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_concurrent_uploaded_layers: Option<usize>,
    /// Directories with a directory for each registry host (`certs.d`), separated by colons; empty:
    /// none.
    pub(crate) config_path: String,
    /// Unpack only for the configured platforms, not for all of their systems.
    pub(crate) check_platform_supported: bool,
    /// What is unpacked where; left out: every snapshotter for this host's platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unpack_config: Option<Vec<UnpackConfig>>,
}

/// Images of a platform into a snapshotter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct UnpackConfig {
    /// Platform.
    pub(crate) platform: String,
    /// Snapshotter.
    pub(crate) snapshotter: String,
    /// Differ; empty: those of the diff service.
    pub(crate) differ: String,
    /// It may be missing.
    pub(crate) optional: bool,
}

/// `io.containerd.image-verifier.v1.bindir`: programs that judge images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct BinDir {
    /// Their directory.
    pub(crate) bin_dir: PathBuf,
    /// How many of them are asked; negative: all.
    pub(crate) max_verifiers: i64,
    /// Time of each.
    #[serde(with = "duration")]
    pub(crate) per_verifier_timeout: Duration,
}

impl Default for BinDir {
    fn default() -> Self {
        Self {
            bin_dir: "/opt/containerd/image-verifier/bin".into(),
            max_verifiers: 10,
            per_verifier_timeout: Duration::from_secs(10),
        }
    }
}

/// Reads a table and writes it again in full, with the defaults filled in.
type Complete = fn(toml::Table) -> Result<toml::Table>;

fn complete_as<T: DeserializeOwned + Serialize>(table: toml::Table) -> Result<toml::Table> {
    toml::Table::try_from(read::<T>(table)?).map_err(Error::internal)
}

/// The same of a section with values that no type can tell wrong.
fn complete_checked<T: DeserializeOwned + Serialize + Checked>(
    table: toml::Table,
) -> Result<toml::Table> {
    let section = read::<T>(table)?;
    section.check()?;
    toml::Table::try_from(section).map_err(Error::internal)
}

fn read<T: DeserializeOwned>(table: toml::Table) -> Result<T> {
    table
        .try_into()
        .map_err(|e: toml::de::Error| Error::invalid_argument(e.message()))
}

/// Every section that exists.
const SECTIONS: [(&str, Complete); 15] = [
    ("io.containerd.differ.v1.erofs", complete_as::<ErofsDiffer>),
    ("io.containerd.differ.v1.walking", complete_as::<Walking>),
    ("io.containerd.gc.v1.scheduler", complete_as::<Scheduler>),
    (
        "io.containerd.image-verifier.v1.bindir",
        complete_as::<BinDir>,
    ),
    ("io.containerd.metadata.v1.bolt", complete_as::<Metadata>),
    (
        "io.containerd.monitor.container.v1.restart",
        complete_as::<Restart>,
    ),
    ("io.containerd.network.v1.cni", complete_as::<Cni>),
    ("io.containerd.runtime.v2.task", complete_checked::<Tasks>),
    ("io.containerd.service.v1.diff-service", complete_as::<Diff>),
    (
        "io.containerd.snapshotter.v1.blockfile",
        complete_as::<Blockfile>,
    ),
    (
        "io.containerd.snapshotter.v1.btrfs",
        complete_as::<RootPath>,
    ),
    (
        "io.containerd.snapshotter.v1.erofs",
        complete_checked::<Erofs>,
    ),
    (
        "io.containerd.snapshotter.v1.native",
        complete_as::<RootPath>,
    ),
    (
        "io.containerd.snapshotter.v1.overlayfs",
        complete_as::<Overlay>,
    ),
    (
        "io.containerd.transfer.v1.local",
        complete_checked::<Transfer>,
    ),
];

/// All sections in full. Those of unknown plugins are left out.
///
/// # Errors
/// `InvalidArgument` for a value that does not fit, with the plugin's URI.
pub(super) fn complete(
    given: &BTreeMap<String, toml::Table>,
) -> Result<BTreeMap<String, toml::Table>, (String, Error)> {
    SECTIONS
        .iter()
        .map(|(uri, complete)| {
            let table = given.get(*uri).cloned().unwrap_or_default();
            let refuse = |e: Error| ((*uri).to_owned(), e.ctx(format!("plugin {uri:?}")));
            Ok(((*uri).to_owned(), complete(table).map_err(refuse)?))
        })
        .collect()
}

/// True when `table` can be the section of plugin `uri`.
pub(super) fn fits(uri: &str, table: toml::Table) -> bool {
    let section = SECTIONS.iter().find(|(known, _)| *known == uri);
    section.is_none_or(|(_, complete)| complete(table).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_erofs_differ_promises_no_protection_that_there_is_not() {
        let read = |text| toml::from_str::<ErofsDiffer>(text).unwrap().opts();
        let opts = read("mkfs_options = [\"-zlz4\"]\ntake_images = false").unwrap();
        assert_eq!(
            (opts.mkfs_options, opts.take_images),
            (vec!["-zlz4".to_owned()], false)
        );
        // Go's default.
        assert!(read("enable_tar_index = true").unwrap().take_images);
        let error = read("enable_dmverity = true").unwrap_err();
        assert!(error.to_string().contains("enable_dmverity"), "{error}");
    }

    #[test]
    fn each_ceiling_of_the_differ_is_that_of_its_name() {
        let written = "max_archive_bytes = 1\nmax_entries = 2\nmax_stored_bytes = 3\nmax_ratio = 4\n\
                       max_zstd_window = 5\n";
        let read: Walking = toml::from_str(written).unwrap();
        let limits = read.limits();
        let want = diff::Limits {
            bytes: 1,
            entries: 2,
            stored: 3,
            ratio: 4,
            window: 5,
            ..diff::Limits::default()
        };
        assert_eq!(limits, want);
        assert_eq!(Walking::default().limits(), diff::Limits::default());
    }
}
