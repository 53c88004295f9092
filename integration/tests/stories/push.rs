//! Push: what we push, a foreign client reads with the same digests.

use integration::{Host, IMAGE, Program, Registry, need};

/// Digest of an image as our daemon has it.
pub(crate) fn digest(host: &Host, name: &str) -> String {
    let table = host.ctr(["images", "ls"]).ok();
    let row = table.lines().find(|line| line.starts_with(name));
    let digest = row.and_then(|row| row.split_whitespace().nth(2));
    digest.expect("the image's digest").to_owned()
}

/// What skopeo says about an image.
pub(crate) fn inspect(image: &str) -> String {
    let flags = ["--insecure-policy", "inspect", "--format", "{{.Digest}}"];
    let plain = image.starts_with("docker:").then_some("--tls-verify=false");
    let inspect = Program::new(need("skopeo")).args(flags).args(plain);
    inspect.args([image]).run().ok().trim().to_owned()
}

#[test]
fn what_we_push_skopeo_reads() {
    let host = Host::new("push");
    let registry = Registry::start();
    host.image();
    let want = digest(&host, IMAGE);
    for (flags, name) in [(&[][..], "mine/there:1"), (&["--local"], "mine/here:1")] {
        let remote = format!("{}/{name}", registry.host());
        for round in ["first", "again"] {
            let push = ["images", "push", "--plain-http"];
            let push = host.ctr_program().args(push).args(flags);
            let told = push.args([&remote, IMAGE]).run().ok();
            assert!(told.contains("manifest ("), "{round}: {told}");
        }
        assert_eq!(inspect(&format!("docker://{remote}")), want);
    }
    // A whole copy checks every blob.
    let from = format!("docker://{}/mine/there:1", registry.host());
    let to = format!("oci:{}", host.path("copy").display());
    let copy = ["--insecure-policy", "copy", "--src-tls-verify=false", "-q"];
    let copy = Program::new(need("skopeo")).args(copy).args([from, to]);
    drop(copy.run().ok());
    let told = host
        .ctr([
            "images",
            "push",
            "--plain-http",
            "127.0.0.1:1/x:1",
            "nobody",
        ])
        .err();
    assert!(told.contains("not found"), "{told}");
    host.finish();
}

#[test]
fn a_pulled_image_is_pushed_elsewhere_by_mount() {
    let host = Host::new("push-mount");
    let registry = Registry::start();
    let from = registry.reference();
    drop(host.ctr(["images", "pull", "--plain-http", &from]).ok());
    for local in [None, Some("--local")] {
        let copy = local.map_or("there", |_| "here");
        let to = format!("{}/demo/{copy}:1", registry.host());
        let push = [
            "images",
            "push",
            "--plain-http",
            "--http-dump",
            "--http-trace",
        ];
        let push = host.ctr_program().args(push).args(local);
        let pushed = push.args([&to, &from]).run();
        assert_eq!(pushed.code, 0, "{}", pushed.stderr);
        assert_eq!(inspect(&format!("docker://{to}")), digest(&host, &from));
        // Each blob is there with the first request for it, and none is sent.
        let shown = pushed.stderr;
        let blobs = format!("http://{}/v2/demo/{copy}/blobs/", registry.host());
        let mounted = format!("POST {blobs}uploads/: 201");
        assert!(shown.matches(&mounted).count() >= 2, "{mounted}: {shown}");
        for sent in ["> PATCH ".to_owned(), format!("> PUT {blobs}")] {
            assert!(!shown.contains(&sent), "{sent}: {shown}");
        }
    }
    host.finish();
}

#[test]
fn debian_s_ctr_pushes_from_our_daemon() {
    let host = Host::new("push-go");
    let registry = Registry::start();
    host.image();
    let remote = format!("{}/go/a:1", registry.host());
    let push = ["images", "push", "--plain-http", &remote, IMAGE];
    drop(host.go_ctr(push).ok());
    assert_eq!(inspect(&format!("docker://{remote}")), digest(&host, IMAGE));
    host.finish();
}
