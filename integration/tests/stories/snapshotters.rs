//! Containers on every snapshotter, with and without ids of their own, and what tools show of them.

use std::path::Path;

use integration::{Disk, FileSystem, Host, IMAGE, Program, Whose, apart, need, until};

/// Ids of the host that a container gets.
const FIRST: u32 = 100_000;

/// Runs a container that writes, reads and looks at what the image has.
fn runs(host: &Host, snapshotter: &str) {
    host.image();
    let script = "test -x /bin/busybox && echo one > /new && cat /new && rm /bin/busybox \
                  && test ! -e /bin/busybox && echo done";
    let flags = ["--rm", "--snapshotter", snapshotter];
    for id in ["first", "second"] {
        let out = host.run(&flags, id, &["sh", "-c", script]);
        assert_eq!(
            (out.code, &*out.stdout),
            (0, "one\ndone\n"),
            "{}",
            out.stderr
        );
    }
    let list = host
        .ctr(["snapshots", "--snapshotter", snapshotter, "ls"])
        .ok();
    assert_eq!(
        list.lines().filter(|l| l.contains("Committed")).count(),
        1,
        "{list}"
    );
    assert!(!list.contains("Active"), "{list}");
}

/// Takes the image away, and waits until nothing of it is left in the snapshotter's directory.
fn cleared(host: &Host, snapshotter: &str) {
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    let name = format!("io.containerd.snapshotter.v1.{snapshotter}/snapshots");
    let directory = host.root().join(name);
    until("the snapshots are gone", || {
        integration::snapshots_in(&directory).is_empty()
    });
}

#[test]
fn a_container_runs_on_native() {
    let host = Host::new("snap-native");
    runs(&host, "native");
    cleared(&host, "native");
    host.finish();
}

#[test]
fn a_container_runs_on_erofs() {
    let host = Host::new("snap-erofs");
    runs(&host, "erofs");
    // The images of layers are mounted as long as they are there.
    let mut host = host;
    host.stop();
    host.start();
    runs(&host, "erofs");
    cleared(&host, "erofs");
    host.finish();
}

#[test]
fn a_container_runs_on_btrfs() {
    apart(|| {
        let disk = Disk::new(FileSystem::Btrfs);
        let host = Host::rooted("snap-btrfs", &disk.path().join("root"));
        runs(&host, "btrfs");
        cleared(&host, "btrfs");
        host.finish();
        disk.finish();
    });
}

#[test]
fn a_container_runs_on_blockfile() {
    for (name, kind, size) in [("ext4", "ext4", 32_u64 << 20), ("xfs", "xfs", 300 << 20)] {
        let dir = tempfile::tempdir().expect("directory");
        let scratch = dir.path().join("scratch");
        let file = std::fs::File::create(&scratch).expect("create");
        file.set_len(size).expect("size");
        let make = Program::new(need(&format!("mkfs.{kind}"))).args(["-q"]);
        drop(make.args([&scratch]).run().ok());
        let sections = format!(
            "[plugins.\"io.containerd.snapshotter.v1.blockfile\"]\n\
             scratch_file = \"{}\"\nfs_type = \"{kind}\"\n",
            scratch.display()
        );
        let host = Host::configured(&format!("snap-{name}"), Whose::Ours, &sections);
        runs(&host, "blockfile");
        cleared(&host, "blockfile");
        host.finish();
    }
}

#[test]
fn what_cannot_work_is_skipped_and_says_why() {
    let host = Host::new("snap-skip");
    let rows = host.ctr(["plugins", "ls"]).ok();
    let state = |id: &str| {
        let row = rows.lines().find(|row| {
            let mut words = row.split_whitespace();
            words.next() == Some("io.containerd.snapshotter.v1") && words.next() == Some(id)
        });
        row.and_then(|row| row.split_whitespace().last().map(str::to_owned))
    };
    assert_eq!(state("overlayfs").as_deref(), Some("ok"), "{rows}");
    assert_eq!(state("native").as_deref(), Some("ok"), "{rows}");
    assert_eq!(state("blockfile").as_deref(), Some("skip"), "{rows}");
    let told = host
        .ctr(["snapshots", "--snapshotter", "blockfile", "ls"])
        .err();
    assert!(told.contains("snapshotter not loaded"), "{told}");
    host.finish();
}

/// `ls -ln` of files that the image has, and who the process is.
const OWNERS: &str = "ls -ldn / /bin /bin/busybox | awk '{print $3, $4}'; id -u; \
                      touch /new && ls -ln /new | awk '{print $3, $4}'; cat /proc/self/uid_map";

fn maps_ids(host: &Host, snapshotter: &str) {
    host.image();
    let map = format!("0:{FIRST}:65536");
    let flags = [
        "--rm",
        "--snapshotter",
        snapshotter,
        "--uidmap",
        &map,
        "--gidmap",
        &map,
    ];
    let out = host.run(&flags, "mapped", &["sh", "-c", OWNERS]);
    assert_eq!(out.code, 0, "{}", out.stderr);
    let lines: Vec<_> = out.stdout.lines().collect();
    assert_eq!(
        lines[..5],
        ["0 0", "0 0", "0 0", "0", "0 0"],
        "{}",
        out.stdout
    );
    let inside: Vec<_> = lines[5].split_whitespace().collect();
    assert_eq!(inside, ["0", "100000", "65536"]);
    // Without a namespace the same layers belong to the machine's root.
    let plain = host.run(
        &["--rm", "--snapshotter", snapshotter],
        "plain",
        &["sh", "-c", OWNERS],
    );
    let owners: Vec<_> = plain.stdout.lines().take(3).collect();
    assert_eq!(owners, ["0 0", "0 0", "0 0"], "{}", plain.stderr);
}

#[test]
fn a_container_in_a_user_namespace_owns_its_files_by_the_kernels_mapping() {
    let host = Host::new("snap-idmap");
    maps_ids(&host, "overlayfs");
    let rows = host.ctr(["plugins", "ls", "-d", "id==overlayfs"]).ok();
    assert!(
        rows.contains("remap-ids") && rows.contains("only-remap-ids"),
        "{rows}"
    );
    // What is mounted of a mapped snapshot says how.
    let map = format!("0:{FIRST}:65536");
    let flags = ["--uidmap", &map, "--gidmap", &map];
    let created = host
        .ctr_program()
        .args(["containers", "create"])
        .args(flags);
    drop(created.args([IMAGE, "kept"]).run().ok());
    let mounts = host.ctr(["snapshots", "mounts", "/m", "kept"]).ok();
    assert!(
        mounts.contains(&format!("uidmap={map},gidmap={map}")),
        "{mounts}"
    );
    drop(host.ctr(["containers", "rm", "kept"]).ok());
    host.finish();
}

#[test]
fn a_container_in_a_user_namespace_owns_its_files_on_copies() {
    let host = Host::new("snap-chown");
    maps_ids(&host, "native");
    cleared(&host, "native");
    host.finish();
}

/// Everything that `ctr snapshots` does, on one layer after another.
#[test]
fn ctr_takes_a_snapshot_through_its_life() {
    let host = Host::new("snap-ctr");
    host.image();
    let snapshots = |args: &[&str]| {
        let all = ["snapshots"].iter().chain(args).copied();
        host.ctr(all)
    };
    let base = snapshots(&["ls"]).ok();
    let base = base
        .lines()
        .nth(1)
        .expect("a layer")
        .split_whitespace()
        .next();
    let base = base.expect("a key").to_owned();

    let point = host.path("point");
    std::fs::create_dir(&point).expect("directory");
    let at = point.to_string_lossy().into_owned();
    let told = snapshots(&["prepare", "--target", &at, "active", &base]).ok();
    assert_eq!(snapshots(&["mounts", &at, "active"]).ok(), told);
    let mount = Program::new("sh").args(["-c", &told]);
    drop(mount.run().ok());
    std::fs::write(point.join("added"), "text").expect("write");
    std::fs::remove_file(point.join("bin/busybox")).expect("remove");
    drop(Program::new("umount").args([&point]).run().ok());

    compared(&host);

    drop(snapshots(&["label", "active", "a=b"]).ok());
    let info: serde_json::Value =
        serde_json::from_str(&snapshots(&["info", "active"]).ok()).expect("JSON");
    assert_eq!(info["Kind"], "Active");
    assert_eq!(info["Parent"], base.as_str());
    assert_eq!(info["Labels"]["a"], "b");
    let usage = snapshots(&["usage", "-b", "active"]).ok();
    let size = usage
        .lines()
        .nth(1)
        .and_then(|row| row.split_whitespace().nth(1));
    assert!(
        size.is_some_and(|size| size.parse::<u64>().is_ok_and(|s| s > 0)),
        "{usage}"
    );

    drop(snapshots(&["commit", "top", "active"]).ok());
    let told = snapshots(&["mounts", &at, "top"]).err();
    assert!(told.contains("not active"), "{told}");
    drop(snapshots(&["view", "look", "top"]).ok());
    let tree = snapshots(&["tree"]).ok();
    assert_eq!(tree, format!(" {base}\n  \\_ top\n    \\_ look\n"));
    let list = snapshots(&["ls", "kind==view"]).ok();
    let row: Vec<_> = list
        .lines()
        .skip(1)
        .flat_map(str::split_whitespace)
        .collect();
    assert_eq!(row, ["look", "top", "View"], "{list}");
    let told = snapshots(&["rm", "top"]).err();
    assert!(told.contains("cannot remove snapshot with child"), "{told}");
    drop(snapshots(&["rm", "look", "top"]).ok());
    assert_eq!(snapshots(&["tree"]).ok(), format!(" {base}\n"));
    unpacked(&host, &base);
    host.finish();
}

/// `snapshots diff` of `active`, with the times that it found and with those that a build wants.
fn compared(host: &Host) {
    // Long ago, and as headers have it.
    let (early, header) = ("1000000000", "07346545000");
    for (epoch, is_clamped) in [(None, false), (Some(early), true), (Some("soon"), false)] {
        let diff = host.ctr_program().args(["snapshots", "diff"]);
        let mut diff = diff.args([
            "--media-type",
            "application/vnd.oci.image.layer.v1.tar",
            "active",
        ]);
        diff = match epoch {
            Some(epoch) => diff.env("SOURCE_DATE_EPOCH", epoch),
            None => diff.env_remove("SOURCE_DATE_EPOCH"),
        };
        let out = diff.run();
        assert_eq!(out.code, 0, "{}", out.stderr);
        for name in ["added", "bin/.wh.busybox"] {
            assert!(out.stdout.contains(name), "{name}");
        }
        assert_eq!(out.stdout.contains(header), is_clamped, "{epoch:?}");
        let is_told = out.stderr.contains("SOURCE_DATE_EPOCH");
        assert_eq!(is_told, epoch == Some("soon"), "{}", out.stderr);
    }
}

/// `snapshots unpack` of an image that has lost its layers.
fn unpacked(host: &Host, base: &str) {
    let digest = crate::push::digest(host, IMAGE);
    drop(host.ctr(["snapshots", "rm", base]).ok());
    drop(host.ctr(["snapshots", "unpack", &digest]).ok());
    let tree = host.ctr(["snapshots", "tree"]).ok();
    assert_eq!(tree, format!(" {base}\n"));
    assert!(Path::new(&host.root()).exists());
}
