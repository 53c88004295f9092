//! Mounts as the kernel performs them.

use super::*;

fn bind(source: &Path, options: &[&str]) -> Mount {
    Mount {
        kind: "bind".into(),
        source: source.display().to_string(),
        target: String::new(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
    }
}

#[test]
fn a_read_only_bind_refuses_writes_and_goes_away() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir_all(&from).unwrap();
    std::fs::create_dir_all(&to).unwrap();
    mount_all(&[bind(&from, &["rbind", "ro"])], &to).unwrap();
    assert!(is_mount_point(&to).unwrap());
    let refused = std::fs::write(to.join("x"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    unmount_all(&to).unwrap();
    assert!(!is_mount_point(&to).unwrap());
    unmount(&to).unwrap();
}

#[test]
fn an_overlay_is_told_from_what_it_lies_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["one", "two", "to"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let (one, two) = (path("one"), path("two"));
    let overlay = Mount {
        kind: "overlay".into(),
        source: "overlay".into(),
        options: vec![format!("lowerdir={}:{}", one.display(), two.display())],
        ..Mount::default()
    };
    let open = |name: &str| crate::fs::open_dir(&path(name)).unwrap();
    let tmpfs = Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        ..Mount::default()
    };
    mount_all(&[overlay], &path("to")).unwrap();
    assert!(is_overlay(open("to")));
    unmount_all(&path("to")).unwrap();
    mount_all(&[tmpfs], &path("to")).unwrap();
    assert!(!is_overlay(open("to")));
    unmount_all(&path("to")).unwrap();
}

#[test]
fn a_failed_list_leaves_nothing_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir_all(&from).unwrap();
    std::fs::create_dir_all(&to).unwrap();
    let missing = dir.path().join("missing");
    let error = mount_all(&[bind(&from, &["bind"]), bind(&missing, &["bind"])], &to).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(!is_mount_point(&to).unwrap());
}

#[test]
fn a_sub_path_cannot_leave_the_target() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to, out) = (
        dir.path().join("from"),
        dir.path().join("to"),
        dir.path().join("out"),
    );
    for path in [&from, &to, &out, &to.join("in")] {
        std::fs::create_dir_all(path).unwrap();
    }
    std::os::unix::fs::symlink(&out, to.join("link")).unwrap();
    let mut escape = bind(&from, &["bind"]);
    escape.target = "link".into();
    mount_all(&[escape], &to).unwrap_err();
    assert!(!is_mount_point(&out).unwrap());
    let mut inside = bind(&from, &["bind"]);
    inside.target = "/in".into();
    mount_all(&[inside], &to).unwrap();
    assert!(is_mount_point(&to.join("in")).unwrap());
    unmount_recursive(&to).unwrap();
    assert!(!is_mount_point(&to.join("in")).unwrap());
}

#[test]
fn stacked_mounts_all_go() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    std::fs::create_dir_all(&to).unwrap();
    let tmpfs = Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        ..Mount::default()
    };
    mount_all(&[tmpfs.clone(), tmpfs], &to).unwrap();
    unmount_recursive(&to).unwrap();
    assert!(!is_mount_point(&to).unwrap());
}

fn three(dir: &tempfile::TempDir) -> [PathBuf; 3] {
    ["from", "from/below", "to"].map(|name| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    })
}

fn tmpfs() -> Mount {
    Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        ..Mount::default()
    }
}

fn mounted(at: &Path) -> MountInfo {
    let real = at.canonicalize().unwrap();
    let all = info::load().unwrap().into_iter();
    all.rev().find(|m| m.mount_point == real).unwrap()
}

#[test]
fn only_the_recursive_option_reaches_mounts_below() {
    let dir = tempfile::tempdir().unwrap();
    let [from, below, to] = three(&dir);
    mount(&tmpfs(), &below).unwrap();
    for (options, reaches) in [(["rbind", "ro"], false), (["rbind", "rro"], true)] {
        mount(&bind(&from, &options), &to).unwrap();
        assert!(std::fs::write(to.join("x"), "").is_err(), "{options:?}");
        let wrote = std::fs::write(to.join("below/x"), "");
        assert_eq!(wrote.is_err(), reaches, "{options:?}");
        unmount_recursive(&to).unwrap();
    }
    std::fs::write(below.join("x"), "").unwrap();
    unmount(&below).unwrap();
}

#[test]
fn a_bind_mount_has_all_its_flags() {
    let dir = tempfile::tempdir().unwrap();
    let [from, _, to] = three(&dir);
    let options = ["bind", "nosuid", "nodev", "noexec", "noatime", "ro"];
    mount(&bind(&from, &options), &to).unwrap();
    let found = mounted(&to).options;
    for option in &options[1..] {
        assert!(found.split(',').any(|o| o == *option), "{option}: {found}");
    }
    let again = bind(&from, &["remount", "bind", "nosuid"]);
    mount(&again, &to).unwrap();
    let found = mounted(&to).options;
    assert!(
        found.contains("nosuid") && found.starts_with("rw"),
        "{found}"
    );
    unmount(&to).unwrap();
}

#[test]
fn a_remount_makes_a_file_system_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let [_, _, to] = three(&dir);
    mount(&tmpfs(), &to).unwrap();
    let again = Mount {
        options: vec!["remount".into(), "ro".into()],
        ..tmpfs()
    };
    mount(&again, &to).unwrap();
    assert!(mounted(&to).super_options.starts_with("ro"));
    unmount(&to).unwrap();
}

#[test]
fn propagation_holds_below_a_shared_mount() {
    let dir = tempfile::tempdir().unwrap();
    let [from, _, to] = three(&dir);
    let shared = Mount {
        options: vec!["shared".into()],
        ..tmpfs()
    };
    mount(&shared, &to).unwrap();
    let point = to.join("point");
    std::fs::create_dir(&point).unwrap();
    for (option, want) in [("private", false), ("rshared", true)] {
        mount(&bind(&from, &["rbind", option]), &point).unwrap();
        let fields = mounted(&point).optional;
        assert_eq!(!fields.is_empty(), want, "{option}: {fields:?}");
        unmount(&point).unwrap();
    }
    unmount(&to).unwrap();
}

#[test]
fn flags_and_propagation_reach_a_sub_path() {
    let dir = tempfile::tempdir().unwrap();
    let [from, _, to] = three(&dir);
    std::fs::create_dir(to.join("in")).unwrap();
    for (kind, options) in [
        ("bind", ["bind", "ro", "private"]),
        ("tmpfs", ["size=1m", "ro", "private"]),
    ] {
        let mut one = bind(&from, &options);
        kind.clone_into(&mut one.kind);
        one.target = "/in".into();
        mount(&one, &to).unwrap();
        let found = mounted(&to.join("in"));
        assert!(found.options.starts_with("ro"), "{kind}: {found:?}");
        assert!(found.optional.is_empty(), "{kind}: {found:?}");
        unmount(&to.join("in")).unwrap();
    }
}

#[test]
fn an_image_is_mounted_through_a_loop_device_that_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let [_, _, to] = three(&dir);
    let image = dir.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    let made = crate::process::Spawn::new("mkfs.ext4")
        .arg("-q")
        .arg(&image)
        .output(&[], 4096, Duration::from_secs(60))
        .unwrap();
    assert!(made.status.is_success(), "{made:?}");
    let one = |options: &[&str]| Mount {
        kind: "ext4".into(),
        source: image.display().to_string(),
        options: options.iter().map(|&o| o.to_owned()).collect(),
        ..Mount::default()
    };
    mount(&one(&["loop"]), &to).unwrap();
    std::fs::write(to.join("f"), "text").unwrap();
    unmount(&to).unwrap();
    mount(&one(&["loop", "ro"]), &to).unwrap();
    assert_eq!(std::fs::read(to.join("f")).unwrap(), b"text");
    assert!(std::fs::write(to.join("g"), "").is_err());
    let device = mounted(&to).source;
    assert!(device.starts_with("/dev/loop"), "{device}");
    unmount(&to).unwrap();
    // A failure leaves no device with this file either.
    mount(
        &Mount {
            kind: "xfs".into(),
            ..one(&["loop"])
        },
        &to,
    )
    .unwrap_err();
    // A child of another test may have the device open until it executes its program.
    crate::testing::until("no device has the image", || {
        let mut blocks = std::fs::read_dir("/sys/block").unwrap().flatten();
        !blocks.any(|block| {
            let file = std::fs::read_to_string(block.path().join("loop/backing_file"));
            file.is_ok_and(|f| f.trim() == image.to_str().unwrap())
        })
    });
}

#[test]
fn a_busy_mount_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let [_, _, to] = three(&dir);
    mount(&tmpfs(), &to).unwrap();
    let (held, told) = (
        std::fs::File::create(to.join("f")).unwrap(),
        std::time::Instant::now(),
    );
    let waiter = std::thread::spawn(move || {
        std::thread::sleep(BUSY_PAUSE * 3);
        drop(held);
    });
    unmount(&to).unwrap();
    waiter.join().unwrap();
    assert!(told.elapsed() >= BUSY_PAUSE * 3);
    assert!(!is_mount_point(&to).unwrap());
}

#[test]
fn a_failed_list_takes_its_mounts_along_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let [from, _, to] = three(&dir);
    // What was there before.
    mount(&tmpfs(), &to).unwrap();
    for name in ["sub", "other"] {
        std::fs::create_dir(to.join(name)).unwrap();
    }
    let inside = |name: &str| Mount {
        target: name.into(),
        ..bind(&from, &["bind"])
    };
    let again = Mount {
        options: vec!["remount".into(), "noexec".into()],
        ..tmpfs()
    };
    let bad = bind(&dir.path().join("missing"), &["bind"]);
    mount_all(&[inside("sub"), inside("/other"), again, bad], &to).unwrap_err();
    for name in ["sub", "other"] {
        assert!(!is_mount_point(&to.join(name)).unwrap(), "{name} stays");
    }
    assert!(
        is_mount_point(&to).unwrap(),
        "what was there before is gone"
    );
    unmount(&to).unwrap();
}

#[test]
fn a_mount_at_a_sub_path_that_fails_late_does_not_stay() {
    let dir = tempfile::tempdir().unwrap();
    let [from, _, to] = three(&dir);
    std::fs::create_dir(to.join("sub")).unwrap();
    for (kind, kinds) in [
        ("tmpfs", ["shared", "slave"]),
        ("bind", ["private", "slave"]),
    ] {
        // One kind of propagation at a time is all the kernel takes.
        let options = ["rbind"]
            .into_iter()
            .filter(|_| kind == "bind")
            .chain(kinds);
        let mut one = bind(&from, &options.collect::<Vec<_>>());
        kind.clone_into(&mut one.kind);
        one.target = "sub".into();
        mount(&one, &to).unwrap_err();
        assert!(!is_mount_point(&to.join("sub")).unwrap(), "{kind} stays");
    }
}
