//! Which descriptors of a process are not the container's.
//!
//! A fifo or a log file that a process writes to is a file of the host, and CRIU gives up on a file
//! that it cannot find in the container. So the dump is told that these are external, and the restore
//! is told which of the new streams takes the place of which. Runtimes have no flag for that; CRIU reads
//! it from a file of options that its environment names.
//!
//! Invariant: what goes into that file are numbers, whatever an image from elsewhere says, and no more of
//! an image is read than what a shim writes into one.

use std::fmt::Display;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Error, Result};

use super::Action;

/// In the image: which descriptors were external. Beside CRIU's own files, which end in `.img`.
const STDIO: &str = "stdio.json";
/// The same, until the image is made.
const STAGED: &str = "stdio.json.new";
/// Longest such file that is read: three pairs of numbers are far shorter.
const MAX_STDIO: u64 = 64 * 1024;
/// Longest list of a process's mounts that is read: the container makes them. Some ten thousand lines.
const MAX_MOUNTS: u64 = 2 << 20;
/// What is read of the facts of a descriptor: the mount is in the third line, locks may follow.
const FACTS: u64 = 512;
/// As runtimes make an image's directory: it holds the container's memory.
const IMAGE_MODE: u32 = 0o700;
/// Standard descriptors.
const STREAMS: usize = 3;

/// A file by its mount and inode, as CRIU names it.
type Name = (u32, u64);

/// Which of the standard streams are files outside the container.
#[derive(Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Streams([Option<Name>; STREAMS]);

impl Streams {
    /// Those of a process.
    ///
    /// # Errors
    /// `ResourceExhausted` when it has too many mounts.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Self::of_process(&PathBuf::from(format!("/proc/{pid}")), MAX_MOUNTS)
    }

    fn of_process(process: &Path, most: u64) -> Result<Self> {
        // Of a process that is gone there is nothing to dump, either.
        let mounts = start_of(&process.join("mountinfo"), most + 1).unwrap_or_default();
        if mounts.len() as u64 > most {
            return Err(Error::resource_exhausted(format_args!(
                "list of mounts of the container, longer than {most} bytes"
            )));
        }
        let name = |stream: usize| outside(process, &mounts, stream);
        Ok(Self([name(0), name(1), name(2)]))
    }

    /// Those that an image was made with.
    ///
    /// # Errors
    /// `InvalidArgument` for a file that says something else, is none, or is too long.
    pub(crate) fn load(image: &Path) -> Result<Self> {
        let bad = |why: &dyn Display| {
            Error::invalid_argument(format_args!("{STDIO} of checkpoint: {why}"))
        };
        match short_file(&image.join(STDIO), MAX_STDIO) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| bad(&e)),
            // Made by another shim, or without such streams.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Ok(Self::default())
            }
            Err(e) => Err(bad(&e)),
        }
    }

    /// Writes them beside an image that is to be made, in its directory, which is made too: what can
    /// go wrong does so before the dump, which may be the end of the container.
    ///
    /// # Errors
    /// The errno of writing.
    pub(crate) fn stage(&self, image: &Path) -> Result<Staged> {
        let mut dir = std::fs::DirBuilder::new();
        dir.recursive(true).mode(IMAGE_MODE);
        dir.create(image)
            .map_err(|e| Error::os(format_args!("mkdir {}", image.display()), e))?;
        let staged = Staged(image.to_owned());
        if *self != Self::default() {
            let text = serde_json::to_vec(self).map_err(Error::internal)?;
            let file = staged.file();
            sys::fs::write_atomic_with(&file, &text, 0o600, sys::fs::Flush::Volatile)?;
        }
        Ok(staged)
    }

    /// As options of CRIU, one a line. A file has one name, however many streams it is.
    pub(super) fn options(&self, action: Action) -> String {
        let mut text = String::new();
        for (stream, name) in self.0.iter().enumerate() {
            let Some((mount, inode)) = name else { continue };
            if self.0[..stream].contains(name) {
                continue;
            }
            let file = format!("file[{mount:x}:{inode:x}]");
            text.push_str(&match action {
                Action::Dump => format!("external {file}\n"),
                Action::Restore => format!("inherit-fd fd[{stream}]:{file}\n"),
            });
        }
        text
    }
}

/// The streams of an image that is being made. Dropped, they are forgotten: what the directory held
/// before stays.
#[derive(Debug)]
pub(crate) struct Staged(PathBuf);

impl Staged {
    fn file(&self) -> PathBuf {
        self.0.join(STAGED)
    }

    /// The image is made: these are its streams.
    ///
    /// # Errors
    /// The errno of renaming.
    pub(crate) fn keep(self) -> Result<()> {
        let name = self.0.join(STDIO);
        let kept = match std::fs::rename(self.file(), &name) {
            // This image has none; those of one that was here before are not its own.
            Err(e) if e.kind() == ErrorKind::NotFound => std::fs::remove_file(&name),
            other => other,
        };
        match kept {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(Error::os(format_args!("keep {}", name.display()), e))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Absent without such streams, and when they were kept.
        drop(std::fs::remove_file(self.file()));
    }
}

/// The name of a stream that is a fifo or file and not on a mount of its process.
fn outside(process: &Path, mounts: &str, stream: usize) -> Option<Name> {
    let link = process.join(format!("fd/{stream}"));
    if !std::fs::read_link(&link).ok()?.is_absolute() {
        // A pipe without a name: the runtime takes care of it.
        return None;
    }
    let facts = std::fs::metadata(&link).ok()?;
    if !facts.file_type().is_fifo() && !facts.is_file() {
        return None;
    }
    let about = start_of(&process.join(format!("fdinfo/{stream}")), FACTS).ok()?;
    let mount = about
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?;
    let mount: u32 = mount.trim().parse().ok()?;
    let mut own = mounts.lines().filter_map(|line| line.split(' ').next());
    if own.any(|id| id.parse() == Ok(mount)) {
        return None;
    }
    Some((mount, facts.ino()))
}

/// The first bytes of a file of the kernel.
fn start_of(path: &Path, most: u64) -> std::io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A file that somebody else has made, when it is one and no longer than `most`. A fifo or a device is not
/// waited for.
fn short_file(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    file.take(most + 1).read_to_end(&mut text)?;
    if text.len() as u64 > most {
        let why = format!("longer than {most} bytes");
        return Err(std::io::Error::other(why));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::Run;

    #[test]
    fn streams_have_names_that_dump_and_restore_agree_on() {
        let bundle = tempfile::tempdir().unwrap();
        let streams = Streams([None, Some((27, 0x99)), Some((27, 0x99))]);
        let image = bundle.path().join("new/image");
        let staged = streams.stage(&image).unwrap();
        assert_eq!(Streams::load(&image).unwrap(), Streams::default());
        staged.keep().unwrap();
        assert_eq!(Streams::load(&image).unwrap(), streams);
        // A dump that fails leaves them; one of a container without such streams does not.
        drop(Streams([Some((1, 2)), None, None]).stage(&image).unwrap());
        assert_eq!(Streams::load(&image).unwrap(), streams);
        Streams::default().stage(&image).unwrap().keep().unwrap();
        assert_eq!(std::fs::read_dir(&image).unwrap().count(), 0);
        assert_eq!(streams.options(Action::Dump), "external file[1b:99]\n");
        let mut run = Run::new(Action::Restore, bundle.path(), "").unwrap();
        run.streams(&streams).unwrap();
        let options = run.options().unwrap().to_owned();
        assert_eq!(
            std::fs::read_to_string(&options).unwrap(),
            "inherit-fd fd[1]:file[1b:99]\n"
        );
        drop(run);
        assert!(!options.exists());
    }

    #[test]
    fn an_image_cannot_smuggle_options() {
        let image = tempfile::tempdir().unwrap();
        assert_eq!(Streams::load(image.path()).unwrap(), Streams::default());
        for bad in [
            r#"["file[1:2]\naction-script /x",null,null]"#,
            "[[1,2]]",
            "[[-1,2],null,null]",
            "{",
        ] {
            std::fs::write(image.path().join(STDIO), bad).unwrap();
            let error = Streams::load(image.path()).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn what_is_no_short_file_is_not_read() {
        let image = tempfile::tempdir().unwrap();
        let file = image.path().join(STDIO);
        let load = |why: &str| {
            let error = Streams::load(image.path()).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument), "{error}");
            assert!(error.to_string().contains(why), "{error}");
            if file.is_dir() {
                std::fs::remove_dir(&file).unwrap();
            } else {
                std::fs::remove_file(&file).unwrap();
            }
        };
        // Eight GiB, of which the disk has none.
        File::create(&file).unwrap().set_len(1 << 33).unwrap();
        load("longer than 65536 bytes");
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
        load("not a regular file");
        std::fs::create_dir(&file).unwrap();
        load("not a regular file");
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        load("symbolic links");
        let mut long = b"[null,null,null]".to_vec();
        long.resize(usize::try_from(MAX_STDIO).unwrap(), b' ');
        std::fs::write(&file, &long).unwrap();
        assert_eq!(Streams::load(image.path()).unwrap(), Streams::default());
    }

    #[test]
    fn of_a_process_with_very_many_mounts_no_dump_is_made() {
        let process = tempfile::tempdir().unwrap();
        let streams = || Streams::of_process(process.path(), 100);
        assert_eq!(streams().unwrap(), Streams::default());
        let mounts = process.path().join("mountinfo");
        std::fs::write(&mounts, [b'1'; 100]).unwrap();
        assert_eq!(streams().unwrap(), Streams::default());
        // Terabytes, of which no more is read than that.
        File::create(&mounts).unwrap().set_len(1 << 42).unwrap();
        let error = streams().unwrap_err();
        assert!(error.is(types::Code::ResourceExhausted), "{error}");
    }

    #[test]
    fn only_files_of_other_mounts_are_outside() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let child = sys::process::Spawn::new("sleep")
            .arg("60")
            .stdin(sys::process::null().unwrap())
            .stdout(file.into())
            .spawn()
            .unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.pid()));
        let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap();
        let inode = std::fs::metadata(dir.path().join("f")).unwrap().ino();
        let found = (0..STREAMS).map(|stream| outside(&process, "", stream).map(|(_, ino)| ino));
        assert_eq!(found.take(2).collect::<Vec<_>>(), [None, Some(inode)]);
        assert_eq!(outside(&process, &mounts, 1), None);
        child.kill(libc::SIGKILL).unwrap();
        child.wait().unwrap();
    }
}
