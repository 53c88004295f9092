//! Pulls from registries that are broken or mean harm: an error that says what and where, within its
//! time, and nothing left that looks like an image.

use std::time::{Duration, Instant};

use integration::Host;
use registry::testsuite::{Content, Part, Reply, Request, Server};
use types::{Descriptor, media_type as mt};

/// For a fault that no retry can help.
const AT_ONCE: Duration = Duration::from_secs(5);
/// For one that is tried again a few times.
const AFTER_TRIES: Duration = Duration::from_secs(20);

fn json(descriptor: &Descriptor) -> String {
    format!(
        r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
        descriptor.media_type, descriptor.digest, descriptor.size
    )
}

fn manifest(config: &Descriptor, layer: &Descriptor) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        mt::OCI_MANIFEST,
        json(config),
        json(layer)
    )
}

fn config(layer: &Descriptor) -> String {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    format!(
        r#"{{"architecture":"{arch}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        layer.digest
    )
}

/// An image of one layer, tagged `latest`.
fn image() -> (Content, Descriptor) {
    let mut content = Content::default();
    let layer = content.add(mt::OCI_LAYER, vec![0; 10_240], &[]);
    let config = content.add(mt::OCI_CONFIG, config(&layer), &[]);
    content.add(mt::OCI_MANIFEST, manifest(&config, &layer), &["latest"]);
    (content, layer)
}

/// Pulls what `handler` serves; the pull must fail within `limit`. Returns what was said and by whom.
fn refused(
    name: &str,
    limit: Duration,
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> (String, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let server = runtime.block_on(Server::start(handler));
    let host = Host::new(name);
    let reference = format!("{}/r:latest", server.host());
    let began = Instant::now();
    let said = host
        .ctr(["images", "pull", "--plain-http", &reference])
        .err();
    assert!(began.elapsed() < limit, "{:?}: {said}", began.elapsed());
    let images = host.ctr(["images", "ls", "-q"]).ok();
    assert_eq!(images, "", "{said}");
    let at = server.host().to_owned();
    drop(server);
    host.finish();
    (said, at)
}

fn names(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}

#[test]
fn the_image_that_the_faults_are_made_of_is_a_good_one() {
    let (content, _) = image();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = runtime.block_on(Server::start(move |request| content.reply(request)));
    let host = Host::new("faults-none");
    let reference = format!("{}/r:latest", server.host());
    drop(
        host.ctr(["images", "pull", "--plain-http", &reference])
            .ok(),
    );
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok().trim(), reference);
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
    host.finish();
}

#[test]
fn a_layer_with_a_wrong_digest_is_refused() {
    let (content, layer) = image();
    let path = format!("/v2/r/blobs/{}", layer.digest);
    let (said, at) = refused("faults-digest", AT_ONCE, move |request| {
        let reply = content.reply(request);
        if request.path == path {
            return reply.body(vec![1; 10_240]);
        }
        reply
    });
    names(&said, &[layer.digest.as_str(), &at, "digest"]);
}

#[test]
fn a_layer_that_a_mirror_damages_comes_from_the_registry() {
    let (content, layer) = image();
    let path = format!("/v2/r/blobs/{}", layer.digest);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let damaged = content.clone();
    let mirror = runtime.block_on(Server::start(move |request| {
        let reply = damaged.reply(request);
        if request.path == path {
            return reply.body(vec![1; 10_240]);
        }
        reply
    }));
    let server = runtime.block_on(Server::start(move |request| content.reply(request)));
    let host = Host::new("faults-mirror");
    let of_name = host.path("certs.d").join("registry.example.test");
    std::fs::create_dir_all(&of_name).expect("directory");
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    );
    std::fs::write(of_name.join("hosts.toml"), hosts).expect("write hosts.toml");
    let flag = format!("--hosts-dir={}", host.path("certs.d").display());
    let reference = "registry.example.test/r:latest";
    drop(host.ctr(["images", "pull", &flag, reference]).ok());
    let of_layer = |server: &Server| {
        let asked = server.requests();
        let blob = |path: &str| path.ends_with(layer.digest.as_str());
        asked.iter().filter(|r| blob(&r.path)).count()
    };
    assert_eq!((of_layer(&mirror), of_layer(&server)), (1, 1));
    drop(host.ctr(["images", "rm", "--sync", reference]).ok());
    host.finish();
}

#[test]
fn a_layer_with_a_wrong_length_is_refused() {
    let (content, layer) = image();
    let path = format!("/v2/r/blobs/{}", layer.digest);
    let (said, at) = refused("faults-length", AT_ONCE, move |request| {
        let reply = content.reply(request);
        if request.path == path {
            return reply.body(vec![0; 20_480]);
        }
        reply
    });
    names(
        &said,
        &[layer.digest.as_str(), &at, "20480 bytes", "10240", "read"],
    );
}

#[test]
fn a_layer_that_never_comes_whole_is_given_up() {
    let (content, layer) = image();
    let path = format!("/v2/r/blobs/{}", layer.digest);
    let (said, at) = refused("faults-cut", AFTER_TRIES, move |request| {
        let mut reply = content.reply(request);
        if request.path == path {
            reply.cut = Some(100);
        }
        reply
    });
    names(&said, &[layer.digest.as_str(), &at, "read", "byte 500"]);
}

#[test]
fn a_manifest_of_a_hundred_megabytes_is_refused_before_it_comes() {
    let (said, at) = refused("faults-manifest", AT_ONCE, |request| {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reply = Reply::status(200)
            .with("content-type", mt::OCI_MANIFEST)
            .with("docker-content-digest", digest);
        match request.method.as_str() {
            "HEAD" => reply.with("content-length", (100 << 20).to_string()),
            _ => Reply {
                endless: Some(Part::Body),
                ..reply
            },
        }
    });
    names(&said, &[&at, "latest", "104857600 bytes", "limit"]);
}

#[test]
fn an_index_that_contains_itself_ends() {
    // No index can name its own digest: its copy is served under the digest that it names.
    let digest = format!("sha256:{}", "b".repeat(64));
    let entry = format!(
        r#"{{"mediaType":"{}","digest":"{digest}","size":SIZE}}"#,
        mt::OCI_INDEX
    );
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    let text = text.replace("SIZE", &(text.len() - 1).to_string());
    let named = digest.clone();
    let (said, _) = refused("faults-cycle", AT_ONCE, move |_| {
        Reply::status(200)
            .with("content-type", mt::OCI_INDEX)
            .with("docker-content-digest", named.clone())
            .body(text.clone())
    });
    names(&said, &[digest.as_str()]);
}

#[test]
fn what_is_no_image_is_refused() {
    for (kind, part) in [
        ("text/html", "text/html"),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "no longer supported",
        ),
    ] {
        let (said, at) = refused("faults-type", AT_ONCE, move |_| {
            let digest = format!("sha256:{}", "c".repeat(64));
            Reply::status(200)
                .with("content-type", kind)
                .with("docker-content-digest", digest)
                .body("{}")
        });
        names(&said, &[&at, "latest", part]);
    }
}

#[test]
fn a_registry_that_refuses_or_is_ill_is_named() {
    for (status, limit, part) in [
        (401, AT_ONCE, "pull access denied"),
        (403, AT_ONCE, "pull access denied"),
        (429, AFTER_TRIES, "429"),
        (503, AFTER_TRIES, "503"),
    ] {
        let (said, at) = refused("faults-status", limit, move |_| {
            Reply::status(status).with("www-authenticate", "Unknown x=y")
        });
        names(&said, &[&at, "latest", part]);
    }
}

#[test]
fn endless_headers_are_cut() {
    let (said, at) = refused("faults-head", AFTER_TRIES, |_| Reply {
        endless: Some(Part::Head),
        ..Reply::status(200)
    });
    names(&said, &[&at, "latest", "too large"]);
}
