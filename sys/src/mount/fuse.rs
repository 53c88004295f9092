//! File systems of FUSE, mounted by its own helper.
//!
//! ```text
//! type fuse3.fuse-overlayfs -> mount.fuse3 SOURCE TARGET -o OPTION.. -t fuse-overlayfs
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use types::{Error, Mount, Result};

use crate::process::Spawn;

/// A file system that does not come up in this time is not waited for.
const DEADLINE: Duration = Duration::from_secs(30);
/// What is kept of the helper's words.
const WORDS: usize = 4096;

/// One of the two helpers, and the program that it is to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Helper<'a> {
    program: &'static str,
    kind: &'a str,
}

impl<'a> Helper<'a> {
    /// The helper for a type of mount that needs one.
    pub(super) fn of(kind: &'a str) -> Option<Self> {
        let of = |prefix, program| {
            let kind = kind.strip_prefix(prefix)?;
            Some(Self { program, kind })
        };
        of("fuse3.", "mount.fuse3").or_else(|| of("fuse.", "mount.fuse"))
    }

    /// Mounts, and waits until the file system is there.
    ///
    /// # Errors
    /// `NotFound` without the helper; `InvalidArgument` for a source or an option that would be read as
    /// something else; `DeadlineExceeded`; `Unknown` with the helper's words.
    pub(super) fn mount(self, mount: &Mount, target: &Path) -> Result<()> {
        let target = seen_from_outside(target)?;
        if mount.source.starts_with('-') || self.kind.is_empty() {
            return Err(Error::invalid_argument(format_args!(
                "mount type {} with source {:?}",
                mount.kind, mount.source
            )));
        }
        let mut spawn = Spawn::new(self.program).arg(&mount.source).arg(target);
        for option in &mount.options {
            spawn = spawn.arg("-o").arg(option);
        }
        let output = spawn.args(["-t", self.kind]).output(&[], WORDS, DEADLINE)?;
        if output.status.is_success() {
            return Ok(());
        }
        Err(Error::unknown(format_args!(
            "{} failed with code {}: {}",
            self.program,
            output.status.code(),
            String::from_utf8_lossy(&output.text).trim()
        )))
    }
}

/// The path as another process finds it: `self` is somebody else there.
fn seen_from_outside(path: &Path) -> Result<PathBuf> {
    if let Ok(rest) = path.strip_prefix("/proc/self") {
        return Ok(Path::new("/proc")
            .join(std::process::id().to_string())
            .join(rest));
    }
    std::path::absolute(path).map_err(|e| crate::error::at("resolve", path, e))
}

#[cfg(test)]
mod tests {
    use super::super::{info, is_mount_point, mount, unmount};
    use super::*;

    #[test]
    fn types_name_helper_and_program() {
        let helper = |program, kind| Some(Helper { program, kind });
        assert_eq!(Helper::of("fuse3.x"), helper("mount.fuse3", "x"));
        assert_eq!(Helper::of("fuse.x.y"), helper("mount.fuse", "x.y"));
        assert_eq!(Helper::of("overlay"), None);
        assert_eq!(Helper::of("fuseblk"), None);
    }

    #[test]
    fn an_overlay_of_fuse_is_mounted_by_its_helper() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        std::fs::write(Path::new(&path("lower")).join("f"), "text").unwrap();
        let to = path("to/sub");
        let overlay = Mount {
            kind: "fuse3.fuse-overlayfs".into(),
            source: "overlay".into(),
            target: "sub".into(),
            options: vec![
                format!("lowerdir={}", path("lower")),
                format!("upperdir={}", path("upper")),
                format!("workdir={}", path("work")),
            ],
        };
        mount(&overlay, &dir.path().join("to")).unwrap();
        let to = Path::new(&to);
        assert!(is_mount_point(to).unwrap());
        assert_eq!(std::fs::read(to.join("f")).unwrap(), b"text");
        let real = to.canonicalize().unwrap();
        let there = info::load().unwrap();
        let kind = there.iter().find(|m| m.mount_point == real).unwrap();
        assert!(kind.kind.starts_with("fuse"), "{kind:?}");
        unmount(to).unwrap();
        assert!(!is_mount_point(to).unwrap());
    }

    #[test]
    fn what_the_helper_says_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let bad = |source: &str| Mount {
            kind: "fuse3.no-such-file-system".into(),
            source: source.into(),
            ..Mount::default()
        };
        let error = mount(&bad("x"), dir.path()).unwrap_err().to_string();
        assert!(error.contains("mount.fuse3 failed"), "{error}");
        let error = mount(&bad("-o"), dir.path()).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
        assert!(!is_mount_point(dir.path()).unwrap());
    }
}
