//! Deletions: `.wh.<name>` and `.wh..wh..opq`.
//!
//! Invariant: a deletion acts on the layers below; what its own layer holds stays, whichever came first
//! in the archive (OCI image-spec, layer.md, Whiteouts).

use std::hash::BuildHasher as _;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;

use super::Tree;
use super::parents::Directory;
use crate::root::{DIRECTORY, components, file_type, is_whiteout, stat};
use crate::tar::{Entry, Kind};

impl Tree<'_> {
    /// Hides `target` of the layers below.
    pub(super) fn whiteout(
        &mut self,
        dir: &Directory,
        target: &[u8],
        entry: &Entry,
    ) -> Result<(), Errno> {
        self.remove_below(dir, target)?;
        let Some(opaque) = self.upper.as_ref().map(|upper| upper.opaque) else {
            return Ok(());
        };
        match stat(&dir.fd, target)? {
            // Where nothing is to be hidden, a listing would show the whiteout itself.
            None if !self.may_hide(dir, target)? => Ok(()),
            None => {
                rustix::fs::mknodat(&dir.fd, target, FileType::CharacterDevice, Mode::empty(), 0)?;
                let owner = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&dir.fd, target, Some(owner.0), Some(owner.1), nofollow)
            }
            // The layer deletes a directory and makes it anew: nothing of the old one shows.
            Some(facts) if file_type(&facts) == FileType::Directory => {
                let inner = rustix::fs::openat(&dir.fd, target, DIRECTORY, Mode::empty())?;
                rustix::fs::fsetxattr(&inner, opaque, b"y", XattrFlags::empty())
            }
            Some(_) => Ok(()),
        }
    }

    /// True for a hard link to what this archive has as a device 0/0: overlayfs links its whiteouts to each
    /// other, so that is how an archive of an upper directory holds them. Where there was nothing to hide,
    /// there is no such device.
    pub(super) fn is_link_to_whiteout(&self, entry: &Entry) -> Result<bool, Errno> {
        let parts = components(&entry.link);
        let (Kind::Link, Some((base, parents))) = (entry.kind, parts.split_last()) else {
            return Ok(false);
        };
        if self.devices.is_empty() {
            return Ok(false);
        }
        let dir = match self.root.directory(&parents.join(&b'/')) {
            Err(Errno::NOENT) => return Ok(false),
            dir => dir?,
        };
        // It may have been made into something else since.
        let is_left = stat(&dir, base)?.is_none_or(|facts| is_whiteout(&facts));
        let inode = rustix::fs::fstat(&dir)?.st_ino;
        Ok(is_left && self.devices.contains(self.hash(inode, base)))
    }

    /// True when a whiteout `target` in `dir` hides something, or that cannot be told.
    fn may_hide(&mut self, dir: &Directory, target: &[u8]) -> Result<bool, Errno> {
        if self.is_detached() {
            // In what this archive has emptied nothing shows, and a whiteout would keep it from being removed.
            return Ok(!self.emptied.contains(self.hasher.hash_one(dir.inode)));
        }
        self.hides(&dir.fd, target)
    }

    /// True when a whiteout `target` in `dir` has something below it, or that cannot be told.
    fn hides(&self, dir: &OwnedFd, target: &[u8]) -> Result<bool, Errno> {
        use std::os::unix::ffi::OsStrExt;
        let Some(path) = self.canonical(dir) else {
            return Ok(true);
        };
        let mut parts: Vec<&[u8]> = path.iter().map(OsStrExt::as_bytes).collect();
        parts.push(target);
        Ok(self.below(&parts)?.is_some())
    }

    /// Removes `target` unless this archive wrote it; of a directory that it wrote, the rest.
    fn remove_below(&mut self, dir: &Directory, target: &[u8]) -> Result<(), Errno> {
        let Some(facts) = stat(&dir.fd, target)? else {
            return Ok(());
        };
        if !self.written.contains(self.hash(dir.inode, target)) {
            return self.remove(&dir.fd, target, true);
        }
        if file_type(&facts) != FileType::Directory {
            return Ok(());
        }
        let inner = rustix::fs::openat(&dir.fd, target, DIRECTORY, Mode::empty())?;
        self.empty(&inner, true)
    }

    /// Hides everything that the layers below have in `dir`.
    pub(super) fn opaque(&mut self, dir: &Directory) -> Result<(), Errno> {
        let facts = rustix::fs::fstat(&dir.fd)?;
        let root = rustix::fs::fstat(self.root.fd())?;
        // A link may have led there.
        let is_root = (facts.st_dev, facts.st_ino) == (root.st_dev, root.st_ino);
        let fd = rustix::fs::openat(&dir.fd, c".", DIRECTORY, Mode::empty())?;
        self.empty(&fd, true)?;
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        if !is_root {
            return rustix::fs::fsetxattr(&fd, upper.opaque, b"y", XattrFlags::empty());
        }
        if std::mem::replace(&mut self.root_is_hidden, true) {
            return Ok(());
        }
        if upper.detached {
            // Which names are to be hidden only the layers below can tell.
            return Err(Errno::INVAL);
        }
        // overlayfs does not heed the mark on the root: hide each name.
        upper.lowers.root_names(|name| match stat(&fd, name)? {
            None => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(&fd, name, kind, Mode::empty(), 0)
            }
            Some(facts) if file_type(&facts) == FileType::Directory => {
                let inner = rustix::fs::openat(&fd, name, DIRECTORY, Mode::empty())?;
                rustix::fs::fsetxattr(&inner, upper.opaque, b"y", XattrFlags::empty())
            }
            Some(_) => Ok(()),
        })
    }

    /// Takes away what stands where an entry goes. True when a directory made there must be opaque:
    /// something of this upper directory already hid what is below.
    pub(super) fn displace(&mut self, dir: &Directory, name: &[u8]) -> Result<bool, Errno> {
        let facts = stat(&dir.fd, name)?;
        let hid = facts
            .is_some_and(|facts| is_whiteout(&facts) || file_type(&facts) != FileType::Directory);
        self.remove(&dir.fd, name, false)?;
        Ok(hid && self.upper.is_some())
    }
}
