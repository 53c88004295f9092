//! Sections of the snapshotters: `[plugins."io.containerd.snapshotter.v1.<id>"]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use types::{Error, Result};

/// `io.containerd.snapshotter.v1.overlayfs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Overlay {
    /// Directory; empty: the plugin's own under the root.
    pub(crate) root_path: PathBuf,
    /// Label each snapshot with its upper directory.
    pub(crate) upperdir_label: bool,
    /// Remove directories before `remove` answers.
    pub(crate) sync_remove: bool,
    /// Where the kernel cannot map ids, copy every file of an id-mapped snapshot to a new owner.
    pub(crate) slow_chown: bool,
    /// More options for each overlay mount.
    pub(crate) mount_options: Vec<String>,
}

/// What each of these sections has, and all that those of native and btrfs have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RootPath {
    /// Directory; empty: the plugin's own under the root.
    pub(crate) root_path: PathBuf,
}

/// `io.containerd.snapshotter.v1.blockfile`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Blockfile {
    /// Directory; empty: the plugin's own under the root.
    pub(crate) root_path: PathBuf,
    /// An empty file system to begin with; without one the plugin is skipped.
    pub(crate) scratch_file: PathBuf,
    /// Type of the file system; empty: ext4.
    pub(crate) fs_type: String,
    /// Options of each mount beside `loop`.
    pub(crate) mount_options: Vec<String>,
    /// Take the scratch file at each start, not at the first one alone.
    pub(crate) recreate_scratch: bool,
}

/// `io.containerd.snapshotter.v1.erofs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Erofs {
    /// Directory; empty: the plugin's own under the root.
    pub(crate) root_path: PathBuf,
    /// More options for each overlay mount.
    pub(crate) ovl_mount_options: Vec<String>,
    /// Protect images from being changed by accident.
    pub(crate) set_immutable: bool,
    /// Not available here.
    pub(crate) enable_fsverity: bool,
    /// Size of a writable layer's own file system: not available here.
    pub(crate) default_size: String,
    /// `auto` and `off` are the same here; `on` is not available.
    pub(crate) dmverity_mode: String,
}

impl Default for Erofs {
    fn default() -> Self {
        Self {
            root_path: PathBuf::new(),
            ovl_mount_options: Vec::new(),
            set_immutable: true,
            enable_fsverity: false,
            default_size: String::new(),
            dmverity_mode: "auto".into(),
        }
    }
}

impl Erofs {
    /// Refuses what is not available: a layer that is not protected as somebody wants it is worse than
    /// none.
    ///
    /// # Errors
    /// `InvalidArgument` with the key.
    pub(crate) fn check_supported(&self) -> Result<()> {
        match self.unsupported() {
            None => Ok(()),
            Some(key) => Err(Error::invalid_argument(format_args!(
                "the erofs snapshotter does not support {key} as it is set"
            ))),
        }
    }
}
