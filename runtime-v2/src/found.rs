//! What bundles tell about their containers: for a daemon that has lost its records.
//!
//! Invariant: reads only; a bundle that cannot be read is told to the log and left out, never touched.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use types::{ContainerId, Error, Namespace, Result, bundle_file};

use crate::bundle::{Bundle, Bundles};

/// A spec is not read beyond this.
const SPEC_LIMIT: u64 = 64 << 20;
/// Runtime of a bundle that does not tell.
const DEFAULT_RUNTIME: &str = "io.containerd.runc.v2";

/// A task's bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Namespace of the container.
    pub namespace: Namespace,
    /// Its id.
    pub id: ContainerId,
    /// Its OCI spec, as JSON.
    pub spec: Vec<u8>,
    /// Its runtime, by name or path.
    pub runtime: String,
}

/// The tasks that have a bundle under `state`.
///
/// # Errors
/// The errno of listing the bundles.
pub fn found(state: &Path, root: &Path) -> Result<Vec<Found>> {
    let bundles = Bundles::new(state, root);
    let mut all = Vec::new();
    for (namespace, id) in bundles.list()? {
        let bundle = bundles.of(&namespace, &id);
        match spec(&bundle) {
            Ok(spec) => all.push(Found {
                runtime: bundle
                    .binary()
                    .map_or_else(|| DEFAULT_RUNTIME.into(), |p| name(&p)),
                namespace,
                id,
                spec,
            }),
            Err(error) => tracing::warn!(%namespace, %id, %error, "bundle tells nothing"),
        }
    }
    Ok(all)
}

fn spec(bundle: &Bundle) -> Result<Vec<u8>> {
    let path = bundle.file(bundle_file::CONFIG);
    let os = |e| Error::os(format_args!("read {}", path.display()), e);
    let mut spec = Vec::new();
    let file = File::open(&path).map_err(os)?;
    file.take(SPEC_LIMIT + 1)
        .read_to_end(&mut spec)
        .map_err(os)?;
    if spec.len() as u64 > SPEC_LIMIT {
        let path = path.display();
        return Err(Error::resource_exhausted(format_args!(
            "{path} is too long"
        )));
    }
    Ok(spec)
}

/// The name whose shim this is, or its path: both name a runtime.
fn name(binary: &Path) -> String {
    let file = binary.file_name().and_then(|name| name.to_str());
    let parts = file.and_then(|file| file.strip_prefix("containerd-shim-"));
    match parts.and_then(|parts| parts.rsplit_once('-')) {
        Some((kind, version)) if !kind.contains('.') && !version.contains('.') => {
            format!("io.containerd.{kind}.{version}")
        }
        _ => binary.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_names_its_runtime() {
        for (binary, runtime) in [
            ("/usr/bin/containerd-shim-runc-v2", "io.containerd.runc.v2"),
            (
                "/x/containerd-shim-kata-qemu-v2",
                "io.containerd.kata-qemu.v2",
            ),
            ("/x/my-shim", "/x/my-shim"),
            ("/x/containerd-shim-a.b-v2", "/x/containerd-shim-a.b-v2"),
        ] {
            assert_eq!(name(binary.as_ref()), runtime);
        }
    }

    #[test]
    fn bundles_tell_spec_and_runtime() {
        let root = tempfile::tempdir().unwrap();
        let bundles = Bundles::new(root.path(), root.path());
        let (ns, id): (Namespace, ContainerId) = ("n".parse().unwrap(), "c".parse().unwrap());
        let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
        bundle
            .write_binary("/usr/bin/containerd-shim-runc-v2".as_ref())
            .unwrap();
        std::fs::create_dir_all(bundle.path().with_file_name("half")).unwrap();
        let all = found(root.path(), root.path()).unwrap();
        assert_eq!(
            all,
            [Found {
                namespace: ns,
                id,
                spec: b"{}".to_vec(),
                runtime: "io.containerd.runc.v2".into(),
            }]
        );
    }
}
