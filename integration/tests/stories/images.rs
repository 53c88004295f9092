//! Images in and out: import, pull, list, remove, and what stays on disk.

use integration::{Host, IMAGE, Program, until};

#[test]
fn an_imported_image_is_listed_and_its_removal_frees_everything() {
    let host = Host::new("image-import");
    host.image();
    let table = host.ctr(["images", "ls"]).ok();
    assert!(table.starts_with("REF"), "{table}");
    let row = table
        .lines()
        .find(|l| l.starts_with(IMAGE))
        .expect("the image's row");
    assert!(
        row.contains("application/vnd.oci.image.manifest.v1+json"),
        "{row}"
    );
    assert!(row.contains("linux/"), "{row}");
    assert_eq!(host.ctr(["snapshots", "ls"]).ok().lines().count(), 2);
    let blobs = host.ctr(["content", "ls", "-q"]).ok();
    assert_eq!(blobs.lines().count(), 3, "{blobs}");
    let manifest = host
        .ctr([
            "content",
            "get",
            row.split_whitespace().nth(2).expect("digest"),
        ])
        .ok();
    assert!(manifest.contains("\"layers\""), "{manifest}");
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    assert_eq!(host.ctr(["content", "ls", "-q"]).ok(), "");
    assert_eq!(host.ctr(["snapshots", "ls"]).ok().lines().count(), 1);
    let blobs = host
        .root()
        .join("io.containerd.content.v1.content/blobs/sha256");
    let count = || std::fs::read_dir(&blobs).map_or(0, Iterator::count);
    until("the files are gone", || count() == 0);
    let layers = host
        .root()
        .join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    until("the layers are gone", || {
        integration::snapshots_in(&layers).is_empty()
    });
    host.finish();
}

#[test]
fn a_second_namespace_shares_the_blobs_of_the_first() {
    let host = Host::new("image-shared");
    host.image();
    let other = |args: &[&str]| {
        let made = std::process::Command::new(integration::bin_dir().join("ctr"))
            .arg("--address")
            .arg(host.address())
            .args(["-n", "image-shared-too"])
            .args(args)
            .output()
            .expect("start ctr");
        let errors = String::from_utf8_lossy(&made.stderr).into_owned();
        assert!(made.status.success(), "{args:?}: {errors}");
        String::from_utf8_lossy(&made.stdout).into_owned()
    };
    let archive = integration::archive();
    other(&["images", "import", &archive.to_string_lossy()]);
    let blobs = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let first = blobs(host.ctr(["content", "ls", "-q"]).ok());
    assert_eq!(blobs(other(&["content", "ls", "-q"])), first);
    assert!(other(&["images", "check"]).contains("complete (2/2)"));
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    assert_eq!(blobs(other(&["content", "ls", "-q"])), first);
    other(&["images", "rm", "--sync", IMAGE]);
    other(&["namespaces", "rm", "image-shared-too"]);
    host.finish();
}

#[test]
fn the_native_snapshotter_runs_containers_too() {
    let host = Host::new("image-native");
    let archive = integration::archive();
    let import = ["images", "import", "--snapshotter", "native"];
    drop(host.ctr_program().args(import).args([archive]).run().ok());
    let run = [
        "run",
        "--rm",
        "--snapshotter",
        "native",
        IMAGE,
        "n",
        "sh",
        "-c",
    ];
    let script = "echo > /made && ls /made && busybox | head -1 | cut -c1-7";
    let out = host.ctr_program().args(run).args([script]).run().ok();
    assert_eq!(out, "/made\nBusyBox\n");
    host.finish();
}

#[test]
fn labels_of_an_image_that_mean_something_to_a_daemon_never_reach_a_container() {
    let host = Host::new("image-labels");
    let (layout, tar) = (host.path("layout"), host.path("labelled.tar"));
    let process = r#"{"Labels":{"maintainer":"somebody","containerd.io/restart.status":"running",
        "containerd.io/restart.loguri":"binary:///bin/true","containerd.io/gc.root":"1",
        "io.cri-containerd.kind":"sandbox"}}"#;
    crate::layout::make_with(&layout, process, &[&[("file", b"data".to_vec())]]);
    let archive = Program::new("tar").args(["-C".as_ref(), layout.as_os_str()]);
    let archive = archive.args(["-cf".as_ref(), tar.as_os_str()]);
    drop(archive.args(["."]).run().ok());
    let import = ["images", "import", "--base-name", "example.test/labelled"];
    drop(host.ctr_program().args(import).args([&tar]).run().ok());
    let image = "example.test/labelled:latest";
    drop(host.ctr(["containers", "create", image, "c", "true"]).ok());
    let record = host.ctr(["containers", "info", "c"]).ok();
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    let labels = record["Labels"].as_object().expect("labels");
    let keys: Vec<&str> = labels.keys().map(String::as_str).collect();
    assert!(keys.contains(&"maintainer"), "{keys:?}");
    for reserved in [
        "containerd.io/restart",
        "containerd.io/gc",
        "io.cri-containerd",
    ] {
        assert!(
            !keys.iter().any(|key| key.starts_with(reserved)),
            "{keys:?}"
        );
    }
    drop(host.ctr(["containers", "rm", "c"]).ok());
    host.finish();
}
