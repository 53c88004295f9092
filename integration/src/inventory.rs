//! What the machine holds on behalf of one host: taken at the end, it must be empty.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

/// Where to look for traces.
pub(crate) struct Places<'a> {
    /// Private directory: state, sockets.
    pub(crate) dir: &'a Path,
    /// The daemon's root, which may be elsewhere.
    pub(crate) root: &'a Path,
    /// Every namespace that the test used.
    pub(crate) namespaces: Vec<String>,
    /// Mount table to read: that of the daemon, which may have a mount namespace of its own.
    pub(crate) mounts: String,
    /// Processes that may exist: the daemon.
    pub(crate) allowed: Vec<u32>,
}

/// Traces, one line each.
pub(crate) fn traces(places: &Places<'_>) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(mounts(places));
    found.extend(processes(places));
    found.extend(cgroups(places));
    found.extend(files(places));
    found
}

fn mounts(places: &Places<'_>) -> Vec<String> {
    // What is mounted at a directory above the root is the test's.
    let (dir, root) = (places.dir.to_string_lossy(), places.root.to_string_lossy());
    let of = |line: &&str| line.contains(&*dir) || line.contains(&*root);
    places
        .mounts
        .lines()
        .filter(of)
        .map(|line| format!("mount: {line}"))
        .collect()
}

/// Processes whose command line or environment names the private directory, or whose cgroup is named
/// after the namespace.
fn processes(places: &Places<'_>) -> Vec<String> {
    let dir = places.dir.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("read /proc").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        if pid == std::process::id() || places.allowed.contains(&pid) {
            continue;
        }
        // A process may end while it is looked at: then it is no trace.
        let text = |name: &str| {
            let raw = fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&raw).replace('\0', " ")
        };
        let (line, cgroup) = (text("cmdline"), text("cgroup"));
        let ours = line.contains(&*dir)
            || places
                .namespaces
                .iter()
                .any(|ns| cgroup.contains(&format!("/{ns}/")));
        if ours {
            found.push(format!("process {pid}: {line}"));
        } else if zombie_of(&text("stat")).is_some_and(|parent| places.allowed.contains(&parent)) {
            // It has no command line any more; its parent should have reaped it.
            found.push(format!("zombie {pid}: {}", text("comm").trim()));
        }
    }
    found
}

/// The parent of a process that has ended and was not reaped, by its line in proc_pid_stat(5).
fn zombie_of(stat: &str) -> Option<u32> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let is_zombie = fields.next()? == "Z";
    fields.next()?.parse().ok().filter(|_| is_zombie)
}

/// Cgroups below the namespace's. The namespace's own directory stays, as with the original
/// (`namespaces remove --cgroup` takes it away), and is removed here.
fn cgroups(places: &Places<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let roots = hierarchies();
    for (root, namespace) in roots
        .iter()
        .flat_map(|r| places.namespaces.iter().map(move |n| (r, n)))
    {
        let parent = root.join(namespace);
        for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
            if child.path().is_dir() {
                found.push(format!("cgroup: {}", child.path().display()));
            }
        }
        drop(fs::remove_dir(&parent));
    }
    found
}

/// The roots of all hierarchies: the directories of version 1, and the only one of version 2.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let entries = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    let mut roots: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir()).collect();
    roots.push("/sys/fs/cgroup".into());
    roots
}

/// Bundles, work directories, runtime state, shim sockets, ingests and half-made snapshots.
fn files(places: &Places<'_>) -> Vec<String> {
    let (root, state) = (places.root, places.dir.join("state"));
    let mut found = Vec::new();
    for base in [root, &state] {
        found.extend(grandchildren(
            &base.join("io.containerd.runtime.v2.task"),
            "bundle",
        ));
    }
    found.extend(grandchildren(&state.join("runc"), "runtime state"));
    for namespace in &places.namespaces {
        // Where the Go shim has it, whatever the daemon's state directory is.
        let runtime = Path::new("/run/containerd/runc").join(namespace);
        found.extend(children(&runtime, "runtime state"));
        drop(fs::remove_dir(runtime));
    }
    found.extend(children(
        &root.join("io.containerd.content.v1.content/ingest"),
        "ingest",
    ));
    for name in ["overlayfs", "native"] {
        let snapshots = root.join(format!("io.containerd.snapshotter.v1.{name}"));
        let half = children(&snapshots.join("snapshots"), "snapshot");
        found.extend(half.into_iter().filter(|line| line.contains("/new-")));
        let half = children(&snapshots, "snapshot");
        found.extend(half.into_iter().filter(|line| line.contains("/new-")));
    }
    let mut stack = vec![state];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_socket() {
                found.push(format!("socket: {}", entry.path().display()));
            }
        }
    }
    found
}

fn children(dir: &Path, what: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| format!("{what}: {}", e.path().display()))
        .collect()
}

fn grandchildren(dir: &Path, what: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.flat_map(|e| children(&e.path(), what)).collect()
}

/// The directories of snapshots in the directory of a snapshotter: not those that are ready for the next one.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn snapshots_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("read the snapshots");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_ready = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("ready-")
    };
    paths.filter(|path| !is_ready(path)).collect()
}
