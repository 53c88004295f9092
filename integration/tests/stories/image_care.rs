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

#[test]
fn a_tag_replaces_another_image_not_without_a_word() {
    let host = Host::new("image-tag");
    host.image();
    let converted = "b.test/other:1";
    drop(
        host.ctr(["images", "convert", "--uncompress", IMAGE, converted])
            .ok(),
    );
    let [first, second] = [IMAGE, converted].map(|name| digest(&host, name));
    assert_ne!(first, second);
    let name = "b.test/name:1";
    let tag = |flags: &[&str], from: &str| {
        let ctr = host.ctr_program().args(["images", "tag"]).args(flags);
        ctr.args([from, name]).run()
    };
    // As often as one likes, for the same image.
    for _ in 0..2 {
        assert_eq!(tag(&[], IMAGE).stderr, "");
    }
    let told = tag(&[], converted);
    assert_eq!(
        (told.code, told.stdout.trim()),
        (0, name),
        "{}",
        told.stderr
    );
    assert!(told.stderr.contains(&first), "{}", told.stderr);
    assert_eq!(digest(&host, name), second);
    let said = tag(&["--local"], IMAGE).err();
    assert!(said.contains("already exists"), "{said}");
    drop(tag(&["--local", "--force"], IMAGE).ok());
    assert_eq!(digest(&host, name), first);
    assert_eq!(tag(&["--force"], converted).stderr, "");
    for name in [IMAGE, converted, name] {
        drop(host.ctr(["images", "rm", "--sync", name]).ok());
    }
    host.finish();
}

#[test]
fn inspect_shows_what_an_image_consists_of() {
    let host = Host::new("image-inspect");
    host.image();
    let target = digest(&host, IMAGE);
    let inspect = |flags: &[&str]| {
        let ctr = host.ctr_program().args(["images", "inspect"]).args(flags);
        ctr.args([IMAGE]).run().ok()
    };
    let plain = inspect(&[]);
    let mut lines = plain.lines();
    assert_eq!(lines.next(), Some(IMAGE), "{plain}");
    assert!(plain.contains("│    Created: 20"), "{plain}");
    assert!(plain.contains("└── application/vnd.oci.image"), "{plain}");
    assert!(plain.contains(&format!("@{target} (")), "{plain}");
    assert!(
        plain.contains("├── application/vnd.oci.image.config.v1+json @"),
        "{plain}"
    );
    assert!(
        plain.contains("└── application/vnd.oci.image.layer.v1.tar"),
        "{plain}"
    );
    assert!(!plain.contains("schemaVersion"), "{plain}");
    let full = inspect(&["--content"]);
    for part in [
        "Content──",
        "\"schemaVersion\": 2",
        "\"rootfs\": {",
        "gc.ref.content",
    ] {
        assert!(full.contains(part), "{part} in {full}");
    }
    let said = host.ctr(["images", "inspect", "nobody"]).err();
    assert!(said.contains("not found"), "{said}");
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    host.finish();
}
