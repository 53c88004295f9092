//! Bind mounts: a copy of a tree that gets all it needs before it is attached.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::mount::MountFlags;
use types::Result;

use super::attr::{self, Attributes};
use super::options::{Options, REMOUNT};
use super::place::Place;
use super::{call, detach_mount, set_propagation};
use crate::fs::fd_path;

/// Binds `source` to `place`, with the ids of `user`.
pub(super) fn mount(
    source: &str,
    place: &Place<'_>,
    options: &Options,
    user: Option<&OwnedFd>,
) -> Result<OwnedFd> {
    let recursive = options.flags.contains(MountFlags::REC);
    let tree = match attr::copy_tree(Path::new(source), recursive) {
        Err(error) if attr::is_missing(&error) && user.is_none() && options.tree.is_empty() => {
            return by_two_calls(source, place, options);
        }
        tree => tree?,
    };
    // Flags are for the one mount, as those of mount(2) are.
    let own = Attributes::of(options.flags);
    if !own.is_empty() {
        attr::change(&tree, own, false)?;
    }
    if !options.tree.is_empty() {
        attr::change(&tree, options.tree, true)?;
    }
    if let Some(user) = user {
        attr::map_ids(&tree, user.as_fd(), recursive)?;
    }
    attr::attach(tree.as_fd(), place.path())?;
    if !options.propagation.is_empty() {
        // Not before: below a shared mount it has become shared by being attached.
        attr::propagate(&tree, options.propagation).inspect_err(|_| drop(detach_mount(&tree)))?;
    }
    Ok(tree)
}

/// For kernels without mounts by descriptor: flags are taken only by a second call.
fn by_two_calls(source: &str, place: &Place<'_>, options: &Options) -> Result<OwnedFd> {
    let flags = options.flags;
    call(Path::new(source), place.path(), "bind", flags, "")?;
    let made = place.made()?;
    let finish = || -> Result<()> {
        let path = fd_path(&made);
        if !Attributes::of(flags).is_empty() {
            call(Path::new(""), &path, "", flags | REMOUNT, "")?;
        }
        if !options.propagation.is_empty() {
            set_propagation(&path, options.propagation)?;
        }
        Ok(())
    };
    finish().inspect_err(|_| drop(detach_mount(&made)))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::super::{is_mount_point, unmount_all};
    use super::*;

    #[test]
    fn the_way_of_old_kernels_gives_the_same_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::create_dir_all(to.join("sub")).unwrap();
        let options = ["rbind", "ro", "nosuid", "private"].map(str::to_owned);
        let options = Options::parse(&options).unwrap();
        for sub in ["", "sub"] {
            let place = Place::find(&to, Path::new(sub)).unwrap();
            by_two_calls(&from.display().to_string(), &place, &options).unwrap();
            let at = to.join(sub);
            assert!(is_mount_point(&at).unwrap());
            let refused = std::fs::write(at.join("x"), "").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
            unmount_all(&at).unwrap();
        }
    }
}
