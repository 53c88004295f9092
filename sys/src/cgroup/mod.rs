//! Control groups, version 1 (also hybrid) and version 2: find one, read it, watch it, join it.
//!
//! Invariant: a group is found from what the kernel says about a process (`/proc/<pid>/cgroup` and
//! the mounts), never by composing a path from a configuration. A missing controller or file is an
//! absent value, not a failure: kernels and hosts differ.

mod oom;
mod text;
pub mod v1;
pub mod v2;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use types::{Error, Result};

use crate::error::at;
use crate::mount::MountInfo;
use crate::mount::info;

pub use oom::{OomEvent, OomWatch};
pub use text::Flat;

/// Where hosts mount hierarchies.
const ROOT: &str = "/sys/fs/cgroup";

/// The control group of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// One directory per controller (`memory`, `name=systemd`, …).
    V1(BTreeMap<String, PathBuf>),
    /// The one directory of the unified hierarchy.
    V2(PathBuf),
}

/// Resource usage of a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// From controllers of version 1.
    V1(Box<v1::Stats>),
    /// From the unified hierarchy.
    V2(Box<v2::Stats>),
}

impl Cgroup {
    /// The group of a process.
    ///
    /// # Errors
    /// `NotFound` when there is no such process or no control group mount, else the errno.
    pub fn of(pid: u32) -> Result<Self> {
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = std::fs::read_to_string(&file).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::not_found(format_args!("process {pid}")),
            _ => at("read", &file, e),
        })?;
        // The table of mounts is long on a host with many containers.
        Self::usual(&text)
            .filter(|group| group.holds(pid))
            .or_else(|| Self::locate(&text, &info::load().ok()?))
            .ok_or_else(|| Error::not_found(format_args!("control group of process {pid}")))
    }

    /// Where the group is when hierarchies are mounted as hosts do: a guess.
    fn usual(text: &str) -> Option<Self> {
        let root = Path::new(ROOT);
        let mut mounts = Vec::new();
        if is_unified() {
            mounts.push(MountInfo::of_group("cgroup2", root.to_owned(), ""));
        } else {
            let names = text.lines().filter_map(|line| line.split(':').nth(1));
            for names in names.filter(|names| !names.is_empty()) {
                let dir = root.join(names.trim_start_matches("name="));
                mounts.push(MountInfo::of_group("cgroup", dir, names));
            }
        }
        Self::locate(text, &mounts)
    }

    /// True when the kernel says so: the process is listed, and no directory is missing.
    fn holds(&self, pid: u32) -> bool {
        let has = |dir: &Path| {
            let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            text.lines().any(|line| line.parse() == Ok(pid))
        };
        match self {
            Self::V1(dirs) => {
                dirs.values().next().is_some_and(|dir| has(dir))
                    && dirs.values().all(|dir| dir.exists())
            }
            Self::V2(dir) => has(dir),
        }
    }

    /// The directories that the text of `/proc/<pid>/cgroup` means under these mounts.
    #[must_use]
    pub fn locate(text: &str, mounts: &[MountInfo]) -> Option<Self> {
        let lines: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| {
                line.split_once(':')
                    .and_then(|(_, rest)| rest.split_once(':'))
            })
            .collect();
        let mut controllers = BTreeMap::new();
        for (names, path) in lines.iter().filter(|(names, _)| !names.is_empty()) {
            let mount = mounts.iter().find(|m| {
                m.kind == "cgroup"
                    && names
                        .split(',')
                        .all(|name| m.super_options.split(',').any(|o| o == name))
            });
            let Some(place) = mount.and_then(|m| below(m, path)) else {
                continue;
            };
            for name in names.split(',') {
                controllers.insert(name.to_owned(), place.clone());
            }
        }
        // In a hybrid mount version 2 exists but has no controllers: version 1 is the one to read.
        if controllers.keys().any(|name| !name.starts_with("name=")) {
            return Some(Self::V1(controllers));
        }
        let (_, path) = lines.iter().find(|(names, _)| names.is_empty())?;
        let mount = mounts.iter().find(|m| m.kind == "cgroup2")?;
        Some(Self::V2(below(mount, path)?))
    }

    /// The directory of a controller.
    #[must_use]
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V1(dirs) => dirs.get(controller).map(PathBuf::as_path),
            Self::V2(dir) => Some(dir),
        }
    }

    /// Resource usage now.
    ///
    /// # Errors
    /// `NotFound` when the group is gone.
    pub fn stats(&self) -> Result<Stats> {
        match self {
            Self::V1(dirs) => {
                if !dirs.values().any(|dir| dir.exists()) {
                    return Err(Error::not_found("control group"));
                }
                Ok(Stats::V1(Box::new(v1::Stats::read(|name| {
                    dirs.get(name).cloned()
                }))))
            }
            Self::V2(dir) => {
                if !dir.exists() {
                    return Err(Error::not_found(format_args!(
                        "control group {}",
                        dir.display()
                    )));
                }
                Ok(Stats::V2(Box::new(v2::Stats::read(dir))))
            }
        }
    }

    /// How many processes of the group the out-of-memory killer has ended; zero when nobody counts.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let Some(dir) = self.dir("memory") else {
            return 0;
        };
        let file = match self {
            Self::V1(_) => "memory.oom_control",
            Self::V2(_) => "memory.events",
        };
        text::flat(&dir.join(file)).get("oom_kill")
    }

    /// Watches for the group running out of memory.
    ///
    /// # Errors
    /// `NotFound` without a memory controller, else the errno.
    pub fn watch_oom(&self) -> Result<OomWatch> {
        let dir = self
            .dir("memory")
            .ok_or_else(|| Error::not_found("memory controller"))?;
        match self {
            Self::V1(_) => OomWatch::v1(dir),
            Self::V2(_) => OomWatch::v2(dir),
        }
    }

    /// As [`Cgroup::watch_oom`], for a caller whose loop cannot wait for priority.
    ///
    /// # Errors
    /// `NotImplemented` for version 1, else the errno.
    pub fn watch_oom_readable(&self) -> Result<OomWatch> {
        match self {
            Self::V1(_) => Err(Error::not_implemented("inotify on a group of version 1")),
            Self::V2(dir) => OomWatch::inotify(dir),
        }
    }

    /// The pids in the group and its sub groups. `None` when the group is not one of its own: it is
    /// a root, or the same as `other`'s.
    #[must_use]
    pub fn pids(&self, other: &Self) -> Option<Vec<u32>> {
        const OWN: [&str; 6] = [
            "freezer",
            "pids",
            "memory",
            "devices",
            "cpu",
            "name=systemd",
        ];
        let own = OWN.iter().find_map(|name| {
            let dir = self.dir(name)?;
            let shared = other.dir(name) == Some(dir) || !is_below_a_root(dir);
            (!shared && dir.exists()).then_some(dir)
        })?;
        let mut pids = Vec::new();
        collect_pids(own, &mut pids);
        pids.sort_unstable();
        pids.dedup();
        Some(pids)
    }

    /// Moves a process into the group.
    ///
    /// # Errors
    /// The errno of the first controller that refuses.
    pub fn add(&self, pid: u32) -> Result<()> {
        let dirs: Vec<&Path> = match self {
            Self::V1(dirs) => dirs.values().map(PathBuf::as_path).collect(),
            Self::V2(dir) => vec![dir],
        };
        for dir in dirs {
            let file = dir.join("cgroup.procs");
            std::fs::write(&file, pid.to_string()).map_err(|e| at("write", &file, e))?;
        }
        Ok(())
    }

    /// The group at `path` in every hierarchy of this host, for a process to join; made when missing.
    ///
    /// # Errors
    /// `NotFound` when the host has no control groups, else the errno of `mkdir`.
    pub fn at_path(path: &str) -> Result<Self> {
        let relative = Path::new(path.trim_start_matches('/'));
        let inside = relative
            .components()
            .all(|c| matches!(c, std::path::Component::Normal(_)));
        if relative.as_os_str().is_empty() || !inside {
            return Err(Error::invalid_argument(format_args!(
                "control group path {path:?}"
            )));
        }
        let mounts = info::load()?;
        let mut dirs = BTreeMap::new();
        for mount in mounts.iter().filter(|m| m.kind == "cgroup") {
            let name = mount
                .mount_point
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            dirs.insert(name.into_owned(), mount.mount_point.join(relative));
        }
        let group = if dirs.is_empty() {
            let mount = mounts.iter().find(|m| m.kind == "cgroup2");
            let mount = mount.ok_or_else(|| Error::not_found("control group mount"))?;
            Self::V2(mount.mount_point.join(relative))
        } else {
            Self::V1(dirs)
        };
        group.make()?;
        Ok(group)
    }

    fn make(&self) -> Result<()> {
        let dirs: Vec<&PathBuf> = match self {
            Self::V1(dirs) => dirs.values().collect(),
            Self::V2(dir) => vec![dir],
        };
        for dir in dirs {
            std::fs::create_dir_all(dir).map_err(|e| at("mkdir", dir, e))?;
        }
        if let Some(cpuset) = self.dir("cpuset").filter(|_| matches!(self, Self::V1(_))) {
            v1::inherit_cpuset(cpuset);
        }
        Ok(())
    }
}

/// True when the host has the unified hierarchy only.
#[must_use]
pub fn is_unified() -> bool {
    const MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs(ROOT).is_ok_and(|found| u64::try_from(found.f_type) == Ok(MAGIC))
}

/// Where the group `path` lies under a mount, which may show only a part of the hierarchy.
fn below(mount: &MountInfo, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path).strip_prefix(&mount.root).ok()?;
    Some(if relative.as_os_str().is_empty() {
        mount.mount_point.clone()
    } else {
        mount.mount_point.join(relative)
    })
}

/// Only groups below a root have a parent that is a group too.
fn is_below_a_root(dir: &Path) -> bool {
    dir.parent()
        .is_some_and(|parent| parent.join("cgroup.procs").exists())
}

fn collect_pids(dir: &Path, pids: &mut Vec<u32>) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse::<u32>().ok())
            .filter(|pid| *pid != 0),
    );
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), pids);
        }
    }
}

#[cfg(test)]
mod tests;
