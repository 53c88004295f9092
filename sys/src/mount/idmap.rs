//! File systems whose ids are shown as other ones.
//!
//! An overlay cannot be mapped itself: its lower directories are, each as a mount of its own that
//! nobody sees.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use types::{Error, Result};

use super::attached::Attached;
use super::attr::Attributes;
use super::options::Options;
use super::place::Place;
use super::{attached, attr, overlay};
use crate::fs::fd_path;

/// Mounts a file system with the ids of `user`. A mount that is attached takes none: it gets them before.
pub(super) fn mount(
    source: &Path,
    place: &Place<'_>,
    kind: &str,
    options: &Options,
    user: &OwnedFd,
) -> Result<OwnedFd> {
    let tree = attr::file_system(source, kind, options.flags, &options.data)?;
    let own = Attributes::of(options.flags);
    if !own.is_empty() {
        attr::change(&tree, own, false)?;
    }
    attr::map_ids(&tree, user.as_fd(), false)?;
    attr::attach(tree.as_fd(), place.path())?;
    Ok(tree)
}

/// Mounts an overlay over lower directories with the ids of `user`.
pub(super) fn mount_overlay(
    source: &str,
    target: &Path,
    options: &Options,
    user: &OwnedFd,
) -> Result<()> {
    let Some(lowers) = lowers(&options.data) else {
        return Err(Error::invalid_argument("overlay without a lowerdir"));
    };
    let trees = lowers.iter().map(|lower| {
        let tree = attr::copy_tree(Path::new(lower), false)?;
        attr::map_ids(&tree, user.as_fd(), false)?;
        Ok(tree)
    });
    let trees: Vec<OwnedFd> = trees.collect::<Result<_>>()?;
    let paths: Vec<PathBuf> = trees.iter().map(fd_path).collect();
    let mount = |paths: &[PathBuf]| {
        let data = with_lowers(&options.data, paths);
        overlay::mount(source, target, options.flags, &data)
    };
    match mount(&paths) {
        // Kernels before 6.15 take no layer that is not attached.
        Err(error) if error.errno() == Some(libc::EINVAL) => {
            let attached = Attached::new(&trees, Path::new(attached::DIRECTORY))?;
            mount(&attached.paths())
        }
        done => done,
    }
}

/// The lower directories, as they are called outside of options.
fn lowers(data: &str) -> Option<Vec<String>> {
    let text = data.split(',').find_map(|o| o.strip_prefix("lowerdir="))?;
    let mut all = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => all.push(String::new()),
            '\\' => all.last_mut()?.extend(chars.next()),
            c => all.last_mut()?.push(c),
        }
    }
    Some(all)
}

fn with_lowers(data: &str, paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    let lowers = format!("lowerdir={}", names.join(":"));
    let options = data.split(',').map(|option| {
        if option.starts_with("lowerdir=") {
            &lowers
        } else {
            option
        }
    });
    options.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use types::Mount;

    use super::super::{info, mount, unmount_all};
    use super::*;

    const IDS: [&str; 2] = ["uidmap=0:100000:10", "gidmap=0:200000:10"];

    fn owner(path: &Path) -> (u32, u32) {
        let facts = std::fs::metadata(path).unwrap();
        (facts.uid(), facts.gid())
    }

    fn dirs(names: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = names.iter().map(|name| dir.path().join(name)).collect();
        for path in &paths {
            std::fs::create_dir_all(path).unwrap();
        }
        (dir, paths)
    }

    fn one(kind: &str, source: &Path, options: &[&str]) -> Mount {
        Mount {
            kind: kind.into(),
            source: source.display().to_string(),
            options: options.iter().chain(&IDS).map(|&o| o.to_owned()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn a_bind_mount_shows_other_ids() {
        let (_dir, paths) = dirs(&["from", "to"]);
        std::fs::write(paths[0].join("f"), "").unwrap();
        std::os::unix::fs::chown(paths[0].join("f"), Some(3), Some(4)).unwrap();
        mount(&one("bind", &paths[0], &["rbind"]), &paths[1]).unwrap();
        assert_eq!(owner(&paths[1].join("f")), (100_003, 200_004));
        assert_eq!(owner(&paths[0].join("f")), (3, 4));
        unmount_all(&paths[1]).unwrap();
    }

    #[test]
    fn a_file_system_of_its_own_is_mapped_once_also_at_a_sub_path() {
        let (_dir, paths) = dirs(&["to", "to/sub"]);
        for (sub, at) in [("sub", &paths[1]), ("", &paths[0])] {
            let options = ["size=1m", "ro", "nosuid", "mode=0750"];
            let mut tmpfs = one("tmpfs", Path::new("a source"), &options);
            tmpfs.target = sub.into();
            mount(&tmpfs, &paths[0]).unwrap();
            assert_eq!(owner(at), (100_000, 200_000));
            let mode = std::fs::metadata(at).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o750);
            let real = at.canonicalize().unwrap();
            let mut there = info::load().unwrap();
            there.retain(|m| m.mount_point == real);
            assert_eq!(there.len(), 1);
            let found = &there[0];
            assert_eq!(found.source, "a source");
            assert!(found.options.starts_with("ro,nosuid"), "{found:?}");
            for part in ["ro", "size=1024k"] {
                let all = &found.super_options;
                assert!(all.split(',').any(|option| option == part), "{all}");
            }
            unmount_all(at).unwrap();
            assert_eq!(owner(at), (0, 0));
        }
    }

    fn overlay_over(lowers: &[PathBuf], upper: &Path, work: &Path) -> Mount {
        let names: Vec<String> = lowers.iter().map(|p| p.display().to_string()).collect();
        let lower = format!("lowerdir={}", names.join(":"));
        let (upper, work) = (
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        );
        one("overlay", Path::new("overlay"), &[&work, &upper, &lower])
    }

    #[test]
    fn an_overlay_shows_the_ids_of_all_its_lower_directories() {
        let names: Vec<String> = (0..130)
            .map(|n| format!("lower-with-a-long-name/{n}"))
            .collect();
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.extend(["upper", "work", "to"]);
        let (_dir, paths) = dirs(&names);
        let (lowers, rest) = paths.split_at(130);
        for (number, lower) in lowers.iter().enumerate() {
            std::fs::write(lower.join(format!("f{number}")), "").unwrap();
        }
        let mounted = overlay_over(lowers, &rest[0], &rest[1]);
        mount(&mounted, &rest[2]).unwrap();
        for number in 0..130 {
            let path = rest[2].join(format!("f{number}"));
            assert_eq!(owner(&path), (100_000, 200_000));
        }
        unmount_all(&rest[2]).unwrap();
    }

    #[test]
    fn escaped_names_of_lower_directories_are_understood() {
        let got = lowers(r"index=off,lowerdir=/a\:b:/c\\d,upperdir=/u").unwrap();
        assert_eq!(got, ["/a:b", r"/c\d"]);
        assert_eq!(lowers("upperdir=/u"), None);
        let data = with_lowers("a=b,lowerdir=/x:/y,c", &["/1".into(), "/2".into()]);
        assert_eq!(data, "a=b,lowerdir=/1:/2,c");
    }
}
