//! `mkfs/`: the source is a file with a new file system in it, unless it is there already.
//!
//! ```text
//! X-containerd.mkfs.size=<bytes, or 64MiB, 1g ..>  .fs=ext4|ext3|ext2|xfs  .uuid=<uuid>
//! ```
//! Invariant: a file under the source's name has a whole file system: it gets its name afterwards.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sys::process::Spawn;
use types::{Error, Mount, Result};

/// Options that are ours and not the file system's.
const OPTION: &str = "X-containerd.mkfs.";
/// A disk that takes longer has another problem.
const DEADLINE: Duration = Duration::from_secs(300);
/// What is kept of the program's words.
const WORDS: usize = 4096;
/// Number under which the program has the file.
const DISK: i32 = 3;

/// What is to be made.
#[derive(Debug, Default, PartialEq, Eq)]
struct Disk<'a> {
    size: u64,
    kind: Option<&'a str>,
    uuid: Option<&'a str>,
}

pub(super) fn apply(mut mount: Mount, roots: &[PathBuf]) -> Result<Mount> {
    let disk = Disk::parse(&mount.options)?;
    disk.make(&mount.source, roots)?;
    mount.options.retain(|option| !option.starts_with(OPTION));
    Ok(mount)
}

impl<'a> Disk<'a> {
    fn parse(options: &'a [String]) -> Result<Self> {
        let mut disk = Self::default();
        for option in options {
            let Some(text) = option.strip_prefix(OPTION) else {
                continue;
            };
            let bad = || Error::invalid_argument(format_args!("mkfs option {option:?}"));
            match text.split_once('=').ok_or_else(bad)? {
                ("size", size) => disk.size = bytes(size).ok_or_else(bad)?,
                ("fs", kind) => disk.kind = Some(kind),
                ("uuid", uuid) if is_uuid(uuid) => disk.uuid = Some(uuid),
                _ => return Err(bad()),
            }
        }
        if disk.size == 0 {
            return Err(Error::invalid_argument("mkfs needs the option mkfs.size"));
        }
        Ok(disk)
    }

    /// The program, and its arguments but for the disk.
    fn program(&self) -> Result<Spawn> {
        match self.kind.unwrap_or("ext4") {
            kind @ ("ext2" | "ext3" | "ext4") => {
                let spawn = Spawn::new(format!("mkfs.{kind}")).args(["-q", "-F"]);
                Ok(match self.uuid {
                    Some(uuid) => spawn.args(["-U", uuid]),
                    None => spawn,
                })
            }
            "xfs" => {
                let spawn = Spawn::new("mkfs.xfs").args(["-q", "-f"]);
                Ok(match self.uuid {
                    Some(uuid) => spawn.arg("-m").arg(format!("uuid={uuid}")),
                    None => spawn,
                })
            }
            other => Err(Error::invalid_argument(format_args!(
                "file system {other:?} cannot be made"
            ))),
        }
    }

    fn make(&self, path: &str, roots: &[PathBuf]) -> Result<()> {
        let spawn = self.program()?;
        let os =
            |call: &'static str| move |e: Errno| Error::os(format_args!("{call} {path}"), e.into());
        let (parent, name) = super::parent(path, roots)?;
        match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(os("stat")(e)),
        }
        // Without a name until it is whole: nothing is left by whatever happens before.
        let parent = rustix::fs::openat(
            &parent,
            c".",
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(os("open directory of"))?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o640);
        let file = rustix::fs::openat(&parent, c".", flags, mode).map_err(os("create"))?;
        let file = File::from(file);
        let io = |call: &'static str| {
            move |e: std::io::Error| Error::os(format_args!("{call} {path}"), e)
        };
        file.set_len(self.size).map_err(io("truncate"))?;
        let theirs = file.try_clone().map_err(io("dup"))?;
        run(spawn, theirs.into())?;
        file.sync_all().map_err(io("fsync"))?;
        let by_descriptor = sys::fs::fd_path(file.as_fd());
        match rustix::fs::linkat(
            rustix::fs::CWD,
            by_descriptor,
            &parent,
            &name,
            AtFlags::SYMLINK_FOLLOW,
        ) {
            // Somebody else was as quick.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(os("link")(e)),
        }
        rustix::fs::fsync(&parent).map_err(os("fsync directory of"))
    }
}

fn run(spawn: Spawn, disk: OwnedFd) -> Result<()> {
    let spawn = spawn.arg(format!("/proc/self/fd/{DISK}")).fd(disk, DISK);
    let output = spawn.output(&[], WORDS, DEADLINE)?;
    if output.status.is_success() {
        return Ok(());
    }
    Err(Error::unknown(format_args!(
        "mkfs failed with code {}: {}",
        output.status.code(),
        String::from_utf8_lossy(&output.text).trim()
    )))
}

/// A number, with or without a unit: powers of 1024, whatever the unit is called.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim();
    let unit = unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(unit);
    let power = match unit {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    // A file cannot be longer than this.
    number
        .checked_mul(1 << (10 * power))
        .filter(|n| i64::try_from(*n).is_ok())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, want) in [
            ("512", Some(512)),
            ("64k", Some(64 << 10)),
            ("64MiB", Some(64 << 20)),
            ("1 gb", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("-1", None),
            ("x", None),
            ("1z", None),
            ("99999999t", None),
        ] {
            assert_eq!(bytes(text), want, "{text}");
        }
    }

    fn disk(path: &str, options: &[&str]) -> Mount {
        Mount {
            kind: "ext4".into(),
            source: path.into(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn options_that_do_not_fit_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk").display().to_string();
        for options in [
            &[][..],
            &["X-containerd.mkfs.size=x"],
            &["X-containerd.mkfs.size=16m", "X-containerd.mkfs.fs=fat"],
            &["X-containerd.mkfs.size=16m", "X-containerd.mkfs.uuid=-rf"],
            &["X-containerd.mkfs.size=16m", "X-containerd.mkfs.color=red"],
        ] {
            let error = apply(disk(&path, options), &[dir.path().to_owned()]).unwrap_err();
            assert!(
                error.is(types::Code::InvalidArgument),
                "{options:?}: {error}"
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn file_systems_are_made_once_and_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let roots = [dir.path().to_owned()];
        let uuid = "6a1f1d3c-8f3c-4f1a-9d53-0c1d2e3f4a5b";
        for (kind, magic_at, magic) in [("ext4", 1080, [0x53, 0xef]), ("xfs", 0, *b"XF")] {
            let path = dir.path().join(kind);
            let options = [
                "ro".to_owned(),
                "X-containerd.mkfs.size=320m".to_owned(),
                format!("X-containerd.mkfs.fs={kind}"),
                format!("X-containerd.mkfs.uuid={uuid}"),
            ];
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let got = apply(disk(path.to_str().unwrap(), &options), &roots).unwrap();
            assert_eq!(got.options, ["ro"]);
            let made = File::open(&path).unwrap();
            let mut found = [0; 2];
            made.read_exact_at(&mut found, magic_at).unwrap();
            assert_eq!((made.metadata().unwrap().len(), found), (320 << 20, magic));
            // What is there stays as it is.
            std::fs::write(&path, "mine").unwrap();
            apply(disk(path.to_str().unwrap(), &options), &roots).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        }
        let small = dir.path().join("small");
        let options = ["X-containerd.mkfs.size=1k", "X-containerd.mkfs.fs=xfs"];
        let error = apply(disk(small.to_str().unwrap(), &options), &roots).unwrap_err();
        assert!(error.to_string().contains("mkfs failed"), "{error}");
        assert!(!small.exists());
    }
}
