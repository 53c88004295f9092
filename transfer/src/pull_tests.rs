//! Pulls from a registry on the loopback into stores in memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use content::ContentStore as _;
use registry::Limits;
use registry::testsuite::{Content, Reply, Server};
use types::{Code, media_type as mt};

use super::*;
use crate::fake::World;
use crate::progress::Progress;

#[path = "rooms_tests.rs"]
mod rooms;

fn opts() -> PullOpts {
    let limits = Limits {
        attempts: 2,
        backoff: Duration::from_millis(1),
        ..Limits::default()
    };
    let registry = RegistryOpts {
        plain_http: true,
        limits,
        ..RegistryOpts::default()
    };
    PullOpts {
        unpack: true,
        registry,
        ..PullOpts::default()
    }
}

fn fields(d: &Descriptor) -> String {
    images::testsuite::fields_of(d)
}

fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(data).unwrap();
    gz.finish().unwrap()
}

/// A manifest with its config and gzip layers; `ids` overrides the diff ids.
fn manifest(content: &mut Content, arch: &str, layers: &[&[u8]], tags: &[&str]) -> Descriptor {
    let ids: Vec<String> = layers
        .iter()
        .map(|data| format!("{:?}", images::digest_of(data).unwrap().as_str()))
        .collect();
    let blobs: Vec<String> = layers
        .iter()
        .map(|data| {
            format!(
                "{{{}}}",
                fields(&content.add(mt::OCI_LAYER_GZIP, gzip(data), &[]))
            )
        })
        .collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"{arch}","rootfs":{{"diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let config = content.add(mt::OCI_CONFIG, config, &[]);
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{}]}}"#,
        fields(&config),
        blobs.join(",")
    );
    content.add(mt::OCI_MANIFEST, text, tags)
}

fn index(content: &mut Content, entries: &[(&Descriptor, &str)], tags: &[&str]) -> Descriptor {
    let list: Vec<String> = entries
        .iter()
        .map(|(d, arch)| {
            let platform = format!(r#""platform":{{"os":"linux","architecture":"{arch}"}}"#);
            format!("{{{},{platform}}}", fields(d))
        })
        .collect();
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, list.join(","));
    content.add(mt::OCI_INDEX, text, tags)
}

async fn serve(content: Content) -> Server {
    Server::start(move |request| content.reply(request)).await
}

fn host() -> String {
    types::Platform::host().architecture
}

#[tokio::test]
async fn an_image_comes_in_labelled_and_unpacked() {
    let mut content = Content::default();
    let layers: [&[u8]; 3] = [b"one", b"two", &[7; 3_000_000]];
    let mine = manifest(&mut content, &host(), &layers, &[]);
    let other = manifest(&mut content, "s390x", &[b"other"], &[]);
    let target = index(
        &mut content,
        &[(&other, "s390x"), (&mine, &host())],
        &["latest"],
    );
    let server = serve(content).await;
    let (world, seen) = (World::new(), Arc::new(Mutex::new(Vec::<Progress>::new())));
    let told = Arc::clone(&seen);
    let progress = OnProgress::new(move |p| told.lock().unwrap().push(p.clone()));
    let labels = Labels::new().with("mine", "1");
    let name = format!("{}/r:latest", server.host());
    let opts = PullOpts {
        progress,
        labels: labels.clone(),
        ..opts()
    };
    let image = pull(&name, &world.deps(), opts).await.unwrap();
    assert_eq!(
        (image.name.as_str(), &image.target, image.labels),
        (name.as_str(), &target, labels)
    );
    assert_eq!(world.names(), [name.as_str()]);
    assert_eq!(world.chains().len(), 3);
    assert!(world.content.ingests().is_empty());
    assert!(!world.content.has(&other.digest));

    let name_of_source = "containerd.io/distribution.source.127.0.0.1";
    labels_are_right(&world, &target, &other, &mine, name_of_source).await;
    let parsed = images::read_manifest(&world.content, &mine).await.unwrap();
    let seen = seen.lock().unwrap();
    let words: Vec<_> = seen
        .iter()
        .filter(|p| p.reference == name)
        .map(|p| p.status.word())
        .collect();
    assert_eq!(words, ["resolving", "resolved", "done"]);
    let layer = images::ref_key(&parsed.layers[2]);
    let mut words: Vec<_> = seen
        .iter()
        .filter(|p| p.reference == layer)
        .map(|p| p.status.word())
        .collect();
    words.dedup();
    assert_eq!(
        words,
        ["waiting", "downloading", "done", "extracting", "unpacked"]
    );
    assert_eq!(
        server
            .requests()
            .iter()
            .filter(|r| r.method == "GET")
            .count(),
        6
    );
}

async fn labels_are_right(
    world: &World,
    target: &Descriptor,
    other: &Descriptor,
    mine: &Descriptor,
    source: &str,
) {
    let store = &world.content;
    let labels = |digest| async move { store.info(digest).await.unwrap().labels };
    let of_index = labels(&target.digest).await;
    assert_eq!(
        of_index["containerd.io/gc.ref.content.m.0"],
        other.digest.as_str()
    );
    assert_eq!(
        of_index["containerd.io/gc.ref.content.m.1"],
        mine.digest.as_str()
    );
    assert_eq!(of_index[source], "r");
    let parsed = images::read_manifest(store, mine).await.unwrap();
    let of_manifest = labels(&mine.digest).await;
    assert_eq!(
        of_manifest["containerd.io/gc.ref.content.config"],
        parsed.config.digest.as_str()
    );
    assert_eq!(
        of_manifest["containerd.io/gc.ref.content.l.2"],
        parsed.layers[2].digest.as_str()
    );
    let ids = images::read_config(store, &parsed.config)
        .await
        .unwrap()
        .diff_ids;
    let chains = images::chain_ids(&ids).unwrap();
    let of_config = labels(&parsed.config.digest).await;
    assert_eq!(
        of_config["containerd.io/gc.ref.snapshot.overlayfs"],
        chains[2].as_str()
    );
    let of_layer = labels(&parsed.layers[1].digest).await;
    assert_eq!(of_layer["containerd.io/uncompressed"], ids[1].as_str());
    let parent = world.snapshots.0.lock().unwrap()[chains[2].as_str()]
        .parent
        .clone();
    assert_eq!(parent.unwrap().as_str(), chains[1].as_str());
}

#[tokio::test]
async fn a_second_pull_fetches_and_unpacks_nothing() {
    let mut content = Content::default();
    manifest(&mut content, &host(), &[b"one", b"two"], &["a"]);
    let server = serve(content).await;
    let world = World::new();
    let name = format!("{}/r:a", server.host());
    let first = pull(&name, &world.deps(), opts()).await.unwrap();
    let before = server.requests().len();
    assert_eq!(pull(&name, &world.deps(), opts()).await.unwrap(), first);
    assert_eq!(server.requests().len(), before + 1);
    assert_eq!(world.applier.applied.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn parallel_pulls_of_one_image_meet() {
    let mut content = Content::default();
    manifest(&mut content, &host(), &[&[1; 2_000_000], b"two"], &["a"]);
    let server = serve(content).await;
    let world = World::new();
    let name = format!("{}/r:a", server.host());
    let deps = world.deps();
    let pulls = (0..4).map(|_| pull(&name, &deps, opts()));
    for done in futures::future::join_all(pulls).await {
        done.unwrap();
    }
    assert_eq!(world.chains().len(), 2);
    // Manifest, config and two layers: each once.
    assert_eq!(
        server
            .requests()
            .iter()
            .filter(|r| r.method == "GET")
            .count(),
        4
    );
}

#[tokio::test]
async fn what_is_wrong_is_said_and_nothing_is_left() {
    type Break = fn(&str, Reply) -> Reply;
    let cases: [(&str, Break, Code, &str); 4] = [
        (
            "wrong bytes",
            |path, mut reply| {
                if path.contains("/blobs/") {
                    let mut body = reply.body.to_vec();
                    body[10] ^= 1;
                    reply.body = body.into();
                }
                reply
            },
            Code::FailedPrecondition,
            "fetch config-sha256",
        ),
        (
            "missing blobs",
            |path, reply| {
                if path.contains("/blobs/") {
                    Reply::status(404)
                } else {
                    reply
                }
            },
            Code::NotFound,
            "fetch config-sha256",
        ),
        (
            "other manifest",
            |path, reply| {
                if path.contains("sha256") {
                    reply.body("{}")
                } else {
                    reply
                }
            },
            Code::FailedPrecondition,
            "fetch manifest-sha256",
        ),
        (
            "no image",
            |_, _| Reply::status(404),
            Code::NotFound,
            "failed to resolve reference",
        ),
    ];
    for (case, change, code, text) in cases {
        let mut content = Content::default();
        manifest(&mut content, &host(), &[b"one"], &["a"]);
        let server =
            Server::start(move |request| change(&request.path, content.reply(request))).await;
        let world = World::new();
        let name = format!("{}/r:a", server.host());
        let error = pull(&name, &world.deps(), opts()).await.unwrap_err();
        assert!(
            error.is(code) && error.to_string().contains(text),
            "{case}: {error}"
        );
        assert!(
            world.names().is_empty() && world.chains().is_empty(),
            "{case}"
        );
        assert!(world.content.ingests().is_empty(), "{case}");
    }
}

#[tokio::test]
async fn layers_that_do_not_unpack_leave_no_snapshot() {
    for (layers, text) in [
        (&[&b"one"[..], b"damaged"], "failed to extract layer sha256"),
        (&[&b"damaged"[..], b"one"], "invalid tar header"),
    ] {
        let mut content = Content::default();
        manifest(&mut content, &host(), layers, &["a"]);
        let server = serve(content).await;
        let world = World::new();
        let name = format!("{}/r:a", server.host());
        let error = pull(&name, &world.deps(), opts()).await.unwrap_err();
        assert!(
            error.is(Code::InvalidArgument) && error.to_string().contains(text),
            "{error}"
        );
        assert_eq!(world.chains().len(), usize::from(layers[0] == b"one"));
        assert!(world.names().is_empty());
    }
    // Without unpacking nobody looks into layers.
    let mut content = Content::default();
    manifest(&mut content, &host(), &[b"damaged"], &["a"]);
    let server = serve(content).await;
    let (world, name) = (World::new(), format!("{}/r:a", server.host()));
    let opts = PullOpts {
        unpack: false,
        ..opts()
    };
    pull(&name, &world.deps(), opts).await.unwrap();
    assert!(world.chains().is_empty());
}

#[tokio::test]
async fn a_wrong_diff_id_is_refused() {
    let mut content = Content::default();
    let layer = content.add(mt::OCI_LAYER, "data", &[]);
    for (ids, text) in [
        (
            format!("{:?}", images::digest_of(b"lie").unwrap().as_str()),
            "wrong diff id",
        ),
        (String::new(), "don't match: 1 != 0"),
    ] {
        let config = format!(r#"{{"os":"linux","rootfs":{{"diff_ids":[{ids}]}}}}"#);
        let config = content.add(mt::OCI_CONFIG, config, &[]);
        let text_of = format!(
            r#"{{"config":{{{}}},"layers":[{{{}}}]}}"#,
            fields(&config),
            fields(&layer)
        );
        content.add(mt::OCI_MANIFEST, text_of, &["a"]);
        let server = serve(content.clone()).await;
        let (world, name) = (World::new(), format!("{}/r:a", server.host()));
        let error = pull(&name, &world.deps(), opts()).await.unwrap_err();
        assert!(
            error.is(Code::InvalidArgument) && error.to_string().contains(text),
            "{error}"
        );
        assert!(world.chains().is_empty() && world.names().is_empty());
    }
}

#[tokio::test]
async fn an_abandoned_pull_removes_its_extraction_and_the_next_goes_on() {
    let mut content = Content::default();
    manifest(&mut content, &host(), &[b"stuck"], &["a"]);
    let server = serve(content).await;
    let (world, name) = (World::new(), format!("{}/r:a", server.host()));
    let deps = world.deps();
    let task = tokio::spawn(async move { pull(&name, &deps, opts()).await });
    while world.applier.applied.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.snapshots.0.lock().unwrap().len(), 1);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    while !world.snapshots.0.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_interrupted_download_is_resumed_and_a_damaged_rest_is_fetched_anew() {
    let mut content = Content::default();
    let mut rest: Vec<u8> = (0..900_000u32).flat_map(u32::to_le_bytes).collect();
    rest[0] = 9;
    let target = manifest(&mut content, &host(), &[&rest], &["a"]);
    let blob = gzip(&rest);
    let (broken, count) = (content.clone(), Arc::new(AtomicUsize::new(0)));
    let (server, world) = (serve(content).await, World::new());
    let n = Arc::clone(&count);
    let bad = Server::start(move |request| {
        let reply = broken.reply(request);
        let layer = reply.body.len() > 100_000;
        let cut = layer.then_some(1_200_000);
        let once = layer && n.fetch_add(1, Ordering::Relaxed) > 0;
        if once {
            Reply::status(503)
        } else {
            Reply { cut, ..reply }
        }
    })
    .await;
    assert!(blob.len() > 1_300_000);
    let name = format!("{}/r:a", bad.host());
    let error = pull(&name, &world.deps(), opts()).await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
    let left = world.content.ingests();
    assert_eq!(left.len(), 1, "{left:?}");
    // The same image elsewhere: the rest is asked for.
    let name = format!("{}/r:a", server.host());
    assert_eq!(
        pull(&name, &world.deps(), opts()).await.unwrap().target,
        target
    );
    let ranges: Vec<_> = server
        .requests()
        .iter()
        .map(|r| r.header("range").to_owned())
        .collect();
    assert!(ranges.contains(&"bytes=1200000-".to_owned()), "{ranges:?}");

    // A rest that is damaged costs one more fetch, not the pull.
    let world = World::new();
    let mut damaged = blob[..1_000_000].to_vec();
    damaged[77] ^= 1;
    let spec = content::IngestSpec {
        reference: left[0].parse().unwrap(),
        total: None,
        expected: None,
    };
    world
        .content
        .ingest(spec)
        .await
        .unwrap()
        .write(damaged.into())
        .await
        .unwrap();
    assert_eq!(
        pull(&name, &world.deps(), opts()).await.unwrap().target,
        target
    );
    assert!(world.content.ingests().is_empty());
}

#[tokio::test]
async fn platforms_are_chosen() {
    let mut content = Content::default();
    let s390x = manifest(&mut content, "s390x", &[b"s"], &[]);
    let arm = manifest(&mut content, "arm64", &[b"a"], &[]);
    index(&mut content, &[(&s390x, "s390x"), (&arm, "arm64")], &["a"]);
    let server = serve(content).await;
    let name = format!("{}/r:a", server.host());
    for (platforms, present) in [
        (
            PlatformSet::Only(vec!["linux/arm64".parse().unwrap()]),
            [false, true],
        ),
        (PlatformSet::All, [true, true]),
    ] {
        let world = World::new();
        let opts = PullOpts {
            platforms,
            ..opts()
        };
        pull(&name, &world.deps(), opts).await.unwrap();
        let got = [&s390x, &arm].map(|d| world.content.has(&d.digest));
        assert_eq!(got, present);
    }
    let platforms = PlatformSet::Only(vec!["linux/ppc64le".parse().unwrap()]);
    let opts = PullOpts {
        platforms,
        ..opts()
    };
    let world = World::new();
    let error = pull(&name, &world.deps(), opts).await.unwrap_err();
    assert!(
        error.is_not_found() && error.to_string().contains("no match for platform"),
        "{error}"
    );
    assert!(world.names().is_empty());
}
