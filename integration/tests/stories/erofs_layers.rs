//! Layers that are EROFS images already, beside archives, on the erofs snapshotter: what they show, and what
//! becomes of those that are damaged.

use std::path::{Path, PathBuf};

use integration::{Host, Program, need, until};

use crate::layout::{archive, of_kinds};

/// Name of the images.
const NAME: &str = "example.test/erofs:latest";
/// Media types.
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const EROFS: &str = "application/vnd.erofs.layer.v1";

/// The image that Debian's program makes of the tree that a script makes.
fn image(host: &Host, name: &str, script: &str) -> Vec<u8> {
    let (tree, out) = (host.path(name), host.path(&format!("{name}.erofs")));
    std::fs::create_dir(&tree).expect("make the tree");
    let script = format!("set -e; umask 022; cd {}; {script}", tree.display());
    drop(Program::new("bash").args(["-c", &script]).run().ok());
    let mkfs = Program::new(need("mkfs.erofs")).args(["--quiet", "-d2"]);
    drop(mkfs.args([&out, &tree]).run().ok());
    std::fs::read(&out).expect("read the image")
}

/// A root file system with a shell.
fn base(host: &Host) -> Vec<u8> {
    let script = "mkdir -p bin dev proc sys tmp opaque; cp /bin/busybox bin/; ln -s busybox bin/sh
                  for n in gone opaque/old kept; do echo $n >$n; done";
    image(host, "base", script)
}

/// An archive of an image of these layers.
fn packed(host: &Host, name: &str, layers: Vec<(&str, Vec<u8>)>) -> PathBuf {
    let (layout, out) = (host.path(name), host.path(&format!("{name}.tar")));
    of_kinds(
        &layout,
        r#"{"Env":["PATH=/bin"]}"#,
        &types::Platform::host().architecture,
        layers,
    );
    let made = Program::new("tar").args(["-C"]).args([&layout]);
    drop(made.args(["-cf"]).args([&out]).args(["."]).run().ok());
    out
}

fn import(host: &Host, archive: &Path, snapshotter: &str, flags: &[&str]) -> integration::Output {
    let import = host
        .ctr_program()
        .args(["images", "import", "--base-name", "example.test/erofs"]);
    let import = import.args(["--snapshotter", snapshotter]).args(flags);
    import.args([archive]).run()
}

/// What a container on the image prints.
fn run(host: &Host, id: &str, script: &str) -> String {
    let run = host.ctr_program().args(["run"]).args(host.runtime_flags());
    let run = run.args(["--rm", "--snapshotter", "erofs"]);
    run.args([NAME, id, "sh", "-c", script]).run().ok()
}

fn directories(host: &Host) -> PathBuf {
    host.root()
        .join("io.containerd.snapshotter.v1.erofs/snapshots")
}

fn nothing_is_left(host: &Host) {
    until("the snapshots are gone", || {
        integration::snapshots_in(&directories(host)).is_empty()
    });
}

fn remove(host: &Host) {
    drop(host.ctr(["images", "rm", "--sync", NAME]).ok());
    nothing_is_left(host);
}

#[test]
fn a_container_runs_on_layers_that_are_images() {
    let host = Host::new("erofs-layers");
    // A device 0/0 hides what is below, and so does a mark on a directory.
    let above = image(
        &host,
        "above",
        "mkdir opaque; echo new >opaque/new; setfattr -n trusted.overlay.opaque -v y opaque; mknod gone c 0 0",
    );
    let top = archive(&host.path(""), &[("top", b"top\n".to_vec())]);
    let layers = vec![(EROFS, base(&host)), (EROFS, above), (PLAIN, top)];
    let bytes = layers[0].1.clone();
    let path = packed(&host, "three", layers);
    for flags in [&[][..], &["--local"]] {
        drop(import(&host, &path, "erofs", flags).ok());
        // What is kept is what came.
        let kept = integration::snapshots_in(&directories(&host));
        let same = |name: &&PathBuf| {
            std::fs::read(directories(&host).join(name).join("layer.erofs")).ok()
                == Some(bytes.clone())
        };
        assert_eq!(kept.iter().filter(same).count(), 1, "{kept:?}");
        let script =
            "cat kept opaque/new top; test ! -e gone; test ! -e opaque/old; echo x >new; cat new";
        assert_eq!(run(&host, "c", script), "kept\nnew\ntop\nx\n");
        // What the container had is collected in a moment.
        until("nothing is wrong", || host.ctr(["fsck"]).code == 0);
        remove(&host);
    }
    let told = import(&host, &path, "overlayfs", &[]).err();
    assert!(told.contains("no differ applies media type"), "{told}");
    assert!(told.contains("takes no EROFS image"), "{told}");
    let rows = host.ctr(["plugins", "ls"]).ok();
    let is_row = |row: &&str| {
        row.split_whitespace()
            .take(2)
            .eq(["io.containerd.differ.v1", "erofs"])
    };
    assert!(
        rows.lines()
            .find(is_row)
            .is_some_and(|row| row.trim_end().ends_with("ok")),
        "{rows}"
    );
    host.finish();
}

#[test]
fn images_that_are_none_are_refused_and_leave_nothing() {
    let host = Host::new("erofs-bad");
    let good = base(&host);
    let with = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        bad
    };
    let zeroes = vec![0; 1 << 20];
    let cases = [
        ("magic", with(1024), "magic"),
        ("checksum", with(1030), "checksum"),
        ("features", with(1024 + 82), "features"),
        ("blocks", with(1024 + 39), "blocks"),
        ("cut", good[..good.len() - 4096].to_vec(), "blocks"),
        ("zeroes", zeroes, "magic"),
        ("empty", Vec::new(), "ends after 0 bytes"),
    ];
    for (name, bad, why) in cases {
        // The layer above it must not stay either.
        let path = packed(&host, name, vec![(EROFS, bad), (EROFS, good.clone())]);
        for flags in [&[][..], &["--local"]] {
            let told = import(&host, &path, "erofs", flags).err();
            assert!(told.contains(why), "{name}: {told}");
            nothing_is_left(&host);
        }
        drop(host.ctr(["images", "rm", "--sync", NAME]));
    }
    host.finish();
}

#[test]
fn a_flipped_bit_in_an_image_is_noticed_after_a_power_cut_and_the_layer_unpacked_again() {
    let mut host = Host::new("erofs-harmed");
    let top = archive(&host.path(""), &[("top", b"top\n".to_vec())]);
    let path = packed(&host, "two", vec![(EROFS, base(&host)), (PLAIN, top)]);
    drop(import(&host, &path, "erofs", &[]).ok());
    host.kill();
    std::fs::write(host.root().join("running"), "of another boot").expect("write");
    let snapshots = integration::snapshots_in(&directories(&host));
    assert_eq!(snapshots.len(), 2, "{snapshots:?}");
    for name in &snapshots {
        let image = directories(&host).join(name).join("layer.erofs");
        // Not every file system has the flag.
        drop(Program::new("chattr").args(["-i"]).args([&image]).run());
        let mut data = std::fs::read(&image).expect("read");
        let last = data.len() - 1;
        data[last] ^= 1;
        std::fs::write(&image, data).expect("write");
    }
    let from = host.log().len();
    host.start();
    until("all was looked at", || {
        host.log()[from..].contains("checked ")
    });
    let log = host.log()[from..].to_owned();
    assert_eq!(log.matches("unpacking it again").count(), 2, "{log}");
    assert_eq!(run(&host, "c", "cat kept top"), "kept\ntop\n");
    until("nothing is wrong", || host.ctr(["fsck"]).code == 0);
    remove(&host);
    host.finish();
}
