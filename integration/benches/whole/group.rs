//! Control groups of the bench: one for each subject, so that the CPU time of all its processes
//! (daemon, shims, runtime, containers), also of those that are long gone, is one number.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the hierarchy that counts CPU time may be: v1 first, whose mounts lie below the v2 root's
/// place in a hybrid setup.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup/cpuacct",
    "/sys/fs/cgroup/cpu,cpuacct",
    "/sys/fs/cgroup",
];

/// A group, removed with everything below it when dropped.
#[derive(Debug)]
pub(crate) struct Group {
    name: String,
    dir: PathBuf,
}

impl Group {
    /// Makes the group of a subject. Two benches on one machine do not meet.
    pub(crate) fn make(subject: &str) -> Self {
        let name = format!("ctd-bench-{}-{subject}", std::process::id());
        let hierarchy = HIERARCHIES.into_iter().map(Path::new).find(|p| p.is_dir());
        let dir = hierarchy.expect("control groups").join(&name);
        fs::create_dir_all(&dir).expect("make the group");
        Self { name, dir }
    }

    /// As the runtime spec names it, without the slash.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Moves a process into a group below: processes are in leaves only, as v2 wants it.
    pub(crate) fn join(&self, leaf: &str, pid: u32) {
        fs::write(self.leaf(leaf), pid.to_string()).expect("join the group");
    }

    /// Where a process writes its id to be in a group below.
    pub(crate) fn leaf(&self, leaf: &str) -> PathBuf {
        let dir = self.dir.join(leaf);
        fs::create_dir_all(&dir).expect("make the leaf");
        dir.join("cgroup.procs")
    }

    /// CPU time of everything that ran in it so far, in ms.
    pub(crate) fn cpu_ms(&self) -> f64 {
        Self::used(&self.dir)
    }

    /// The same of one leaf.
    pub(crate) fn leaf_cpu_ms(&self, leaf: &str) -> f64 {
        Self::used(&self.dir.join(leaf))
    }

    /// Processes in a leaf.
    pub(crate) fn processes(&self, leaf: &str) -> usize {
        let text = fs::read_to_string(self.dir.join(leaf).join("cgroup.procs"));
        text.expect("cgroup.procs").lines().count()
    }

    /// Groups below, apart from a leaf.
    pub(crate) fn below(&self, leaf: &str) -> usize {
        let entries = fs::read_dir(&self.dir).expect("read the group").flatten();
        let is_group = |e: &fs::DirEntry| e.file_type().is_ok_and(|kind| kind.is_dir());
        let groups = entries.filter(|e| is_group(e) && e.file_name() != leaf);
        groups.count()
    }

    fn used(dir: &Path) -> f64 {
        if let Ok(text) = fs::read_to_string(dir.join("cpuacct.usage")) {
            return text.trim().parse::<f64>().expect("nanoseconds") / 1e6;
        }
        let text = fs::read_to_string(dir.join("cpu.stat")).expect("cpu.stat");
        let line = text.lines().find_map(|l| l.strip_prefix("usage_usec "));
        line.expect("usage").parse::<f64>().expect("microseconds") / 1e3
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let root = Path::new("/sys/fs/cgroup");
        // The bench itself is in a leaf of one of them.
        let me = std::process::id().to_string();
        drop(fs::write(self.dir.with_file_name("cgroup.procs"), me));
        remove(&root.join(&self.name));
        for hierarchy in fs::read_dir(root).into_iter().flatten().flatten() {
            remove(&hierarchy.path().join(&self.name));
        }
    }
}

/// Depth first; groups hold nothing else that can be removed. Only a bench that failed has processes
/// left there.
fn remove(dir: &Path) {
    let left = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in left.lines().filter_map(|pid| pid.parse().ok()) {
        if let Ok(process) = sys::pidfd::open(pid) {
            drop(sys::pidfd::send_signal(&process, 9));
            drop(sys::pidfd::wait(&process));
        }
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // Absent in the hierarchies where no container was.
    drop(fs::remove_dir(dir));
}
