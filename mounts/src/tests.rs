//! Activations on a kernel.

use std::path::{Path, PathBuf};

use sys::process::Spawn;
use types::Code;

use super::*;

struct Bench {
    temp: tempfile::TempDir,
    mounts: Mounts,
    scope: Scope,
}

impl Bench {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mounts = Mounts::open(opts(temp.path())).unwrap();
        Self {
            mounts,
            temp,
            scope: Scope::new("test".parse().unwrap()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.temp.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// As after a crash.
    fn reopen(&mut self) {
        self.mounts = Mounts::open(opts(self.temp.path())).unwrap();
    }

    async fn activate(&self, name: &str, mounts: &[Mount]) -> Result<Activation> {
        let opts = ActivateOpts::default();
        self.mounts
            .activate(&self.scope, name, mounts.to_vec(), opts)
            .await
    }

    fn assert_nothing_is_left(&self) {
        let directory = self.temp.path().join("state");
        for name in ["t", "records"] {
            let left: Vec<_> = std::fs::read_dir(directory.join(name)).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let below = |point: &Path| point.starts_with(&directory);
        let left = sys::mount::info::load().unwrap().into_iter();
        assert_eq!(left.filter(|m| below(&m.mount_point)).count(), 0);
        assert!(self.mounts.held().is_empty());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(sys::mount::unmount_recursive(self.temp.path()));
    }
}

fn opts(temp: &Path) -> OpenOpts {
    OpenOpts {
        directory: temp.join("state"),
        roots: vec![temp.join("root")],
    }
}

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        kind: kind.into(),
        source: source.into(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
        ..Mount::default()
    }
}

/// A disk that is made, a device for it, and an overlay whose directories are made on it.
fn disk_and_overlay(bench: &Bench) -> Vec<Mount> {
    let disk = bench.path("root").join("disk").display().to_string();
    let lower = bench.path("lower");
    std::fs::write(lower.join("f"), "lower").unwrap();
    vec![
        mount("mkfs/loop", &disk, &["X-containerd.mkfs.size=16m"]),
        mount("format/ext4", "{{ mount 0 }}", &[]),
        mount(
            "format/mkdir/overlay",
            "overlay",
            &[
                "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 1 }}/work",
                &format!("lowerdir={}", lower.display()),
                "upperdir={{ mount 1 }}/upper",
                "workdir={{ mount 1 }}/work",
            ],
        ),
    ]
}

#[tokio::test]
async fn what_the_client_cannot_do_is_done_and_the_rest_is_filled_in() {
    let bench = Bench::new();
    let list = disk_and_overlay(&bench);
    let made = bench.activate("one", &list).await.unwrap();
    assert_eq!((made.active.len(), made.system.len()), (2, 1));
    assert_eq!(made.system[0].kind, "overlay");
    let point = bench.path("point");
    sys::mount::mount_all(&made.system, &point).unwrap();
    assert_eq!(std::fs::read(point.join("f")).unwrap(), b"lower");
    std::fs::write(point.join("g"), "upper").unwrap();
    assert!(
        Path::new(&made.active[1].mount_point)
            .join("upper/g")
            .exists()
    );
    let again = bench.activate("one", &list).await.unwrap_err();
    assert!(again.is(Code::AlreadyExists), "{again}");
    let namespace = &bench.scope.namespace;
    assert_eq!(bench.mounts.info(namespace, "one").unwrap(), made);
    let other: Namespace = "other".parse().unwrap();
    assert!(bench.mounts.info(&other, "one").unwrap_err().is_not_found());
    // In use: told, and gone on with later.
    let used = std::fs::File::open(Path::new(&made.active[1].mount_point).join("upper/g")).unwrap();
    let error = bench.mounts.deactivate(namespace, "one").await;
    assert_eq!(error.unwrap_err().errno(), Some(libc::EBUSY));
    assert!(
        bench
            .mounts
            .info(namespace, "one")
            .unwrap_err()
            .is_not_found()
    );
    sys::mount::unmount(&point).unwrap();
    drop(used);
    let held = bench.mounts.held();
    assert_eq!((held.len(), &held[0].lease), (1, &None));
    bench.mounts.collect(&held[0]).await.unwrap();
    bench.assert_nothing_is_left();
    let error = bench.mounts.deactivate(namespace, "one").await.unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn a_temporary_activation_is_one_directory() {
    let bench = Bench::new();
    let list = disk_and_overlay(&bench);
    let opts = ActivateOpts {
        temporary: true,
        ..ActivateOpts::default()
    };
    let made = bench
        .mounts
        .activate(&bench.scope, "t", list, opts)
        .await
        .unwrap();
    assert_eq!((made.active.len(), made.system.len()), (3, 1));
    let point = bench.path("point");
    sys::mount::mount_all(&made.system, &point).unwrap();
    assert_eq!(std::fs::read(point.join("f")).unwrap(), b"lower");
    sys::mount::unmount(&point).unwrap();
    bench
        .mounts
        .deactivate(&bench.scope.namespace, "t")
        .await
        .unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn images_of_erofs_are_mounted() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    std::fs::write(tree.join("f"), "text").unwrap();
    let image = bench.temp.path().join("layer.erofs");
    let made = Spawn::new("mkfs.erofs").arg(&image).arg(&tree);
    let made = made
        .output(&[], 65536, std::time::Duration::from_secs(60))
        .unwrap();
    assert!(made.status.is_success(), "{made:?}");
    let one = mount("erofs", &image.display().to_string(), &["ro", "loop"]);
    let made = bench
        .activate("e", std::slice::from_ref(&one))
        .await
        .unwrap();
    let point = Path::new(&made.active[0].mount_point);
    assert_eq!(std::fs::read(point.join("f")).unwrap(), b"text");
    assert_eq!(made.system[0].kind, "bind");
    bench
        .mounts
        .deactivate(&bench.scope.namespace, "e")
        .await
        .unwrap();
    let mut verified = one;
    verified.options.push("X-containerd.dmverity=/x".into());
    let error = bench.activate("v", &[verified]).await.unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn a_failure_leaves_nothing() {
    let bench = Bench::new();
    let mut list = disk_and_overlay(&bench);
    list.push(mount("format/bind", "{{ mount 7 }}", &[]));
    let error = bench.activate("x", &list).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    bench.assert_nothing_is_left();
    let bind = mount("bind", "/", &["rbind"]);
    let error = bench
        .activate("x", std::slice::from_ref(&bind))
        .await
        .unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
    for name in ["", "a\nb", &"n".repeat(MAX_NAME + 1)] {
        let error = bench.activate(name, &list).await.unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
    }
    let many = vec![bind; MAX_MOUNTS + 1];
    let error = bench.activate("x", &many).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn a_crash_keeps_what_is_whole_and_takes_the_rest_away() {
    let mut bench = Bench::new();
    let list = disk_and_overlay(&bench);
    let made = bench.activate("kept", &list).await.unwrap();
    bench.reopen();
    let namespace = bench.scope.namespace.clone();
    assert_eq!(bench.mounts.info(&namespace, "kept").unwrap(), made);
    // Another one is halfway when the daemon is killed.
    let state = bench.temp.path().join("state");
    let half = std::fs::read_to_string(state.join("records/1")).unwrap();
    let half = half
        .replace("\"kept\"", "\"half\"")
        .replace("\"active\"", "\"coming\"");
    let half = half.replace("\"coming\":[", "\"active\":[");
    std::fs::write(state.join("records/2"), half).unwrap();
    let half = state.join("t/2/000");
    std::fs::create_dir_all(&half).unwrap();
    sys::mount::mount(&mount("tmpfs", "tmpfs", &[]), &half).unwrap();
    // One has no record that could be read, and one has none.
    std::fs::write(state.join("records/3"), "{").unwrap();
    let lost = state.join("t/4/000");
    std::fs::create_dir_all(&lost).unwrap();
    sys::mount::mount(&mount("tmpfs", "tmpfs", &[]), &lost).unwrap();
    bench.reopen();
    let listed = bench.mounts.list(&namespace, &Filter::default());
    assert_eq!(listed, std::slice::from_ref(&made));
    assert_eq!(std::fs::read_dir(state.join("t")).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(state.join("records")).unwrap().count(), 1);
    // Somebody takes a mount away: what is left of the activation is of no use.
    sys::mount::unmount(Path::new(&made.active[1].mount_point)).unwrap();
    bench.reopen();
    assert!(bench.mounts.list(&namespace, &Filter::default()).is_empty());
    bench.assert_nothing_is_left();
    bench.activate("kept", &list).await.unwrap();
    bench.mounts.deactivate(&namespace, "kept").await.unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn what_is_mounted_is_kept_also_where_its_directory_is_reached_by_a_link() {
    let bench = Bench::new();
    let real = bench.path("real");
    let link = bench.temp.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let namespace = &bench.scope.namespace;
    let list = disk_and_overlay(&bench);
    let mut roots = opts(&link).roots;
    roots.push(bench.path("root"));
    let open = |way: &Path| {
        let opts = OpenOpts {
            roots: roots.clone(),
            ..opts(way)
        };
        Mounts::open(opts).unwrap()
    };
    let options = ActivateOpts::default();
    let first = open(&link);
    let made = first.activate(&bench.scope, "one", list, options).await;
    let made = made.unwrap();
    // The next daemon comes the same way, and one after it another.
    for way in [&link, &real] {
        let mounts = open(way);
        assert_eq!(mounts.info(namespace, "one").unwrap(), made);
    }
    open(&link).deactivate(namespace, "one").await.unwrap();
}

#[tokio::test]
async fn a_device_that_has_passed_to_somebody_else_is_not_touched() {
    let bench = Bench::new();
    let (ours, theirs) = (
        bench.temp.path().join("ours"),
        bench.temp.path().join("theirs"),
    );
    for path in [&ours, &theirs] {
        std::fs::File::create(path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
    }
    let one = mount("loop", &ours.display().to_string(), &["ro"]);
    let made = bench.activate("l", &[one]).await.unwrap();
    let link = Path::new(&made.active[0].mount_point);
    let own = std::fs::read_link(link).unwrap();
    let device = sys::loopdev::LoopDevice::open(&own).unwrap();
    device.detach().unwrap();
    drop(device);
    // As after a restart of the machine.
    let opts = sys::loopdev::LoopOpts::default();
    let other = sys::loopdev::LoopDevice::attach(&theirs, opts).unwrap();
    std::fs::remove_file(link).unwrap();
    std::os::unix::fs::symlink(other.path(), link).unwrap();
    bench
        .mounts
        .deactivate(&bench.scope.namespace, "l")
        .await
        .unwrap();
    drop(sys::loopdev::LoopDevice::open(other.path()).unwrap());
    other.backing().unwrap();
    other.detach().unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn one_of_many_callers_activates() {
    let bench = Bench::new();
    let tmpfs = mount("format/tmpfs", "tmpfs", &["size=1m"]);
    let list = vec![tmpfs, mount("format/bind", "{{ mount 0 }}", &["rbind"])];
    let callers = (0..8).map(|_| {
        let (mounts, scope, list) = (bench.mounts.clone(), bench.scope.clone(), list.clone());
        tokio::spawn(async move {
            mounts
                .activate(&scope, "m", list, ActivateOpts::default())
                .await
        })
    });
    let callers: Vec<_> = callers.collect();
    let mut made = 0;
    for caller in callers {
        match caller.await.unwrap() {
            Ok(_) => made += 1,
            Err(error) => assert!(error.is(Code::AlreadyExists), "{error}"),
        }
    }
    assert_eq!(made, 1);
    bench
        .mounts
        .deactivate(&bench.scope.namespace, "m")
        .await
        .unwrap();
    assert!(bench.mounts.busy().is_empty());
    bench.assert_nothing_is_left();
}
