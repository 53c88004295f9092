//! Tests of module `bundle`.

use super::facts::parse_ended;
use super::*;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, UNIX_EPOCH};

fn setup() -> (tempfile::TempDir, Bundles, Namespace, ContainerId) {
    let dir = tempfile::tempdir().unwrap();
    let bundles = Bundles::new(&dir.path().join("state"), &dir.path().join("root"));
    (dir, bundles, "ns".parse().unwrap(), "c1".parse().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_bundle_has_the_documented_entries_and_modes() {
    let (_dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{ \"a\": 1}", "pod").unwrap();
    assert_eq!(mode(bundle.path()), 0o700);
    assert_eq!(mode(bundle.path().parent().unwrap()), 0o711);
    assert_eq!(
        fs::read(bundle.file("config.json")).unwrap(),
        b"{ \"a\": 1}"
    );
    assert!(bundle.file("rootfs").is_dir());
    assert_eq!(fs::read_link(bundle.file("work")).unwrap(), bundle.work);
    assert!(bundle.work.is_dir());
    assert_eq!(fs::read(bundle.file("sandbox")).unwrap(), b"pod");
    bundle.write_binary(Path::new("/bin/shim")).unwrap();
    assert_eq!(mode(&bundle.file("shim-binary-path")), 0o600);
    assert_eq!(bundle.binary().unwrap(), Some("/bin/shim".into()));
    assert_eq!(bundle.stdio().unwrap(), None);
    let stdio = crate::Stdio {
        stdout: "/a \"pipe\"".into(),
        terminal: true,
        ..crate::Stdio::default()
    };
    bundle.write_stdio(&stdio).unwrap();
    assert_eq!(mode(&bundle.file("stdio.json")), 0o600);
    assert_eq!(bundle.stdio().unwrap(), Some(stdio));
    fs::write(bundle.file("stdio.json"), "{}").unwrap();
    assert!(bundle.stdio().unwrap_err().is(Code::DataLoss));
    let address = Address::parse(b"unix:///run/x").unwrap();
    bundle.write_address(&address).unwrap();
    assert_eq!(mode(&bundle.file("bootstrap.json")), 0o644);
    assert_eq!(bundle.address().unwrap(), Some(address));
}

#[test]
fn the_address_file_of_older_shims_is_enough() {
    let (_dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    assert_eq!(bundle.address().unwrap(), None);
    fs::write(bundle.file("address"), "unix:///run/x").unwrap();
    let address = bundle.address().unwrap().unwrap();
    assert_eq!((address.version, &*address.address), (2, "unix:///run/x"));
    // It becomes what newer daemons read, once.
    bundle.migrate_address(&address).unwrap();
    let text = fs::read_to_string(bundle.file("bootstrap.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let want = serde_json::json!({"version": 2, "address": "unix:///run/x", "protocol": "ttrpc"});
    assert_eq!(json, want);
    fs::write(bundle.file("bootstrap.json"), "kept").unwrap();
    bundle.migrate_address(&address).unwrap();
    let text = fs::read_to_string(bundle.file("bootstrap.json")).unwrap();
    assert_eq!(text, "kept");
}

#[test]
fn a_second_bundle_of_a_task_is_refused_and_the_first_stays() {
    let (_dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    let again = bundles.create(&ns, &id, b"other", "").unwrap_err();
    assert!(again.is_already_exists(), "{again}");
    assert_eq!(fs::read(bundle.file("config.json")).unwrap(), b"{}");
}

#[test]
fn mapped_users_may_enter() {
    let (_dir, bundles, ns, id) = setup();
    let spec = br#"{"linux":{"gidMappings":[{"containerID":0,"hostID":7000,"size":9}]}}"#;
    let bundle = bundles.create(&ns, &id, spec, "").unwrap();
    assert_eq!(mode(bundle.path()), 0o710);
    assert_eq!(fs::metadata(bundle.path()).unwrap().gid(), 7000);
}

#[test]
fn removal_takes_both_directories_and_may_be_repeated() {
    let (dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    fs::write(bundle.work.join("criu.log"), "x").unwrap();
    // What an interrupted removal left must not be in the way.
    fs::create_dir_all(bundle.path().with_file_name(".c1").join("rest")).unwrap();
    bundle.remove().unwrap();
    bundle.remove().unwrap();
    for top in ["state", "root"] {
        let ns = dir.path().join(top).join(BUNDLES_DIR).join("ns");
        assert_eq!(names(&ns).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn files_of_a_mounted_root_survive_removal() {
    let (dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "x").unwrap();
    let mount = types::Mount {
        kind: "bind".into(),
        source: precious.display().to_string(),
        options: vec!["rbind".into()],
        ..types::Mount::default()
    };
    sys::mount::mount_all(&[mount], &bundle.file("rootfs")).unwrap();
    assert!(bundle.file("rootfs/file").exists());
    bundle.remove().unwrap();
    assert!(!bundle.path().exists());
    assert!(precious.join("file").exists());
}

#[test]
fn a_root_directory_with_files_of_its_own_is_not_removed() {
    let (_dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    fs::write(bundle.file("rootfs/file"), "x").unwrap();
    bundle.remove().unwrap_err();
    assert!(bundle.file("config.json").exists());
}

#[test]
fn sweep_removes_orphans_only() {
    let (dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    let (state, root) = (
        dir.path().join("state").join(BUNDLES_DIR).join("ns"),
        dir.path().join("root").join(BUNDLES_DIR).join("ns"),
    );
    fs::create_dir_all(state.join(".gone/rest")).unwrap();
    fs::create_dir_all(root.join("orphan/rest")).unwrap();
    // One that its task may still be restored from, and one that has served.
    for name in [CHECKPOINT, GONE] {
        fs::create_dir_all(root.join("c1").join(name).join("rest")).unwrap();
    }
    bundles.sweep().unwrap();
    assert_eq!(names(&root.join("c1")).unwrap(), [CHECKPOINT]);
    assert_eq!(names(&state).unwrap(), ["c1"]);
    assert_eq!(names(&root).unwrap(), ["c1"]);
    assert!(bundle.file("config.json").exists());
    assert_eq!(bundles.list().unwrap(), [(ns, id)]);
}

#[test]
fn exit_records_are_read_and_junk_is_not() {
    let ended = parse_ended(r#"{"pid":7,"status":3,"exited_at":1500000000}"#).unwrap();
    let exit = ended.exit;
    assert!(!ended.oom);
    assert_eq!((exit.pid, exit.status), (7, 3));
    assert_eq!(exit.at, UNIX_EPOCH + Duration::from_millis(1500));
    for junk in [
        "",
        "{}",
        "{\"pid\":7",
        r#"{"pid":-1,"status":0,"exited_at":0}"#,
    ] {
        assert!(parse_ended(junk).is_none(), "{junk}");
    }
}

#[test]
fn own_process_is_alive_and_no_process_is_not() {
    assert!(is_alive(std::process::id()));
    assert!(!is_alive(0));
    assert!(!is_alive(u32::MAX));
}

#[test]
fn a_file_that_cannot_be_read_is_not_one_that_is_not_there() {
    let (_dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    assert_eq!(bundle.address().unwrap(), None);
    assert_eq!(bundle.init_pid().unwrap(), None);
    assert_eq!(bundle.binary().unwrap(), None);
    assert_eq!(bundle.ended().unwrap(), None);
    // Names that lead in a circle: the kernel cannot say what is there.
    let path = bundle.path().to_owned();
    fs::rename(&path, path.with_file_name("c2")).unwrap();
    symlink(&path, &path).unwrap();
    for error in [
        bundle.address().unwrap_err(),
        bundle.init_pid().unwrap_err(),
        bundle.binary().unwrap_err(),
        bundle.ended().unwrap_err(),
        bundle.started(1).unwrap_err(),
    ] {
        assert!(!error.is_not_found() && error.errno().is_some(), "{error}");
    }
}

#[test]
fn an_address_that_says_nothing_is_told_from_one_of_another_generation() {
    let (_dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    let file = bundle.file(bundle_file::BOOTSTRAP);
    let newer = r#"{"version":9,"address":"unix:///s/x","protocol":"ttrpc"}"#;
    for (text, code) in [
        ("", Code::DataLoss),
        ("{\"version\":", Code::DataLoss),
        (newer, Code::NotImplemented),
    ] {
        fs::write(&file, text).unwrap();
        let error = bundle.address().unwrap_err();
        assert!(error.is(code), "{text}: {error}");
    }
    fs::write(&file, "").unwrap();
    fs::write(bundle.file(bundle_file::ADDRESS), "unix:///run/x").unwrap();
    let older = bundle.address().unwrap().unwrap();
    assert_eq!(older.address, "unix:///run/x");
}

#[test]
fn the_begin_of_a_process_is_that_of_its_pid() {
    let (_dir, bundles, ns, id) = setup();
    let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
    assert_eq!(bundle.started(7).unwrap(), None);
    bundle.write_started(7, 123).unwrap();
    assert_eq!(bundle.started(7).unwrap(), Some(123));
    assert_eq!(bundle.started(8).unwrap(), None);
}

#[test]
fn the_work_directory_of_another_daemon_goes_with_its_bundle_and_nothing_else_does() {
    let (dir, bundles, ns, id) = setup();
    let tail = |root: &str| dir.path().join(root).join(BUNDLES_DIR).join(ns.as_str());
    let theirs = tail("theirs").join(id.as_str());
    let (other, around) = (
        tail("theirs").join("other"),
        tail("theirs").join("other/..").join(id.as_str()),
    );
    for (work, goes) in [(&theirs, true), (&other, false), (&around, false)] {
        for made in [&theirs, &other] {
            fs::create_dir_all(made).unwrap();
        }
        let bundle = bundles.create(&ns, &id, b"{}", "").unwrap();
        fs::remove_file(bundle.file("work")).unwrap();
        symlink(work, bundle.file("work")).unwrap();
        bundle.remove().unwrap();
        assert!(!bundle.path().exists() && !bundle.work.exists());
        assert_eq!(theirs.exists(), !goes, "{}", work.display());
        assert!(other.exists());
    }
}
