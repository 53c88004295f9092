//! What `ctr images` does with images that are here: mount, usage, convert, prune.

use integration::{Host, IMAGE, Program, need};

use crate::push::{digest, inspect};

#[test]
fn an_image_is_mounted_and_unmounted() {
    let host = Host::new("image-mount");
    host.image();
    let target = host.path("mnt");
    std::fs::create_dir(&target).expect("directory");
    let path = target.display().to_string();
    let told = host.ctr(["images", "mount", "--rw", IMAGE, &path]).ok();
    let lines: Vec<_> = told.lines().collect();
    assert!(
        lines[0].starts_with("sha256:") && lines[1] == path,
        "{told}"
    );
    std::fs::write(target.join("made"), "x").expect("write");
    assert!(target.join("bin").exists());
    drop(host.ctr(["images", "unmount", "--rm", &path]).ok());
    assert!(!target.join("bin").exists());
    // Read only without --rw.
    drop(host.ctr(["images", "mount", IMAGE, &path]).ok());
    let refused = std::fs::write(target.join("made"), "x").expect_err("read only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    drop(host.ctr(["images", "unmount", "--rm", &path]).ok());
    let missing = host.ctr(["images", "mount", "nobody", &path]).err();
    assert!(missing.contains("not found"), "{missing}");
    host.finish();
}

#[test]
fn usage_tells_each_snapshot_of_an_image() {
    let host = Host::new("image-usage");
    host.image();
    let table = host.ctr(["images", "usage", IMAGE]).ok();
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("KEY"), "{table}");
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[1].starts_with("sha256:"), "{table}");
    let usage = ["images", "usage", "--snapshotter", "native", IMAGE];
    let told = host.ctr(usage).err();
    assert!(
        told.contains("isn't unpacked in snapshotter native"),
        "{told}"
    );
    host.finish();
}

#[test]
fn a_converted_image_is_read_by_others_and_runs() {
    let host = Host::new("image-convert");
    host.image();
    for (flags, name) in [
        (&["--zstd", "--oci"][..], "a.test/zstd:1"),
        (&["--uncompress"], "a.test/plain:1"),
        (&["--gzip", "--docker"], "a.test/docker:1"),
    ] {
        let convert = host.ctr_program().args(["images", "convert"]).args(flags);
        let said = convert.args([IMAGE, name]).run().ok();
        assert_eq!(said.trim(), digest(&host, name));
        let file = host.path("converted.tar");
        let export = host.ctr_program().args(["images", "export"]);
        drop(export.args([file.as_os_str(), name.as_ref()]).run().ok());
        let from = format!("oci-archive:{}", file.display());
        assert_eq!(inspect(&from), digest(&host, name));
        // Unpacked by somebody else, it is the same tree.
        let to = format!("dir:{}", host.path("copy").display());
        let copy = Program::new(need("skopeo")).args(["--insecure-policy", "copy", "-q"]);
        drop(copy.args([from, to]).run().ok());
        let again = ["images", "import", &file.display().to_string()].map(str::to_owned);
        drop(host.ctr(again).ok());
        let out = host.ctr(["run", "--rm", name, "c", "echo", "runs"]).ok();
        assert_eq!(out, "runs\n");
    }
    let told = host.ctr(["images", "ls"]).ok();
    assert!(
        told.contains("application/vnd.docker.distribution.manifest.v2+json"),
        "{told}"
    );
    host.finish();
}

#[test]
fn prune_leaves_what_containers_use() {
    let host = Host::new("image-prune");
    host.image();
    drop(host.ctr(["images", "tag", IMAGE, "b.test/unused:1"]).ok());
    drop(host.ctr(["images", "prune"]).ok());
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok().lines().count(), 2);
    drop(host.ctr(["containers", "create", IMAGE, "user"]).ok());
    assert_eq!(
        host.ctr(["images", "prune", "--all"]).ok(),
        "b.test/unused:1\n"
    );
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok().trim(), IMAGE);
    drop(host.ctr(["containers", "rm", "user"]).ok());
    drop(host.ctr(["images", "prune", "--all"]).ok());
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), "");
    host.finish();
}
