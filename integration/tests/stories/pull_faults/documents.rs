//! Manifests and indexes that are none, or too many, or too large.

use registry::testsuite::{Content, Part, Reply, Server};
use types::{Descriptor, Labels, media_type as mt};

use super::{AT_ONCE, Case, Fault, LAYER, alone, config, image, manifest, names, runtime, tagged};
use integration::Host;

pub(super) fn faults() -> Vec<Fault> {
    let mut all = vec![
        large(),
        without_an_end(),
        cycle(),
        deep(),
        large_config(),
        impossible_layer(),
        too_many_layers(),
        most_layers(),
        too_many_manifests(),
        foreign_layer(),
    ];
    all.extend(no_images());
    all
}

pub(super) const CASES: [Case; 2] = [unknown_kind, moving_tag];

/// A digest of which nothing is known.
fn some_digest(digit: &str) -> String {
    format!("sha256:{}", digit.repeat(64))
}

fn unknown(media_type: &str, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: some_digest("e").parse().expect("digest"),
        size,
        annotations: Labels::new(),
    }
}

fn large() -> Fault {
    let says = ["latest", "104857600 bytes", "limit"];
    Fault::new("manifest", AT_ONCE, &says, |request| {
        let reply = Reply::status(200)
            .with("content-type", mt::OCI_MANIFEST)
            .with("docker-content-digest", some_digest("a"));
        match request.method.as_str() {
            "HEAD" => reply.with("content-length", (100 << 20).to_string()),
            _ => Reply {
                endless: Some(Part::Body),
                ..reply
            },
        }
    })
}

/// Nobody says how long it is.
fn without_an_end() -> Fault {
    Fault::new("manifests", AT_ONCE, &["latest", "larger than"], |_| {
        Reply {
            endless: Some(Part::Body),
            ..Reply::status(200).with("content-type", mt::OCI_MANIFEST)
        }
    })
}

/// No index can name its own digest: its copy is served under the digest that it names.
fn cycle() -> Fault {
    let digest = some_digest("b");
    let entry = format!(
        r#"{{"mediaType":"{}","digest":"{digest}","size":SIZE}}"#,
        mt::OCI_INDEX
    );
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    let text = text.replace("SIZE", &(text.len() - 1).to_string());
    let says = [digest.as_str(), "digest", "fetch index"];
    Fault::new("cycle", AT_ONCE, &says, {
        let digest = digest.clone();
        move |_| {
            Reply::status(200)
                .with("content-type", mt::OCI_INDEX)
                .with("docker-content-digest", digest.clone())
                .body(text.clone())
        }
    })
}

/// Indexes in indexes, more of them than anybody has, and no image.
fn deep() -> Fault {
    let mut content = Content::default();
    let index = |inner: &str| format!(r#"{{"schemaVersion":2,"manifests":[{inner}]}}"#);
    let mut inner = content.add(mt::OCI_INDEX, index(""), &[]);
    for n in 1..=40 {
        let tags: &[&str] = if n == 40 { &["latest"] } else { &[] };
        inner = content.add(mt::OCI_INDEX, index(&super::json(&inner)), tags);
    }
    let says = ["latest", "nested deeper than 32 documents"];
    Fault::new("deep", AT_ONCE, &says, move |request| {
        content.reply(request)
    })
}

fn no_images() -> Vec<Fault> {
    let fault = |name, kind: &'static str, part: &'static str| {
        Fault::new(name, AT_ONCE, &["latest", part], move |_| {
            Reply::status(200)
                .with("content-type", kind)
                .with("docker-content-digest", some_digest("c"))
                .body("{}")
        })
    };
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    vec![
        fault("text", "text/html", "text/html"),
        fault("schema-1", old, "no longer supported"),
    ]
}

/// An image whose parts are what these make of them.
fn made(
    name: &'static str,
    says: &[&str],
    parts: impl FnOnce(&mut Content) -> (Descriptor, Vec<Descriptor>),
) -> Fault {
    let mut content = Content::default();
    let (config, layers) = parts(&mut content);
    content.add(mt::OCI_MANIFEST, manifest(&config, &layers), &["latest"]);
    Fault::new(name, AT_ONCE, says, move |request| content.reply(request))
}

fn large_config() -> Fault {
    let digest = some_digest("e");
    let says = [digest.as_str(), "image config", "104857600 bytes", "limit"];
    made("config", &says, |_| {
        (unknown(mt::OCI_CONFIG, 100 << 20), vec![])
    })
}

/// Longer than any disk.
fn impossible_layer() -> Fault {
    let says = [&some_digest("e"), "fetch layer"];
    made("size", &says, |content| {
        let layer = unknown(mt::OCI_LAYER, u64::MAX >> 1);
        let layers = vec![layer];
        (content.add(mt::OCI_CONFIG, config(&layers), &[]), layers)
    })
}

/// So many layers, of which none is there.
fn layers(name: &'static str, many: usize, says: &[&str]) -> Fault {
    made(name, says, |content| {
        let layer = |n| Descriptor {
            digest: format!("sha256:{n:064x}").parse().expect("digest"),
            ..unknown(mt::OCI_LAYER, 100)
        };
        let layers: Vec<_> = (0..many).map(layer).collect();
        (content.add(mt::OCI_CONFIG, config(&layers), &[]), layers)
    })
}

/// As many as fit into the largest manifest.
fn too_many_layers() -> Fault {
    layers("many", 20_000, &["manifest sha256:", "more than 4096"])
}

fn most_layers() -> Fault {
    layers("most", 4096, &["fetch layer-sha256:", "404"])
}

/// An index of the smallest entries there are.
fn too_many_manifests() -> Fault {
    let mut content = Content::default();
    let entry = format!(r#"{{"digest":"{}","size":0}}"#, some_digest("f"));
    let text = format!(r#"{{"manifests":[{}]}}"#, vec![entry; 40_000].join(","));
    let target = content.add(mt::OCI_INDEX, text, &["latest"]);
    let says = ["index", target.digest.as_str(), "more than 4096"];
    Fault::new("index", AT_ONCE, &says, move |request| {
        content.reply(request)
    })
}

/// Registries need not have those, and nobody else is asked, whoever the manifest names.
fn foreign_layer() -> Fault {
    let says = [&some_digest("e"), "404", "fetch layer"];
    let mut content = Content::default();
    let layer = unknown(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        100,
    );
    let layers = std::slice::from_ref(&layer);
    let config = content.add(mt::OCI_CONFIG, config(layers), &[]);
    let text = manifest(&config, layers);
    let urls = r#","size":100,"urls":["http://127.0.0.1:1/elsewhere"]"#;
    let text = text.replace(r#","size":100"#, urls);
    assert!(text.contains("elsewhere"), "{text}");
    content.add(mt::OCI_MANIFEST, text, &["latest"]);
    Fault::new("foreign", AT_ONCE, &says, move |request| {
        content.reply(request)
    })
}

#[test]
fn a_manifest_of_a_hundred_megabytes_is_refused_before_it_comes() {
    let asked = large().happens();
    assert!(asked.iter().all(|r| r.method == "HEAD"), "{asked:?}");
}

#[test]
fn a_manifest_without_an_end_is_cut() {
    drop(without_an_end().happens());
}

#[test]
fn an_index_that_contains_itself_ends() {
    drop(cycle().happens());
}

#[test]
fn indexes_that_are_nested_too_deep_end() {
    let asked = deep().happens();
    assert!(asked.len() <= 40, "{} requests", asked.len());
}

#[test]
fn what_is_no_image_is_refused() {
    for fault in no_images() {
        drop(fault.happens());
    }
}

#[test]
fn a_config_of_a_hundred_megabytes_is_refused_before_it_comes() {
    let asked = large_config().happens();
    assert!(asked.iter().all(|r| !r.path.contains("blobs")), "{asked:?}");
}

#[test]
fn a_layer_longer_than_any_disk_is_refused() {
    drop(impossible_layer().happens());
}

#[test]
fn as_many_layers_as_there_may_be_end_with_the_first_that_is_missing() {
    drop(most_layers().happens());
}

#[test]
fn more_layers_or_manifests_are_refused() {
    for fault in [too_many_layers(), too_many_manifests()] {
        let asked = fault.happens();
        assert!(asked.iter().all(|r| !r.path.contains("blobs")), "{asked:?}");
    }
}

/// Not everything that a manifest lists is a file system.
#[test]
fn a_layer_of_an_unknown_media_type_is_kept_but_not_unpacked() {
    alone("faults-kind", unknown_kind);
}

fn unknown_kind(host: &Host) {
    let mut content = Content::default();
    let layer = content.add("application/x-unknown", vec![0; LAYER], &[]);
    let target = tagged(&mut content, std::slice::from_ref(&layer), "latest");
    let runtime = runtime();
    let server = runtime.block_on(Server::start(move |request| content.reply(request)));
    let reference = format!("{}/r:latest", server.host());
    drop(
        host.ctr(["images", "pull", "--plain-http", &reference])
            .ok(),
    );
    assert_eq!(
        crate::push::digest(host, &reference),
        target.digest.as_str()
    );
    let blobs = host.ctr(["content", "ls", "-q"]).ok();
    assert!(blobs.contains(layer.digest.as_str()), "{blobs}");
    assert_eq!(host.ctr(["snapshots", "ls"]).ok().lines().count(), 1);
    let said = host.ctr(["run", "--rm", &reference, "x", "true"]).err();
    names(&said, &["not found"]);
    assert!(host.ctr(["containers", "ls", "-q"]).ok().is_empty());
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
}

#[test]
fn a_foreign_layer_is_asked_of_the_registry_only() {
    drop(foreign_layer().happens());
}

#[test]
fn a_tag_that_moves_does_not_mix_two_images() {
    alone("faults-tag", moving_tag);
}

fn moving_tag(host: &Host) {
    let (mut content, _) = image("tag");
    let other = content.add(mt::OCI_LAYER, vec![0; 2 * LAYER], &[]);
    let second = tagged(&mut content, &[other], "second");
    let mut tags = 0;
    let tags = std::sync::Mutex::new(move || {
        tags += 1;
        if tags == 1 { "latest" } else { "second" }
    });
    let runtime = runtime();
    let server = runtime.block_on(Server::start(move |request| {
        let mut request = request.clone();
        // The tag moves with the first look at it.
        if request.path.ends_with("/latest") {
            let tag = (tags.lock().expect("lock"))();
            request.path = format!("/v2/r/manifests/{tag}");
        }
        content.reply(&request)
    }));
    let reference = format!("{}/r:latest", server.host());
    let pull = ["images", "pull", "--plain-http", &reference];
    drop(host.ctr(pull).ok());
    let first = crate::push::digest(host, &reference);
    assert_ne!(first, second.digest.as_str());
    let by_tag = |r: &&registry::testsuite::Request| r.path.ends_with("/latest");
    assert_eq!(server.requests().iter().filter(by_tag).count(), 1);
    let check = host.ctr(["images", "check"]).ok();
    assert!(check.contains("complete (2/2)"), "{check}");
    // The next pull gets the other one, whole.
    drop(host.ctr(pull).ok());
    assert_eq!(
        crate::push::digest(host, &reference),
        second.digest.as_str()
    );
    let check = host.ctr(["images", "check"]).ok();
    assert!(check.contains("complete (2/2)"), "{check}");
    drop(host.ctr(["images", "rm", "--sync", &reference]).ok());
}
