//! The root file system of a container, where the shim mounts it.
//!
//! Invariant: the event loop is never in the call that drops the last use of a file system. That call,
//! a `umount2` or a `close`, has the kernel take the file system down before it returns (task work of
//! the caller, `MNT_DETACH` or not), and overlay begins with writing back all that is dirty on the
//! file system of its upper directory: seconds, on a busy disk. It is made on a thread for it alone.

use std::mem::ManuallyDrop;
use std::path::Path;
use std::time::Duration;

use protos::shim::task::CreateTaskRequest;
use protos::wire::Wire as _;
use tokio::sync::oneshot;
use types::{Context as _, Error, Mount, Result, bundle_file};

use crate::log;

/// When a detached file system is let go: after the answer has left.
const LET_GO: Duration = Duration::from_millis(2);

/// Mounts what a request wants there, if anything.
///
/// # Errors
/// As [`sys::mount::mount_all`]; nothing is left then.
pub(super) fn mount(bundle: &Path, request: &CreateTaskRequest) -> Result<bool> {
    if request.rootfs.is_empty() {
        return Ok(false);
    }
    let mounts = request
        .rootfs
        .iter()
        .cloned()
        .map(Mount::from_wire)
        .collect::<Result<Vec<_>>>()?;
    let rootfs = bundle.join(bundle_file::ROOTFS);
    if !rootfs.exists() {
        std::fs::create_dir(&rootfs)
            .map_err(|e| Error::os(format_args!("mkdir {}", rootfs.display()), e))?;
    }
    sys::mount::mount_all(&mounts, &rootfs)
        .map_err(|e| e.ctx("failed to mount rootfs component"))?;
    Ok(true)
}

/// Takes it away. What is mounted there is out of sight at once. An overlay is dropped after the answer:
/// its directories can be removed before. Any other file system is gone when this returns: who made the
/// mounts may take its device away next.
///
/// # Errors
/// The errno of the kernel.
pub(super) async fn unmount(bundle: &Path) -> Result<()> {
    let rootfs = bundle.join(bundle_file::ROOTFS);
    let mut kept = Vec::new();
    // There may be another one below the first. What was mounted in them goes along.
    let unmounted = loop {
        match sys::mount::detach_keeping(&rootfs) {
            Ok(Some(one)) => kept.push(one),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let (later, now): (Vec<_>, Vec<_>) =
        kept.into_iter().partition(|fd| sys::mount::is_overlay(fd));
    if !now.is_empty() {
        // Out of resources, they are dropped all the same.
        let _gone = beside(move || drop(now)).await;
    }
    if !later.is_empty() {
        let_go(later);
    }
    unmounted.ctx("failed rootfs umount")
}

/// Drops, soon, what takes its time to drop. Nobody waits for it. When the shim ends before, that
/// does it: a descriptor is closed by the process's end at the latest, after the connections.
fn let_go<T: Send + 'static>(kept: T) {
    let kept = ManuallyDrop::new(kept);
    drop(tokio::spawn(async move {
        tokio::time::sleep(LET_GO).await;
        let kept = ManuallyDrop::into_inner(kept);
        if let Err(error) = sys::limits::spawn_small(move || drop(kept)) {
            // Out of resources: it was dropped here.
            log::warn(format_args!("rootfs let go in the event loop: {error}"));
        }
    }));
}

/// Takes it away with all that is mounted in it, and waits until it is gone: who made the mounts may
/// take their directories away next.
///
/// # Errors
/// As [`sys::mount::unmount_recursive`].
pub(super) async fn unmount_deep(bundle: &Path) -> Result<()> {
    let rootfs = bundle.join(bundle_file::ROOTFS);
    let there = rootfs.clone();
    let unmounted = beside(move || sys::mount::unmount_recursive(&there)).await;
    // Out of resources: the loop waits.
    unmounted.unwrap_or_else(|| sys::mount::unmount_recursive(&rootfs))
}

/// Waits for what blocks, on a thread for it alone. `None` when there is none to be had: then it was
/// dropped here.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    // Who asked is there, or the shim is about to end.
    let started = sys::limits::spawn_small(move || drop(tell.send(work())));
    started.ok()?;
    told.await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::block_on;
    use rustix::fs::inotify;
    use std::sync::mpsc;

    /// Says when it begins to go, takes until it is told to, but not for ever, and says whether it was.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<bool>);

    impl Drop for Slow {
        fn drop(&mut self) {
            self.1.send(true).unwrap();
            let told = self.0.recv_timeout(Duration::from_secs(60)).is_ok();
            self.1.send(told).unwrap();
        }
    }

    fn mounted(bundle: &Path) -> std::path::PathBuf {
        let tmpfs = Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            ..Mount::default()
        };
        let request = CreateTaskRequest {
            rootfs: vec![tmpfs.to_wire(), tmpfs.to_wire()],
            ..CreateTaskRequest::default()
        };
        assert!(mount(bundle, &request).unwrap());
        bundle.join("rootfs")
    }

    #[test]
    fn the_loop_goes_on_while_a_file_system_is_let_go() {
        block_on(async {
            let ((go, wait), (say, said)) = (mpsc::channel(), mpsc::channel());
            let_go(Slow(wait, say));
            // Nothing blocks here: on a busy machine it is the loop that has yet to begin with it.
            let hears = async || {
                loop {
                    match said.try_recv() {
                        Ok(told) => break told,
                        Err(_) => tokio::time::sleep(LET_GO).await,
                    }
                }
            };
            let soon = Duration::from_secs(60);
            tokio::time::timeout(soon, hears()).await.unwrap();
            go.send(()).unwrap();
            assert!(tokio::time::timeout(soon, hears()).await.unwrap());
        });
    }

    #[test]
    fn a_runtime_that_ends_before_does_not_wait() {
        let ((_go, wait), (say, said)) = (mpsc::channel(), mpsc::channel());
        block_on(async { let_go(Slow(wait, say)) });
        assert_eq!(said.try_recv(), Err(mpsc::TryRecvError::Empty));
    }

    #[test]
    fn a_file_system_of_its_own_is_down_when_the_answer_leaves() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let rootfs = mounted(dir.path());
            let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
            // It tells of an unmount without being asked.
            inotify::add_watch(&watch, &rootfs, inotify::WatchFlags::MODIFY).unwrap();
            unmount(dir.path()).await.unwrap();
            // What a child of another test has open there keeps it a moment longer. Nothing of the event loop
            // is done meanwhile.
            let soon = Duration::from_secs(20);
            assert!(sys::pipe::is_readable_within(&watch, soon));
        });
    }

    #[test]
    fn all_that_is_mounted_there_goes() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let rootfs = mounted(dir.path());
            unmount(dir.path()).await.unwrap();
            assert!(!sys::mount::is_mount_point(&rootfs).unwrap());
            mounted(dir.path());
            unmount_deep(dir.path()).await.unwrap();
            assert!(!sys::mount::is_mount_point(&rootfs).unwrap());
            // Nothing there, or no such place.
            unmount(dir.path()).await.unwrap();
            unmount_deep(&dir.path().join("gone")).await.unwrap();
            unmount(&dir.path().join("gone")).await.unwrap();
        });
    }
}
