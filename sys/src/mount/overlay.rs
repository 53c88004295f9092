//! Overlay option strings longer than the kernel's page.
//!
//! The lower directories of a deep image do not fit into one page. They share a long prefix, so a
//! helper thread with a working directory of its own stands there and names them relatively.

use std::path::Path;

use rustix::mount::MountFlags;
use types::{Error, Result};

use crate::error::{at, last};

/// The kernel copies one page of options; as Go, 512 bytes of it are kept for the rest.
fn data_limit() -> usize {
    rustix::param::page_size() - 512
}

/// Mounts an overlay; with options that are too long, by names relative to the parent that the lower
/// directories have in common.
pub(super) fn mount(source: &str, target: &Path, flags: MountFlags, data: &str) -> Result<()> {
    if data.len() < data_limit() {
        return super::call(Path::new(source), target, "overlay", flags, data);
    }
    let Some((base, data)) = compact(data) else {
        return Err(Error::invalid_argument(
            "overlay options are too long and share no parent",
        ));
    };
    if data.len() >= rustix::param::page_size() {
        return Err(Error::invalid_argument(format_args!(
            "overlay options are {} bytes long even when compacted",
            data.len()
        )));
    }
    let target = std::path::absolute(target).map_err(|e| at("resolve", target, e))?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| from_directory(Path::new(base), source, &target, flags, &data));
        worker
            .join()
            .map_err(|_| Error::internal("mount thread panicked"))?
    })
}

/// Runs on its own thread: its working directory is its own from here on.
fn from_directory(
    base: &Path,
    source: &str,
    target: &Path,
    flags: MountFlags,
    data: &str,
) -> Result<()> {
    // SAFETY: CLONE_FS only gives this thread its own working directory, root and umask; no memory
    // and no descriptor is touched, and the thread ends when the mount is done.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(last("unshare"));
    }
    std::env::set_current_dir(base).map_err(|e| at("chdir", base, e))?;
    super::call(Path::new(source), target, "overlay", flags, data)
}

/// The common parent of the lower directories and the option string that names them relatively.
fn compact(data: &str) -> Option<(&str, String)> {
    let lowers = data.split(',').find_map(|o| o.strip_prefix("lowerdir="))?;
    let dirs: Vec<&str> = lowers.split(':').collect();
    let base = common_parent(&dirs)?;
    let cut = base.len() + 1;
    let relative: Vec<&str> = dirs.iter().map(|dir| &dir[cut..]).collect();
    if relative.iter().any(|dir| dir.is_empty()) {
        return None;
    }
    let options: Vec<String> = data
        .split(',')
        .map(|option| match option.strip_prefix("lowerdir=") {
            Some(_) => format!("lowerdir={}", relative.join(":")),
            None => option.to_owned(),
        })
        .collect();
    Some((base, options.join(",")))
}

/// The longest directory that all paths lie in, without its trailing slash; never the root itself.
fn common_parent<'a>(paths: &[&'a str]) -> Option<&'a str> {
    let first = paths.first()?;
    let mut shared = first.len();
    for path in &paths[1..] {
        let same = first
            .bytes()
            .zip(path.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        shared = shared.min(same);
    }
    let slash = first.as_bytes()[..shared]
        .iter()
        .rposition(|&b| b == b'/')?;
    (slash > 0).then(|| &first[..slash])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{is_mount_point, mount_all, unmount_all};
    use types::Mount;

    #[test]
    fn lower_directories_become_relative() {
        let cases = [
            (
                "index=off,lowerdir=/s/snapshots/1/fs:/s/snapshots/22/fs,upperdir=/u",
                Some(("/s/snapshots", "index=off,lowerdir=1/fs:22/fs,upperdir=/u")),
            ),
            ("lowerdir=/s/a:/s/ab", Some(("/s", "lowerdir=a:ab"))),
            ("lowerdir=/a:/b", None),
            ("upperdir=/a", None),
        ];
        for (data, want) in cases {
            let want = want.map(|(base, data)| (base, data.to_owned()));
            assert_eq!(compact(data), want, "{data}");
        }
    }

    #[test]
    fn an_overlay_of_150_long_lower_directories_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let before = std::env::current_dir().unwrap();
        let long = "layer".repeat(8);
        let lowers: Vec<String> = (0..150)
            .map(|n| {
                let path = dir
                    .path()
                    .join(format!("snapshots-{long}"))
                    .join(n.to_string());
                std::fs::create_dir_all(&path).unwrap();
                std::fs::write(path.join(format!("file{n}")), "").unwrap();
                path.display().to_string()
            })
            .collect();
        let target = dir.path().join("merged");
        std::fs::create_dir_all(&target).unwrap();
        let mount = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("lowerdir={}", lowers.join(":"))],
        };
        assert!(mount.options[0].len() > 8192);
        mount_all(&[mount], &target).unwrap();
        assert!(is_mount_point(&target).unwrap());
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 150);
        assert_eq!(std::env::current_dir().unwrap(), before);
        unmount_all(&target).unwrap();
    }
}
