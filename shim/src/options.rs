//! Runtime options: from the request, and kept in the bundle for a later `delete`.

use std::path::{Path, PathBuf};

use protos::runc::{CheckpointOptions, Options as Wire};
use protos::well_known::Any;
use protos::{Message as _, any::Named as _};
use serde::{Deserialize, Serialize};
use types::{Error, Result, bundle_file};

/// The options of a container's runtime. As JSON they have the names that the Go shim writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct Options {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) no_pivot_root: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) no_new_keyring: bool,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) shim_cgroup: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_uid: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_gid: u32,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) binary_name: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) root: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) systemd_cgroup: bool,
    /// Where CRIU works at a restore. The image's path is the daemon's business.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) criu_work_path: String,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where the default daemon keeps its state; only there the runtime's state is where Go has it.
const DEFAULT_STATE: &str = "/run/containerd";

impl Options {
    /// Options of a request; an absent or empty value means the defaults.
    ///
    /// # Errors
    /// `InvalidArgument` for another type or damaged bytes.
    pub(crate) fn from_any(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if name != Wire::FULL_NAME {
            return Err(Error::invalid_argument(format_args!(
                "runtime options of type {:?}",
                any.type_url
            )));
        }
        let wire = Wire::parse_from_bytes(&any.value)
            .map_err(|e| Error::invalid_argument(format_args!("runtime options: {e}")))?;
        Ok(Self {
            no_pivot_root: wire.no_pivot_root,
            no_new_keyring: wire.no_new_keyring,
            shim_cgroup: wire.shim_cgroup,
            io_uid: wire.io_uid,
            io_gid: wire.io_gid,
            binary_name: wire.binary_name,
            root: wire.root,
            systemd_cgroup: wire.systemd_cgroup,
            criu_work_path: wire.criu_work_path,
        })
    }

    /// The runtime's binary.
    pub(crate) fn binary(&self) -> &str {
        if self.binary_name.is_empty() {
            "runc"
        } else {
            &self.binary_name
        }
    }

    /// Where the runtime keeps the state of this bundle's containers: as told, else as Go has it for
    /// the default daemon, else below the daemon's own state, so that two daemons never meet.
    pub(crate) fn runtime_root(&self, bundle: &Path, namespace: &str) -> PathBuf {
        let root = if self.root.is_empty() {
            // <state>/io.containerd.runtime.v2.task/<namespace>/<id>
            let state = bundle
                .ancestors()
                .nth(3)
                .filter(|state| !state.as_os_str().is_empty());
            state.unwrap_or(Path::new(DEFAULT_STATE)).join("runc")
        } else {
            PathBuf::from(&self.root)
        };
        root.join(namespace)
    }

    /// Keeps the options in the bundle.
    ///
    /// # Errors
    /// The errno of writing.
    pub(crate) fn save(&self, bundle: &Path) -> Result<()> {
        use sys::fs::Flush::Volatile;
        if !self.binary_name.is_empty() {
            let file = bundle.join(bundle_file::RUNTIME);
            sys::fs::write_atomic_with(&file, self.binary_name.as_bytes(), 0o600, Volatile)?;
        }
        if *self != Self::default() {
            let text = serde_json::to_vec(self).map_err(Error::internal)?;
            sys::fs::write_atomic_with(&bundle.join(bundle_file::OPTIONS), &text, 0o600, Volatile)?;
        }
        Ok(())
    }

    /// The options that a bundle keeps; what is missing or damaged is at its default.
    pub(crate) fn load(bundle: &Path) -> Self {
        let file = std::fs::read(bundle.join(bundle_file::OPTIONS)).ok();
        let mut options: Self = file
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        if let Ok(binary) = std::fs::read_to_string(bundle.join(bundle_file::RUNTIME)) {
            options.binary_name = binary.trim().to_owned();
        }
        options
    }
}

/// The runtime's flags for the options of a checkpoint (runc-checkpoint(8)), without its directories.
pub(crate) fn checkpoint_flags(options: &CheckpointOptions) -> Vec<String> {
    let switches = [
        (!options.exit, "--leave-running"),
        (options.open_tcp, "--tcp-established"),
        (options.external_unix_sockets, "--ext-unix-sk"),
        (options.terminal, "--shell-job"),
        (options.file_locks, "--file-locks"),
    ];
    let values = [
        ("--parent-path", &options.parent_path),
        ("--manage-cgroups-mode", &options.cgroups_mode),
    ];
    let switches = switches
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, flag)| *flag);
    let values = values.into_iter().filter(|(_, value)| !value.is_empty());
    let values = values.flat_map(|(flag, value)| [flag, value.as_str()]);
    let empty = options
        .empty_namespaces
        .iter()
        .flat_map(|kind| ["--empty-ns", kind.as_str()]);
    switches
        .chain(values)
        .chain(empty)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Options {
        Options {
            binary_name: "crun".into(),
            systemd_cgroup: true,
            io_uid: 5,
            ..Options::default()
        }
    }

    #[test]
    fn options_survive_in_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Options::load(dir.path()), Options::default());
        Options::default().save(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        sample().save(dir.path()).unwrap();
        assert_eq!(Options::load(dir.path()), sample());
        let text = std::fs::read_to_string(dir.path().join("options.json")).unwrap();
        assert_eq!(
            text,
            r#"{"io_uid":5,"binary_name":"crun","systemd_cgroup":true}"#
        );
    }

    #[test]
    fn requests_are_read_and_other_types_refused() {
        let wire = Wire {
            binary_name: "crun".into(),
            io_uid: 5,
            systemd_cgroup: true,
            ..Wire::default()
        };
        let mut any = Any::new();
        assert_eq!(Options::from_any(None).unwrap(), Options::default());
        assert_eq!(Options::from_any(Some(&any)).unwrap(), Options::default());
        any.type_url = "type.googleapis.com/containerd.runc.v1.Options".into();
        any.value = wire.write_to_bytes().unwrap();
        assert_eq!(Options::from_any(Some(&any)).unwrap(), sample());
        any.type_url = "io.containerd.runsc.v1.options".into();
        assert!(Options::from_any(Some(&any)).is_err_and(|e| e.is(types::Code::InvalidArgument)));
    }

    #[test]
    fn runtime_state_is_below_the_daemons_own() {
        let task = "io.containerd.runtime.v2.task";
        let mut options = Options::default();
        let root = |options: &Options, state: &str| {
            options.runtime_root(&Path::new(state).join(task).join("ns/c1"), "ns")
        };
        assert_eq!(
            root(&options, "/run/containerd"),
            Path::new("/run/containerd/runc/ns")
        );
        assert_eq!(
            root(&options, "/srv/state"),
            Path::new("/srv/state/runc/ns")
        );
        options.root = "/elsewhere".into();
        assert_eq!(root(&options, "/srv/state"), Path::new("/elsewhere/ns"));
    }

    #[test]
    fn every_option_of_a_checkpoint_reaches_the_runtime() {
        assert_eq!(
            checkpoint_flags(&CheckpointOptions::default()),
            ["--leave-running"]
        );
        let all = CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            cgroups_mode: "soft".into(),
            parent_path: "/p".into(),
            ..CheckpointOptions::default()
        };
        let want = "--tcp-established --ext-unix-sk --shell-job --file-locks \
                    --parent-path /p --manage-cgroups-mode soft --empty-ns network";
        assert_eq!(checkpoint_flags(&all).join(" "), want);
    }
}
