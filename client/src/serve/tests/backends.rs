//! The snapshotters' suite over a socket: each of ours, for what they say of themselves and what their mounts
//! are differs.

use std::path::PathBuf;

use snapshotters::{Blockfile, BlockfileConfig, Btrfs, Erofs, ErofsConfig, Native, testsuite};
use sys::mount::TempMount;
use sys::process::Spawn;
use types::Mount;

use super::*;

/// A snapshotter over a socket does all that it does without.
async fn conforms(made: Local) {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("s");
    let rebases = made.rebases();
    let _running = served(made, &socket);
    let sn = proxied(&socket, "mine", FAR).with_rebase(rebases);
    let sn: Arc<dyn Snapshotter> = Arc::new(sn);
    testsuite::all(&sn).await;
    // What it has mounted itself would outlive the test.
    sn.cleanup().await.unwrap();
}

/// A file with an empty file system in it.
fn image(dir: &Path, kind: &str, mib: u64) -> PathBuf {
    let file = dir.join("image");
    let made = std::fs::File::create(&file).unwrap();
    made.set_len(mib << 20).unwrap();
    let mkfs = Spawn::new(format!("mkfs.{kind}")).arg("-q").arg(&file);
    let done = mkfs.answer(&[], 4096, FAR).unwrap();
    assert!(done.status.is_success(), "{done:?}");
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_overlay_conforms() {
    let temp = tempfile::tempdir().unwrap();
    conforms(overlay(temp.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_native_one_conforms() {
    let temp = tempfile::tempdir().unwrap();
    conforms(Native::open(temp.path()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_erofs_conforms() {
    let temp = tempfile::tempdir().unwrap();
    let made = Erofs::open(temp.path(), ErofsConfig::default());
    conforms(made.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_blockfile_conforms() {
    let temp = tempfile::tempdir().unwrap();
    let config = BlockfileConfig {
        scratch_file: Some(image(temp.path(), "ext4", 8)),
        ..BlockfileConfig::default()
    };
    let made = Blockfile::open(&temp.path().join("root"), config);
    conforms(made.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_btrfs_conforms() {
    let temp = tempfile::tempdir().unwrap();
    let disk = Mount {
        kind: "btrfs".into(),
        source: image(temp.path(), "btrfs", 256).display().to_string(),
        target: String::new(),
        options: vec!["loop".into()],
    };
    let mounted = TempMount::new(&[disk], temp.path()).unwrap();
    conforms(Btrfs::open(&mounted.path().join("root")).unwrap()).await;
}
