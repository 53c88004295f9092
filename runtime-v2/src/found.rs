//! What bundles tell about their containers: for a daemon that has lost its records, and for a check of
//! them all.
//!
//! Invariant: what looks only reads. A bundle that cannot be read is told and never touched; what
//! [`sweep`] removes is no bundle.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use types::{ContainerId, DEFAULT_RUNTIME, Error, Namespace, Result, bundle_file};

use crate::bundle::{Bundle, Bundles};

/// A spec is not read beyond this.
const SPEC_LIMIT: u64 = 64 << 20;

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

/// All that is where bundles are.
#[derive(Debug, Default)]
pub struct Survey {
    /// The tasks that have a bundle, whole or not.
    pub tasks: Vec<(Namespace, ContainerId)>,
    /// Those of them whose bundle does not tell what the task is, and why.
    pub unreadable: Vec<(Namespace, ContainerId, Error)>,
    /// What [`sweep`] removes: the rest of removals that were cut off, and work directories without a
    /// bundle.
    pub leftovers: Vec<PathBuf>,
}

impl Survey {
    /// Forgets the faults that an earlier survey has not seen.
    pub fn retain_old(&mut self, earlier: &Self) {
        self.unreadable.retain(|(namespace, id, _)| {
            let mut before = earlier.unreadable.iter();
            before.any(|(n, i, _)| (n, i) == (namespace, id))
        });
        self.leftovers
            .retain(|path| earlier.leftovers.contains(path));
    }
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
        let read = spec(&bundle).and_then(|spec| Ok((spec, bundle.binary()?)));
        match read {
            Ok((spec, binary)) => all.push(Found {
                runtime: binary.map_or_else(|| DEFAULT_RUNTIME.into(), |p| name(&p)),
                namespace,
                id,
                spec,
            }),
            Err(error) => tracing::warn!(%namespace, %id, %error, "bundle tells nothing"),
        }
    }
    Ok(all)
}

/// What is where bundles are under `state` and `root`. One that is being made or removed at this moment
/// may be taken for damaged or for left over.
///
/// # Errors
/// The errno of listing the bundles.
pub fn survey(state: &Path, root: &Path) -> Result<Survey> {
    let bundles = Bundles::new(state, root);
    let tasks = bundles.list()?;
    let mut unreadable = Vec::new();
    for (namespace, id) in &tasks {
        let bundle = bundles.of(namespace, id);
        if let Err(error) = readable(&bundle) {
            unreadable.push((namespace.clone(), id.clone(), error));
        }
    }
    Ok(Survey {
        tasks,
        unreadable,
        leftovers: bundles.leftovers()?,
    })
}

/// Removes the leftovers. Nobody may be making a bundle meanwhile.
///
/// # Errors
/// All failures, after everything was tried.
pub fn sweep(state: &Path, root: &Path) -> Result<()> {
    Bundles::new(state, root).sweep()
}

/// Whether the bundle's spec is there and is JSON; what it says is the runtime's to judge.
fn readable(bundle: &Bundle) -> Result<()> {
    let spec = spec(bundle)?;
    serde_json::from_slice::<IgnoredAny>(&spec).map_err(|error| {
        let path = bundle.file(bundle_file::CONFIG);
        Error::data_loss(format_args!("{} is no JSON", path.display())).with_source(error)
    })?;
    Ok(())
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

    #[test]
    fn a_survey_tells_what_cannot_be_read_and_what_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let (state, root) = (dir.path().join("state"), dir.path().join("root"));
        let bundles = Bundles::new(&state, &root);
        let ns: Namespace = "n".parse().unwrap();
        let make = |id: &str| {
            let id = id.parse().unwrap();
            bundles.create(&ns, &id, b"{}", "").unwrap()
        };
        let whole = make("whole");
        let missing = make("missing");
        std::fs::remove_file(missing.file(bundle_file::CONFIG)).unwrap();
        let junk = make("junk");
        std::fs::write(junk.file(bundle_file::CONFIG), "{\"a\":").unwrap();
        let left = [
            whole.path().with_file_name(".half"),
            whole.checkpoint().with_file_name(".checkpoint"),
            root.join(types::BUNDLES_DIR).join("n/alone"),
        ];
        for path in &left {
            std::fs::create_dir_all(path.join("rest")).unwrap();
        }
        let told = survey(&state, &root).unwrap();
        assert_eq!(told.tasks.len(), 3);
        let unreadable = told.unreadable.iter();
        let mut unreadable: Vec<_> = unreadable.map(|(_, id, _)| id.to_string()).collect();
        unreadable.sort();
        assert_eq!(unreadable, ["junk", "missing"]);
        let mut leftovers = told.leftovers;
        leftovers.sort();
        let mut want = left.to_vec();
        want.sort();
        assert_eq!(leftovers, want);
        sweep(&state, &root).unwrap();
        let mut told = survey(&state, &root).unwrap();
        assert!(told.leftovers.is_empty(), "{:?}", told.leftovers);
        told.retain_old(&Survey::default());
        assert!(told.unreadable.is_empty(), "all of it is new");
        assert!(whole.file(bundle_file::CONFIG).exists());
    }
}
