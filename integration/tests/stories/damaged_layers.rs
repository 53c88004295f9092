//! The machine went down, and the disk has not what it promised: layers whose files are not what they were
//! are unpacked again from their blobs, under the containers that stand on them.

use std::path::PathBuf;

use integration::{Host, until};

use crate::layout::layered;
use crate::power_cut::{differences, tree};

/// Ends the daemon, and lets the next one take it that the machine had gone down as well.
fn crash(host: &mut Host) {
    host.kill();
    std::fs::write(host.root().join("running"), "of another boot").expect("write");
}

/// The directories of the snapshots of `snapshotter` that have a file `name`.
fn holders(host: &Host, snapshotter: &str, name: &str) -> Vec<PathBuf> {
    let snapshots = format!("io.containerd.snapshotter.v1.{snapshotter}/snapshots");
    let all = std::fs::read_dir(host.root().join(snapshots)).expect("list");
    let all = all.map(|entry| entry.expect("entry").path());
    let layers = all.map(|path| match path.join("fs") {
        fs if fs.is_dir() => fs,
        _ => path,
    });
    let mut found: Vec<_> = layers.filter(|path| path.join(name).exists()).collect();
    found.sort();
    found
}

#[test]
fn damaged_layers_are_unpacked_again_after_a_power_cut() {
    let mut host = Host::new("harmed");
    let (name, archive) = layered(&host);
    let import = ["images", "import", "--base-name", "example.test/layers"];
    let import = || host.ctr_program().args(import).args([&archive]).run().ok();
    drop(import());
    let whole = tree(&host);
    // What stands on the layers keeps its place.
    host.image();
    drop(
        host.ctr([
            "containers",
            "create",
            integration::IMAGE,
            "c",
            "echo",
            "up",
        ])
        .ok(),
    );
    crash(&mut host);
    let lost: [fn(&std::path::Path); 4] = [
        |layer| std::fs::write(layer.join("d7/deep/9"), "").expect("cut short"),
        |layer| std::fs::remove_file(layer.join("d8/deep/er/f")).expect("remove"),
        |layer| std::fs::remove_dir_all(layer.join("d6")).expect("remove"),
        |layer| std::fs::remove_dir_all(layer).expect("remove"),
    ];
    for harm in lost {
        let [layer] = &holders(&host, "overlayfs", "d7/deep/9")[..] else {
            panic!("one layer has it");
        };
        harm(layer);
        let [shell] = &holders(&host, "overlayfs", "bin/busybox")[..] else {
            panic!("one layer has it");
        };
        std::fs::remove_file(shell.join("bin/busybox")).expect("remove");
        let from = host.log().len();
        host.start();
        until("all was looked at", || {
            host.log()[from..].contains("checked ")
        });
        let log = host.log()[from..].to_owned();
        assert_eq!(log.matches("unpacking it again").count(), 2, "{log}");
        assert_eq!(differences(&whole, &tree(&host)), Vec::<String>::new());
        // What is left of the damaged ones goes.
        until("only whole layers are left", || {
            holders(&host, "overlayfs", "bin").len() == 1
        });
        // The view that was looked at may not be collected yet.
        until("nothing is wrong", || host.ctr(["fsck"]).code == 0);
        crash(&mut host);
    }
    host.start();
    drop(host.ctr(["tasks", "start", "c"]).ok());
    drop(host.ctr(["tasks", "rm", "c"]));
    drop(host.ctr(["containers", "rm", "c"]).ok());
    drop(host.ctr(["images", "rm", name]).ok());
    host.finish();
}

#[test]
fn a_layer_that_no_image_brings_is_told_and_stays() {
    let mut host = Host::new("harmed-own");
    drop(host.ctr(["snapshots", "prepare", "a"]).ok());
    let mounts = host.ctr(["snapshots", "mounts", "/m", "a"]).ok();
    let source = mounts.split_whitespace().find(|word| word.ends_with("/fs"));
    let file = PathBuf::from(source.expect("a bind mount")).join("file");
    std::fs::write(&file, "text").expect("write");
    drop(host.ctr(["snapshots", "commit", "mine", "a"]).ok());
    std::fs::write(&file, "").expect("cut short");
    crash(&mut host);
    let from = host.log().len();
    host.start();
    until("all was looked at", || {
        host.log()[from..].contains("checked ")
    });
    let told = host.ctr(["fsck", "--repair"]);
    assert_eq!(told.code, 4, "{}{}", told.stdout, told.stderr);
    let line = told
        .stdout
        .lines()
        .find(|line| line.starts_with("damaged snapshot "));
    assert!(
        line.is_some_and(|line| line.contains("/mine: ")),
        "{}",
        told.stdout
    );
    assert!(file.exists());
    drop(host.ctr(["snapshots", "rm", "mine"]).ok());
    host.finish();
}
