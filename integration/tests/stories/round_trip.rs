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
fn plain_layers_are_compressed_on_their_way_where_that_is_wanted() {
    let host = Host::new("compress");
    let registry = Registry::start();
    let plain = host.path("docker.tar");
    let archive = format!("docker-archive:{}", plain.display());
    let from = format!("docker://{}", registry.reference());
    copy(&from, &format!("{archive}:c.test/docker:1"));
    let layers = |image: &str| -> Vec<(String, u64)> {
        let flags = [
            "--insecure-policy",
            "inspect",
            "--raw",
            "--tls-verify=false",
        ];
        let raw = Program::new(need("skopeo")).args(flags).args([image]).run();
        let raw: serde_json::Value = serde_json::from_str(&raw.ok()).expect("a manifest");
        let layers = raw["layers"].as_array().expect("layers").iter();
        let of = |layer: &serde_json::Value| {
            let kind = layer["mediaType"].as_str().expect("a type");
            (kind.to_owned(), layer["size"].as_u64().expect("a size"))
        };
        layers.map(of).collect()
    };
    for flags in [&[][..], &["--local"]] {
        let mut seen = Vec::new();
        for (compress, name) in [(None, "plain"), (Some("--compress-blobs"), "compressed")] {
            let import = host.ctr_program().args(["images", "import"]).args(flags);
            drop(import.args(compress).args([&plain]).run().ok());
            let to = format!("{}/{name}/a:1", registry.host());
            let push = ["images", "push", "--plain-http", &to, "c.test/docker:1"];
            drop(host.ctr(push).ok());
            let to = format!("docker://{to}");
            seen.push((layers(&to), config(&to)));
            // Every blob is what its digest says, and what the config says when it is unpacked.
            let back = host.path("back.tar");
            copy(
                &to,
                &format!("docker-archive:{}:x.test/x:1", back.display()),
            );
            std::fs::remove_file(back).expect("remove");
            let run = ["run", "--rm", "c.test/docker:1", "x", "echo", "runs"];
            assert_eq!(host.ctr(run).ok(), "runs\n");
            let remove = ["images", "rm", "--sync", "c.test/docker:1"];
            drop(host.ctr(remove).ok());
        }
        let [(plain, first), (compressed, second)] = seen.as_slice() else {
            panic!("{seen:?}");
        };
        assert_eq!(first, second);
        assert_eq!(plain.len(), compressed.len());
        for ((plain, large), (gzip, small)) in plain.iter().zip(compressed) {
            assert!(plain.ends_with(".tar"), "{plain}");
            assert!(gzip.ends_with(".tar.gzip"), "{gzip}");
            assert!(small < large, "{small} bytes of {large}");
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
