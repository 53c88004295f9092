//! Mount: the whole treaty between snapshotters, the differ and the runtime.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::{Filterable, Labels};

/// Attribute, with the value `y`, of the root of a layer that was unpacked without knowing what lies
/// below: its whiteouts and its [`IMPLIED_DIRECTORY`] marks are to be looked at when that is known.
pub const UNSETTLED_LAYER: &str = "trusted.overlay.containerd.unsettled";
/// Attribute, with the value `y`, of a directory that no entry of its layer describes: it is to look
/// like the one that it covers.
pub const IMPLIED_DIRECTORY: &str = "trusted.overlay.containerd.implied";
/// File beside the directory that an active snapshot is written to: its layer may be given as a whole
/// instead, as the file [`EROFS_IMAGE`] beside it.
pub const EROFS_LAYER: &str = ".erofslayer";
/// The EROFS image that is a layer.
pub const EROFS_IMAGE: &str = "layer.erofs";
/// One that is being written. What a killed daemon has left of it is in nobody's way, and is taken away.
pub const EROFS_PART: &str = "layer.erofs.part";

/// One mount to perform, in the order of the list it stands in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mount {
    /// File system type: `overlay`, `bind`, …
    pub kind: String,
    /// Source: device, directory or the type's name.
    pub source: String,
    /// Sub path of the mount point; empty for the point itself.
    pub target: String,
    /// Options as in mount(8).
    pub options: Vec<String>,
}

impl Mount {
    /// The value of option `name=value`.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options
            .iter()
            .find_map(|o| o.strip_prefix(name)?.strip_prefix('='))
    }

    /// True when the options forbid writing.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.iter().any(|o| o == "ro")
    }
}

/// A mount that the daemon performed for a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActiveMount {
    /// What was mounted, after all that was to be filled in.
    pub mount: Mount,
    /// When.
    pub mounted_at: Option<SystemTime>,
    /// Where: a directory, or a link to a device.
    pub mount_point: String,
    /// What its handler knows about it.
    pub data: BTreeMap<String, String>,
}

/// A named list of mounts: those at work in the daemon's care, and those left to the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activation {
    /// The client's name for it.
    pub name: String,
    /// Performed, in order.
    pub active: Vec<ActiveMount>,
    /// To be performed by whoever wants to see the files.
    pub system: Vec<Mount>,
    /// Labels.
    pub labels: Labels,
}

impl Filterable for Activation {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["name"] => Some(self.name.clone()),
            ["labels", key @ ..] => self.labels.field(key),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_whole_name() {
        let mount = Mount {
            kind: "overlay".into(),
            options: vec!["index=off".into(), "lowerdir=/a:/b".into()],
            ..Mount::default()
        };
        assert_eq!(mount.option("lowerdir"), Some("/a:/b"));
        assert_eq!(mount.option("lower"), None);
        assert!(!mount.is_read_only());
    }
}
