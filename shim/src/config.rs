//! The few fields of a bundle's `config.json` that the shim itself needs. Everything else is the
//! runtime's.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use types::{Error, Result, bundle_file};

/// What the shim reads of an OCI spec.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Config {
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// Annotations that put containers into one shim, the first that is set counts.
const GROUPS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

impl Config {
    /// Reads the spec of a bundle.
    ///
    /// # Errors
    /// `NotFound` when there is none, `InvalidArgument` when it is no JSON object of that form.
    pub(crate) fn load(bundle: &Path) -> Result<Self> {
        let path = bundle.join(bundle_file::CONFIG);
        let bytes = std::fs::read(&path).map_err(|e| {
            let absent = e.kind() == std::io::ErrorKind::NotFound;
            let error = Error::os(format_args!("open {}", path.display()), e);
            if absent {
                error.reclass(types::Code::NotFound)
            } else {
                error
            }
        })?;
        Self::parse(&bytes).map_err(|e| e.ctx(path.display().to_string()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(Error::invalid_argument)
    }

    /// Name of the group whose containers share a shim.
    pub(crate) fn group(&self) -> Option<&str> {
        GROUPS
            .iter()
            .find_map(|name| self.annotations.get(*name))
            .map(String::as_str)
    }

    /// True when the container has process ids of its own: then all of it dies with its init.
    pub(crate) fn has_own_pids(&self) -> bool {
        let namespaces = self.linux.iter().flat_map(|linux| &linux.namespaces);
        namespaces
            .into_iter()
            .any(|ns| ns.kind == "pid" && ns.path.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_and_pid_namespace_are_found() {
        let cases = [
            ("{}", None, false),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#,
                Some("pod"),
                false,
            ),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
                Some("g"),
                false,
            ),
            (
                r#"{"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#,
                None,
                true,
            ),
            (
                r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#,
                None,
                false,
            ),
        ];
        for (text, group, own) in cases {
            let config = Config::parse(text.as_bytes()).unwrap();
            assert_eq!(
                (config.group(), config.has_own_pids()),
                (group, own),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_or_broken_spec_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Config::load(dir.path()).unwrap_err().is_not_found());
        std::fs::write(dir.path().join("config.json"), "{\"annotations\": 3").unwrap();
        let error = Config::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
    }
}
