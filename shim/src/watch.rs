//! Descriptors in the event loop.

use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use types::{Error, Result};

/// Watches an owned descriptor for readiness.
///
/// # Errors
/// The errno: some files cannot be watched.
pub(crate) fn watch<T: AsRawFd>(fd: T) -> Result<AsyncFd<T>> {
    watch_for(fd, Interest::READABLE | Interest::WRITABLE)
}

/// As [`watch`], for some kinds of readiness only.
///
/// # Errors
/// As [`watch`].
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that lie about their descriptor; ours own theirs"
)]
pub(crate) fn watch_for<T: AsRawFd>(fd: T, interest: Interest) -> Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest).map_err(|e| Error::os("watch descriptor", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use std::time::Duration;
    use tokio::time::timeout;

    /// A group of version 2 that goes with it; `None` without such a hierarchy.
    struct Group(std::path::PathBuf);

    impl Group {
        fn new() -> Option<Self> {
            let mounts = sys::mount::info::load().unwrap();
            let root = mounts.into_iter().find(|mount| mount.kind == "cgroup2")?;
            let name = format!("shim-test-events-{}", std::process::id());
            let group = Self(root.mount_point.join(name));
            std::fs::create_dir(&group.0).unwrap();
            Some(group)
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            drop(std::fs::remove_dir(&self.0));
        }
    }

    /// As `memory.events` does, and without a controller.
    #[test]
    fn a_groups_file_is_ready_by_priority_for_every_change() {
        let Some(group) = Group::new() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let file = File::open(group.0.join("cgroup.events")).unwrap();
            let look = |file: &File| file.read_at(&mut [0; 256], 0).unwrap();
            look(&file);
            let file = watch_for(file, Interest::PRIORITY).unwrap();
            let next = || timeout(Duration::from_secs(60), file.ready(Interest::PRIORITY));
            for _ in 0..3 {
                let child = sys::process::Spawn::new("sleep").arg("60").spawn().unwrap();
                std::fs::write(group.0.join("cgroup.procs"), child.pid().to_string()).unwrap();
                let mut ready = next().await.unwrap().unwrap();
                look(file.get_ref());
                ready.clear_ready();
                child.kill(libc::SIGKILL).unwrap();
                child.wait().unwrap();
                let mut ready = next().await.unwrap().unwrap();
                look(file.get_ref());
                ready.clear_ready();
            }
            let more = file.ready(Interest::PRIORITY);
            timeout(Duration::from_millis(50), more).await.unwrap_err();
        });
    }

    #[test]
    fn a_plain_file_cannot_be_watched() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let file = tempfile::tempfile().unwrap();
            let refused = watch_for(file, Interest::PRIORITY).unwrap_err();
            assert_eq!(refused.errno(), Some(libc::EPERM));
        });
    }
}
