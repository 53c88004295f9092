//! Mount: the whole treaty between snapshotters, the differ and the runtime.

/// Attribute, with the value `y`, of the root of a layer that was unpacked without knowing what lies
/// below: its whiteouts and its [`IMPLIED_DIRECTORY`] marks are to be looked at when that is known.
pub const UNSETTLED_LAYER: &str = "trusted.overlay.containerd.unsettled";
/// Attribute, with the value `y`, of a directory that no entry of its layer describes: it is to look
/// like the one that it covers.
pub const IMPLIED_DIRECTORY: &str = "trusted.overlay.containerd.implied";

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
