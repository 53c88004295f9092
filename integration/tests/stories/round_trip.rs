//! Images that go out and come back, through others: the digests stay.

use integration::{Host, IMAGE, Program, Registry, need};

use crate::push::{digest, inspect};

/// Has skopeo copy an image, which checks every blob.
fn copy(from: &str, to: &str) {
    let mut flags = vec!["--insecure-policy", "copy", "-q"];
    if from.starts_with("docker:") {
        flags.push("--src-tls-verify=false");
    }
    if to.starts_with("docker:") {
        flags.push("--dest-tls-verify=false");
    }
    drop(
        Program::new(need("skopeo"))
            .args(flags)
            .args([from, to])
            .run()
            .ok(),
    );
}

/// Digest of the config of an image in a registry or an archive.
fn config(image: &str) -> String {
    let flags = ["--insecure-policy", "inspect", "--raw", "--config"];
    let plain = image.starts_with("docker:").then_some("--tls-verify=false");
    let raw = Program::new(need("skopeo"))
        .args(flags)
        .args(plain)
        .args([image])
        .run()
        .ok();
    let said = Program::new(need("sha256sum"))
        .input(raw.as_bytes())
        .run()
        .ok();
    said.split(' ').next().expect("a digest").to_owned()
}

#[test]
fn what_goes_out_comes_back_through_skopeo_the_same() {
    let host = Host::new("round-trip");
    let registry = Registry::start();
    host.image();
    let want = digest(&host, IMAGE);
    for flags in [&[][..], &["--local"]] {
        let ctr = |verb: &str, rest: &[&str]| {
            let ctr = host.ctr_program().args(["images", verb]).args(flags);
            drop(ctr.args(rest).run().ok());
        };
        // Pushed, copied to another name by skopeo, pulled.
        let ours = format!("{}/mine/a:1", registry.host());
        let theirs = format!("{}/theirs/a:1", registry.host());
        ctr("push", &["--plain-http", &ours, IMAGE]);
        copy(&format!("docker://{ours}"), &format!("docker://{theirs}"));
        assert_eq!(inspect(&format!("docker://{theirs}")), want);
        ctr("pull", &["--plain-http", &theirs]);
        assert_eq!(digest(&host, &theirs), want);
        // Exported, copied to the registry by skopeo, pulled.
        let file = host.path("export.tar");
        let file = file.to_str().expect("a path");
        ctr("export", &[file, IMAGE]);
        let again = format!("{}/theirs/b:1", registry.host());
        let archive = format!("oci-archive:{file}");
        assert_eq!(inspect(&archive), want);
        copy(&archive, &format!("docker://{again}"));
        ctr("pull", &["--plain-http", &again]);
        assert_eq!(digest(&host, &again), want);
        // Made an archive by skopeo, imported: what has a layout of its own keeps its digest, what goes
        // by Docker's keeps its config.
        let oci = host.path("oci.tar");
        copy(
            &format!("docker://{theirs}"),
            &format!("oci-archive:{}:c.test/oci:1", oci.display()),
        );
        ctr("import", &[oci.to_str().expect("a path")]);
        assert_eq!(digest(&host, "c.test/oci:1"), want);
        let docker = host.path("docker.tar");
        let from = format!("docker-archive:{}", docker.display());
        copy(
            &format!("docker://{theirs}"),
            &format!("{from}:c.test/docker:1"),
        );
        ctr("import", &[docker.to_str().expect("a path")]);
        let back = format!("{}/theirs/c:1", registry.host());
        ctr("push", &["--plain-http", &back, "c.test/docker:1"]);
        assert_eq!(
            config(&format!("docker://{back}")),
            config(&format!("docker://{ours}"))
        );
        let out = host.ctr(["run", "--rm", "c.test/docker:1", "x", "echo", "runs"]);
        assert_eq!(out.ok(), "runs\n");
        for file in [oci, docker] {
            std::fs::remove_file(file).expect("remove");
        }
        let names = host.ctr(["images", "ls", "-q"]).ok();
        for name in names.lines().filter(|name| *name != IMAGE) {
            drop(host.ctr(["images", "rm", "--sync", name]).ok());
        }
    }
    host.finish();
}

#[test]
fn debian_s_ctr_gets_and_gives_the_same_digests_from_our_daemon() {
    let host = Host::new("round-trip-go");
    let registry = Registry::start();
    let want = inspect(&format!("docker://{}", registry.reference()));
    let from = registry.reference();
    drop(host.go_ctr(["images", "pull", "--plain-http", &from]).ok());
    assert_eq!(digest(&host, &from), want);
    let to = format!("{}/go/a:1", registry.host());
    drop(
        host.go_ctr(["images", "push", "--plain-http", &to, &from])
            .ok(),
    );
    assert_eq!(inspect(&format!("docker://{to}")), want);
    let file = host.path("go.tar");
    let file = file.to_str().expect("a path");
    drop(host.go_ctr(["images", "export", file, &from]).ok());
    assert_eq!(inspect(&format!("oci-archive:{file}")), want);
    drop(host.go_ctr(["images", "rm", "--sync", &from]).ok());
    assert_eq!(host.ctr(["content", "ls", "-q"]).ok(), "");
    drop(host.go_ctr(["images", "import", file]).ok());
    assert_eq!(digest(&host, &from), want);
    let out = host.go_ctr(["run", "--rm", &from, "x", "echo", "runs"]);
    assert_eq!(out.ok(), "runs\n");
    // And what skopeo makes.
    let oci = host.path("oci.tar");
    let to = format!("oci-archive:{}:c.test/oci:1", oci.display());
    copy(&format!("docker://{from}"), &to);
    drop(
        host.go_ctr(["images", "import", oci.to_str().expect("a path")])
            .ok(),
    );
    assert_eq!(digest(&host, "c.test/oci:1"), want);
    for name in [from.as_str(), "c.test/oci:1"] {
        drop(host.ctr(["images", "rm", "--sync", name]).ok());
    }
    host.finish();
}
