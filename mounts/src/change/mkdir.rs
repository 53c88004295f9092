//! `mkdir/`: directories that the mount needs are made.
//!
//! ```text
//! X-containerd.mkdir.path=<directory>[:<octal mode>[:<uid>:<gid>]]
//! ```

use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use types::{Error, Mount, Result};

/// Options that are ours and not the file system's.
const OPTION: &str = "X-containerd.mkdir.";
/// Mode of directories that ask for none.
const MODE: u32 = 0o700;

/// One directory.
#[derive(Debug, PartialEq, Eq)]
struct Directory<'a> {
    path: &'a str,
    mode: u32,
    owner: Option<(u32, u32)>,
}

pub(super) fn apply(mut mount: Mount, roots: &[PathBuf]) -> Result<Mount> {
    for option in &mount.options {
        if let Some(text) = option.strip_prefix(OPTION) {
            parse(text)
                .ok_or_else(|| Error::invalid_argument(format_args!("mkdir option {option:?}")))?
                .make(roots)?;
        }
    }
    mount.options.retain(|option| !option.starts_with(OPTION));
    Ok(mount)
}

fn parse(text: &str) -> Option<Directory<'_>> {
    let mut parts = text.strip_prefix("path=")?.split(':');
    let path = parts.next().filter(|path| !path.is_empty())?;
    let mode = parts.next().map(|mode| u32::from_str_radix(mode, 8));
    let mode = mode.transpose().ok()?.unwrap_or(MODE);
    let mut id = || parts.next().map(str::parse).transpose().ok();
    let owner = match (id()?, id()?) {
        (None, None) => None,
        (Some(user), Some(group)) => Some((user, group)),
        _ => return None,
    };
    (mode <= 0o777 && parts.next().is_none()).then_some(Directory { path, mode, owner })
}

impl Directory<'_> {
    /// Makes it, or gives one that is there its mode and owner.
    fn make(&self, roots: &[PathBuf]) -> Result<()> {
        let os = |call: &'static str| {
            let path = self.path;
            move |e: Errno| Error::os(format_args!("{call} {path}"), e.into())
        };
        let (parent, name) = super::parent(self.path, roots)?;
        match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(self.mode)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(os("mkdir")(e)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, &name, flags, Mode::empty()).map_err(os("open"))?;
        if let Some((user, group)) = self.owner {
            sys::fs::chown_fd(&made, user, group)?;
        }
        rustix::fs::fchmod(&made, Mode::from_raw_mode(self.mode)).map_err(os("chmod"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn options_are_read() {
        let want = |path, mode, owner| Some(Directory { path, mode, owner });
        for (text, got) in [
            ("path=/a", want("/a", 0o700, None)),
            ("path=/a:755", want("/a", 0o755, None)),
            ("path=/a:0755:1:2", want("/a", 0o755, Some((1, 2)))),
            ("path=/a:755:1", None),
            ("path=/a:999", None),
            ("path=/a:1777", None),
            ("path=/a:755:x:1", None),
            ("path=/a:755:1:2:3", None),
            ("path=", None),
            ("mode=1", None),
        ] {
            assert_eq!(parse(text), got, "{text}");
        }
    }

    #[test]
    fn directories_are_made_and_the_options_go() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let mount = Mount {
            options: vec![
                "ro".into(),
                format!("{OPTION}path={root}/a:0750:5:6"),
                format!("{OPTION}path={root}/a/b"),
            ],
            ..Mount::default()
        };
        let roots = [dir.path().to_owned()];
        // The second time they are there.
        for _ in 0..2 {
            let got = apply(mount.clone(), &roots).unwrap();
            assert_eq!(got.options, ["ro"]);
            let facts = std::fs::metadata(dir.path().join("a")).unwrap();
            assert_eq!(
                (facts.mode() & 0o7777, facts.uid(), facts.gid()),
                (0o750, 5, 6)
            );
            assert!(dir.path().join("a/b").is_dir());
        }
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let bad = Mount {
            options: vec![format!("{OPTION}path={root}/link:0777")],
            ..Mount::default()
        };
        apply(bad, &roots).unwrap_err();
    }
}
