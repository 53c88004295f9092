//! A file that a command makes.
//!
//! Invariant: what is at its name is what was there before or all of the new, and a failure leaves
//! nothing new behind. What cannot be replaced is written where it is: a device or a pipe, what a process
//! has open, a mount point, what lies in a directory that takes no new file.

use std::fs::{self, File};
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use types::{Error, Result};

/// Links from one to the next, as many as the kernel follows.
const MAX_LINKS: usize = 40;
/// Names that are tried for what is being made.
const MAX_NAMES: usize = 16;

/// A file being made; given up when dropped.
#[derive(Debug)]
pub(crate) struct Target {
    /// Where it grows, and where it will be; none when it is written in place.
    beside: Option<(PathBuf, PathBuf)>,
}

impl Target {
    /// Begins; the file to write to.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(path: &Path) -> Result<(Self, File)> {
        begin(path).map_err(|e| Error::os(format_args!("create {}", path.display()), e))
    }

    /// All of it is written.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn finish(mut self) -> Result<()> {
        let Some((from, to)) = &self.beside else {
            return Ok(());
        };
        fs::rename(from, to).map_err(|e| Error::os(format_args!("create {}", to.display()), e))?;
        self.beside = None;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((from, _)) = &self.beside {
            // That it cannot be removed is no news beside the failure.
            drop(fs::remove_file(from));
        }
    }
}

fn begin(path: &Path) -> IoResult<(Target, File)> {
    let there = match fs::metadata(path) {
        Ok(there) => Some(there),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        return Ok(in_place(File::options().write(true).open(path)?));
    }
    let to = match place(path)? {
        Place::File(to) => to,
        // It may have been opened for appending, or have got something before.
        Place::Open => return Ok(in_place(File::options().append(true).open(path)?)),
        Place::Other => return Ok(in_place(File::create(path)?)),
    };
    if there.is_some() {
        replace(to)
    } else {
        let (from, file) = draft(&to, 0o666)?;
        let beside = Some((from, to));
        Ok((Target { beside }, file))
    }
}

fn in_place(file: File) -> (Target, File) {
    (Target { beside: None }, file)
}

/// Begins what takes the place, the owner and the permissions of the file at `to`.
fn replace(to: PathBuf) -> IoResult<(Target, File)> {
    // Who may not write to it may not replace it either.
    let old = File::options().write(true).open(&to)?;
    let there = old.metadata()?;
    let truncated = |old: File| old.set_len(0).map(|()| in_place(old));
    // The kernel replaces none. Where nobody can tell, it is not known to be free of one.
    if sys::mount::is_mount_point(&to).unwrap_or(true) {
        return truncated(old);
    }
    // Nobody else sees the content before it is known who may.
    let (from, file) = match draft(&to, 0o600) {
        Ok(made) => made,
        Err(e) if takes_none(&e) => return truncated(old),
        // On a full disk the old one is not given up for a new one that has no room.
        Err(e) => return Err(e),
    };
    let beside = Some((from, to));
    let target = Target { beside };
    let made = file.metadata()?;
    let is_owned = (made.uid(), made.gid()) == (there.uid(), there.gid());
    if !is_owned && fchown(&file, Some(there.uid()), Some(there.gid())).is_err() {
        return truncated(old);
    }
    file.set_permissions(there.permissions())?;
    Ok((target, file))
}

/// Whether a directory takes no new file at all; some of the kernel's say that there is none.
fn takes_none(error: &IoError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::NotFound | ErrorKind::ReadOnlyFilesystem
    )
}

/// A new file beside `to`, under a name of its own.
fn draft(to: &Path, mode: u32) -> IoResult<(PathBuf, File)> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(mode);
    let mut last = IoError::from(ErrorKind::AlreadyExists);
    for _ in 0..MAX_NAMES {
        // Not after `to`, whose name may be as long as names can be.
        let from = to.with_file_name(format!(".{:016x}.part", rand::random::<u64>()));
        match options.open(&from) {
            Ok(file) => return Ok((from, file)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A file of this name, which is no link, or none yet: it can be replaced.
    File(PathBuf),
    /// A file that a process has open: it may have no name, or another one by now.
    Open,
    /// A link to nothing, or one that belongs to the system.
    Other,
}

/// Follows the links of `path`.
fn place(path: &Path) -> IoResult<Place> {
    let (mut at, mut is_system) = (path.to_owned(), false);
    for followed in 0..MAX_LINKS {
        match fs::symlink_metadata(&at) {
            Ok(there) if there.is_symlink() => {}
            Ok(_) if is_system => return Ok(Place::Other),
            Ok(_) => return Ok(Place::File(at)),
            // A new file is made where it was asked for, but a link is not replaced by one.
            Err(e) if e.kind() == ErrorKind::NotFound && followed == 0 => {
                return match at.file_name() {
                    Some(_) => Ok(Place::File(at)),
                    None => Err(ErrorKind::InvalidInput.into()),
                };
            }
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Place::Other),
            Err(e) => return Err(e),
        }
        let dir = at.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = fs::canonicalize(dir.unwrap_or(Path::new(".")))?;
        if dir.starts_with("/proc") {
            return Ok(Place::Open);
        }
        is_system |= dir.starts_with("/dev");
        at = dir.join(fs::read_link(&at)?);
    }
    Ok(Place::Other)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_there_stays_until_all_of_the_new_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let (target, mut file) = Target::create(&path).unwrap();
        file.write_all(b"ne").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(target);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.tar"]);

        let (target, mut file) = Target::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        target.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["a.tar"]);
    }

    #[test]
    fn a_file_that_was_not_there_is_not_there_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        drop(Target::create(&dir.path().join("a.tar")).unwrap());
        assert!(names(dir.path()).is_empty());
        let absent = dir.path().join("no/a.tar");
        let error = Target::create(&absent).unwrap_err().to_string();
        assert!(error.contains("no/a.tar: no such file"), "{error}");
    }

    #[test]
    fn a_link_stays_and_leads_to_the_new() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("a.tar"), dir.path().join("link"));
        fs::write(&path, "old").unwrap();
        symlink("a.tar", &link).unwrap();
        let (target, mut file) = Target::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        target.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_is_no_regular_file_is_written_and_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        // Both ends: else opening one waits for the other.
        let fifo = sys::fifo::Fifo::make(&pipe, 0o600).unwrap();
        let ends = fifo.open(sys::fifo::End::Both).unwrap();
        for is_done in [false, true] {
            let (target, _file) = Target::create(&pipe).unwrap();
            if is_done {
                target.finish().unwrap();
            }
            assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        }
        drop(ends);
    }

    fn export(path: &Path, content: &[u8]) {
        let (target, mut file) = Target::create(path).unwrap();
        file.write_all(content).unwrap();
        target.finish().unwrap();
    }

    #[test]
    fn what_a_process_has_open_is_appended_to_and_its_link_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.tar");
        fs::write(&path, "one").unwrap();
        let open = File::options().append(true).open(&path).unwrap();
        // As /dev/stdout is one.
        let link = dir.path().join("stdout");
        symlink(sys::fs::fd_path(&open), &link).unwrap();
        for (path, has_name) in [(&link, true), (&sys::fs::fd_path(&open), false)] {
            if !has_name {
                fs::remove_file(dir.path().join("all.tar")).unwrap();
            }
            export(path, b"two");
            assert!(link.is_symlink());
        }
        assert_eq!(names(dir.path()), ["stdout"]);
        assert_eq!(fs::read(&link).unwrap(), b"onetwotwo");
        export(&link, b"two");
        assert!(link.is_symlink());
        assert_eq!(names(dir.path()), ["stdout"]);
        assert_eq!(fs::read(&link).unwrap(), b"onetwotwotwo");
    }

    #[test]
    fn a_link_to_nothing_stays_and_leads_to_the_new() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("a.tar", &link).unwrap();
        export(&link, b"new");
        assert!(link.is_symlink());
        assert_eq!(fs::read(dir.path().join("a.tar")).unwrap(), b"new");
    }

    #[test]
    fn a_link_of_the_system_is_no_name_to_replace() {
        for (path, want) in [
            ("/dev/stdout", Place::Open),
            ("/dev/fd/1", Place::Open),
            ("/proc/self/fd/1", Place::Open),
            ("/proc/self/exe", Place::Open),
            ("/proc/version", Place::File("/proc/version".into())),
        ] {
            assert_eq!(place(Path::new(path)).unwrap(), want, "{path}");
        }
    }

    #[test]
    fn one_file_is_made_twice_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a".repeat(255));
        fs::write(&path, "old").unwrap();
        // The first may as well have been left by a process of the same number that was killed.
        let [(_first, _), (second, mut file)] = [(); 2].map(|()| Target::create(&path).unwrap());
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        second.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn the_owner_stays_and_nobody_else_sees_what_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        fs::write(&path, "old").unwrap();
        // Only root can show the first half of it.
        let owner = fchown(File::open(&path).unwrap(), Some(1234), Some(1235));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let before = fs::metadata(&path).unwrap();
        assert_eq!(before.uid() == 1234, owner.is_ok());
        let (_target, draft) = Target::create(&path).unwrap();
        assert_ne!(draft.metadata().unwrap().ino(), before.ino());
        assert_eq!(draft.metadata().unwrap().uid(), before.uid());
        export(&path, b"new");
        let after = fs::metadata(&path).unwrap();
        let of = |there: &fs::Metadata| (there.uid(), there.gid(), there.mode());
        assert_eq!(of(&after), of(&before));
        assert_ne!(after.ino(), before.ino());
        let (from, made) = super::draft(&path, 0o600).unwrap();
        assert_eq!(made.metadata().unwrap().mode() & 0o077, 0);
        fs::remove_file(from).unwrap();
    }

    #[test]
    fn a_file_whose_directory_takes_no_other_is_written_where_it_is() {
        let path = Path::new("/proc/thread-self/comm");
        export(path, b"exported");
        assert_eq!(fs::read(path).unwrap(), b"exported\n");
    }

    #[test]
    fn a_file_that_is_a_mount_point_is_written_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let [path, source] = ["a.tar", "source"].map(|name| dir.path().join(name));
        fs::write(&path, "hidden").unwrap();
        fs::write(&source, "a longer old one").unwrap();
        let bind = types::Mount {
            kind: "bind".to_owned(),
            source: source.to_str().unwrap().to_owned(),
            target: String::new(),
            options: vec!["bind".to_owned()],
        };
        // Only root may mount.
        if sys::mount::mount(&bind, &path).is_err() {
            return;
        }
        let made = Target::create(&path).and_then(|(target, mut file)| {
            file.write_all(b"new").unwrap();
            target.finish()
        });
        sys::mount::unmount(&path).unwrap();
        made.unwrap();
        assert_eq!(fs::read(&source).unwrap(), b"new");
        assert_eq!(fs::read(&path).unwrap(), b"hidden");
        assert_eq!(names(dir.path()), ["a.tar", "source"]);
    }
}
