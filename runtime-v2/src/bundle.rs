//! Bundles: one directory per task under the state directory and its twin under the root directory.
//!
//! Invariant: a directory under its plain name is a whole bundle or one that is being made by this
//! process; removal renames it to `.id` first. Nothing is ever removed through a mounted root file
//! system: the mount point is unmounted and must be empty before its bundle goes. A file that cannot be
//! read is not one that is not there.

mod facts;

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use types::{BUNDLES_DIR, Code, ContainerId, Error, Errors, Exit, Namespace, Result, bundle_file};

pub(crate) use self::facts::Ended;
use crate::bootstrap::Address;

/// File with the id of the sandbox that the task belongs to.
const SANDBOX: &str = "sandbox";
/// Directory of the checkpoint that the task comes from.
const CHECKPOINT: &str = "checkpoint";
/// The same once it has served.
const GONE: &str = ".checkpoint";

/// Where all bundles of a daemon live.
#[derive(Clone, Debug)]
pub(crate) struct Bundles {
    state: PathBuf,
    root: PathBuf,
}

/// One bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bundle {
    path: PathBuf,
    work: PathBuf,
}

/// The part of the OCI spec that decides who may enter the bundle.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SpecHead {
    linux: Option<LinuxHead>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LinuxHead {
    gid_mappings: Vec<GidMapping>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GidMapping {
    #[serde(rename = "containerID")]
    container: u32,
    #[serde(rename = "hostID")]
    host: u32,
    size: u32,
}

impl Bundles {
    /// Bundles under `state`, with work directories under `root`.
    pub(crate) fn new(state: &Path, root: &Path) -> Self {
        Self {
            state: state.join(BUNDLES_DIR),
            root: root.join(BUNDLES_DIR),
        }
    }

    /// The bundle of a task, whether it exists or not.
    pub(crate) fn of(&self, namespace: &Namespace, id: &ContainerId) -> Bundle {
        let relative = Path::new(namespace.as_str()).join(id.as_str());
        Bundle {
            path: self.state.join(&relative),
            work: self.root.join(&relative),
        }
    }

    /// Makes the bundle of a task. On failure nothing of it is left.
    ///
    /// # Errors
    /// `AlreadyExists`, else the errno of the step that failed.
    pub(crate) fn create(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        spec: &[u8],
        sandbox: &str,
    ) -> Result<Bundle> {
        let bundle = self.of(namespace, id);
        make_parents(&bundle.path)?;
        make_parents(&bundle.work)?;
        match DirBuilder::new().mode(0o700).create(&bundle.path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::already_exists(format_args!(
                    "bundle {}",
                    bundle.path.display()
                )));
            }
            made => made.map_err(|e| at("mkdir", &bundle.path, e))?,
        }
        bundle.fill(spec, sandbox).inspect_err(|_| {
            // The first failure is the one to tell.
            drop(bundle.remove());
        })?;
        Ok(bundle)
    }

    /// All tasks that have a bundle directory. Names that are no identifiers are not ours.
    pub(crate) fn list(&self) -> Result<Vec<(Namespace, ContainerId)>> {
        let mut all = Vec::new();
        for namespace in names(&self.state)? {
            let Ok(parsed) = namespace.parse::<Namespace>() else {
                continue;
            };
            for id in names(&self.state.join(&namespace))? {
                if let Ok(id) = id.parse() {
                    all.push((parsed.clone(), id));
                }
            }
        }
        Ok(all)
    }

    /// Removes the leftovers.
    ///
    /// # Errors
    /// All failures, after everything was tried.
    pub(crate) fn sweep(&self) -> Result<()> {
        self.each_leftover(|path| remove_tree(&path))
    }

    /// What interrupted removals left (`.id`, and checkpoints that have served) and work directories
    /// without a bundle.
    ///
    /// # Errors
    /// All failures of listing.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        self.each_leftover(|path| {
            all.push(path);
            Ok(())
        })?;
        Ok(all)
    }

    /// Each is visited as soon as it is seen: beside a daemon at work its name may get a bundle soon.
    fn each_leftover(&self, mut visit: impl FnMut(PathBuf) -> Result<()>) -> Result<()> {
        let mut errors = Errors::default();
        for top in [&self.state, &self.root] {
            for namespace in errors.note(names(top)).unwrap_or_default() {
                let dir = top.join(&namespace);
                for name in errors.note(names(&dir)).unwrap_or_default() {
                    let path = dir.join(&name);
                    let twin = self.state.join(&namespace).join(&name);
                    let orphan = top == &self.root && matches!(twin.try_exists(), Ok(false));
                    let left = if name.starts_with('.') || orphan {
                        path
                    } else {
                        path.join(GONE)
                    };
                    if left.symlink_metadata().is_ok() {
                        errors.note(visit(left));
                    }
                }
            }
        }
        errors.into_result()
    }
}

impl Bundle {
    /// The bundle's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the bundle.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where a checkpoint is that belongs to the task: beside the bundle, on disk.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.work.join(CHECKPOINT)
    }

    /// Puts the checkpoint that the task was restored from out of the way, where the caller may take
    /// its time to remove it: a new task of this id does not meet it. `None` when there is none.
    pub(crate) fn forget_checkpoint(&self) -> Option<PathBuf> {
        let (path, gone) = (self.checkpoint(), self.work.join(GONE));
        match fs::rename(&path, &gone) {
            Ok(()) => Some(gone),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                // It goes with the bundle.
                tracing::warn!(path = %path.display(), %error, "put checkpoint aside");
                None
            }
        }
    }

    fn fill(&self, spec: &[u8], sandbox: &str) -> Result<()> {
        if let Some(gid) = remapped_group(spec) {
            std::os::unix::fs::chown(&self.path, None, Some(gid))
                .map_err(|e| at("chown", &self.path, e))?;
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o710))
                .map_err(|e| at("chmod", &self.path, e))?;
        }
        let rootfs = self.file(bundle_file::ROOTFS);
        make_dir(&rootfs)?;
        match make_dir(&self.work) {
            Err(e) if e.errno() == Some(EEXIST) => {
                // Left by a task that died with its daemon.
                remove_tree(&self.work)?;
                make_dir(&self.work)?;
            }
            made => made?,
        }
        let link = self.file(bundle_file::WORK);
        symlink(&self.work, &link).map_err(|e| at("symlink", &link, e))?;
        self.put(bundle_file::CONFIG, spec, 0o644)?;
        if !sandbox.is_empty() {
            self.put(SANDBOX, sandbox.as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// Writes a file of the bundle that does not exist yet.
    fn put(&self, name: &str, data: &[u8], mode: u32) -> Result<()> {
        let path = self.file(name);
        let file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path);
        file.and_then(|mut file| file.write_all(data))
            .map_err(|e| at("write", &path, e))
    }

    /// Replaces a file of the bundle: readers see the old or the new content.
    fn replace(&self, name: &str, data: &[u8], mode: u32) -> Result<()> {
        sys::fs::write_atomic_with(&self.file(name), data, mode, sys::fs::Flush::Volatile)
    }

    /// Remembers the shim's binary for a later start of the daemon.
    pub(crate) fn write_binary(&self, binary: &Path) -> Result<()> {
        let text = binary.as_os_str().as_encoded_bytes();
        self.put(bundle_file::SHIM_BINARY, text, 0o600)
    }

    /// Remembers how to reach the shim.
    pub(crate) fn write_address(&self, address: &Address) -> Result<()> {
        self.replace(bundle_file::BOOTSTRAP, &address.to_json()?, 0o644)
    }

    /// Writes `bootstrap.json` for a shim of an older generation that left only its address.
    ///
    /// Parity: core/runtime/v2/shim_manager.go restoreBootstrapParams: what looks at bundles beside the
    /// daemon reads that file alone.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn migrate_address(&self, address: &Address) -> Result<()> {
        let path = self.file(bundle_file::BOOTSTRAP);
        match path.try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => self.write_address(address),
            Err(e) => Err(at("stat", &path, e)),
        }
    }

    /// True when the directory has no entry at all.
    pub(crate) fn is_empty(&self) -> bool {
        names(&self.path).is_ok_and(|all| all.is_empty())
    }

    /// Removes bundle and work directory; a bundle that is gone already is no error.
    ///
    /// # Errors
    /// What failed; the bundle stays under its name when its root file system cannot be unmounted.
    pub(crate) fn remove(&self) -> Result<()> {
        let rootfs = self.file(bundle_file::ROOTFS);
        if rootfs.exists() {
            sys::mount::unmount_recursive(&rootfs)?;
        }
        match fs::remove_dir(&rootfs) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &rootfs, e));
            }
            _ => {}
        }
        let mut errors = Errors::default();
        if let Some(theirs) = self.work_elsewhere() {
            // Before its only name. Where there is something in it, somebody else may have made it.
            let _kept = fs::remove_dir(&theirs);
        }
        errors.note(remove_renamed(&self.path));
        errors.note(remove_renamed(&self.work));
        errors.into_result()
    }

    /// The work directory below the root of another daemon, which has made the bundle: nobody but who removes
    /// the bundle knows of it. Whatever else the link names is not ours to remove.
    fn work_elsewhere(&self) -> Option<PathBuf> {
        let theirs = fs::read_link(self.file(bundle_file::WORK)).ok()?;
        let id = self.work.file_name()?;
        let namespace = self.work.parent()?.file_name()?;
        let tail = Path::new(BUNDLES_DIR).join(namespace).join(id);
        let is_one = theirs.is_absolute() && theirs.ends_with(&tail) && theirs != self.work;
        let is_straight = !theirs.components().any(|part| part == Component::ParentDir);
        (is_one && is_straight && theirs != self.path).then_some(theirs)
    }
}

const EEXIST: i32 = 17;

fn at(operation: &str, path: &Path, error: io::Error) -> Error {
    Error::os(format_args!("{operation} {}", path.display()), error)
}

fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o711)
        .create(path)
        .map_err(|e| at("mkdir", path, e))
}

fn make_parents(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(parent)
        .map_err(|e| at("mkdir", parent, e))
}

/// Names in a directory; none when it does not exist.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        entries => entries.map_err(|e| at("read", dir, e))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| at("read", dir, e))?;
        all.extend(entry.file_name().into_string().ok());
    }
    Ok(all)
}

/// Renames to the hidden name, so that a half-removed directory is never taken for a bundle.
fn remove_renamed(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}"));
    // An earlier removal may have been cut off.
    remove_tree(&hidden)?;
    match fs::rename(path, &hidden) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => {
            renamed.map_err(|e| at("rename", path, e))?;
            remove_tree(&hidden)
        }
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    let rootfs = path.join(bundle_file::ROOTFS);
    if rootfs.exists() {
        sys::mount::unmount_recursive(&rootfs)?;
        fs::remove_dir(&rootfs).map_err(|e| at("remove", &rootfs, e))?;
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            fs::remove_file(path).map_err(|e| at("remove", path, e))
        }
        done => done.map_err(|e| at("remove", path, e)),
    }
}

/// Group of the container's root user on the host, when users are mapped.
fn remapped_group(spec: &[u8]) -> Option<u32> {
    let head: SpecHead = serde_json::from_slice(spec).ok()?;
    let mappings = head.linux?.gid_mappings;
    mappings
        .iter()
        .find(|mapping| mapping.container == 0 && mapping.size > 0)
        .map(|mapping| mapping.host)
}

/// True unless the kernel says that there is no process with this pid (a zombie counts as none). Without
/// a descriptor to ask with, nobody knows.
pub(crate) fn is_alive(pid: u32) -> bool {
    match sys::pidfd::open(pid) {
        Ok(process) => sys::pidfd::is_alive(&process).unwrap_or(true),
        Err(error) => !error.is_not_found() && !error.is(Code::InvalidArgument),
    }
}

/// Time of an exit that nobody recorded.
pub(crate) fn lost(pid: u32) -> Exit {
    /// What Go answers when the shim vanished and could not tell.
    const UNKNOWN_STATUS: u32 = 255;
    Exit {
        pid,
        status: UNKNOWN_STATUS,
        at: SystemTime::now(),
    }
}

#[cfg(test)]
mod tests;
