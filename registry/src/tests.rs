//! Pulling from a registry on the loopback that behaves, and from one that does not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use types::{Code, Descriptor, Digest, Result, media_type as mt};

use crate::testsuite::{Content, Reply, Request, Server};
use crate::{Limits, RegistryOpts, Repository};

mod auth;
mod credentials;
mod faults;
mod listing;
mod mirrors;
mod proxied;
mod push;
mod secure;
mod watch;
mod wide;

/// Nothing here waits for a deadline, save where a server is stuck on purpose.
fn opts() -> RegistryOpts {
    let limits = Limits {
        attempts: 3,
        backoff: Duration::from_millis(1),
        ..Limits::default()
    };
    RegistryOpts {
        plain_http: true,
        limits,
        ..RegistryOpts::default()
    }
}

/// Each test with what it knows about hosts: a port may have been another server before. Who is to answer
/// has time for it, so that nobody else is asked because the machine is busy.
fn with_hosts(text: &str, dir: &std::path::Path, host: &str) -> RegistryOpts {
    let of_host = dir.join(host);
    std::fs::create_dir_all(&of_host).unwrap();
    std::fs::write(of_host.join("hosts.toml"), text).unwrap();
    let mut opts = opts();
    opts.limits.hedge = Duration::from_secs(10);
    RegistryOpts {
        plain_http: false,
        host_dirs: vec![dir.to_owned()],
        health: crate::Health::new(),
        ..opts
    }
}

fn impatient() -> RegistryOpts {
    let mut opts = opts();
    opts.limits.connect = Duration::from_millis(150);
    opts.limits.answer = Duration::from_millis(150);
    opts.limits.read = Duration::from_millis(300);
    opts
}

fn repository(server: &Server, object: &str, opts: RegistryOpts) -> Repository {
    let reference = format!("{}/r{object}", server.host()).parse().unwrap();
    Repository::new(&reference, opts).unwrap()
}

async fn read(repository: &Repository, descriptor: &Descriptor, from: u64) -> Result<Vec<u8>> {
    let mut reader = repository.open(descriptor, from)?;
    let mut all = Vec::new();
    while let Some(data) = reader.chunk().await? {
        all.extend_from_slice(&data);
    }
    Ok(all)
}

fn image() -> (Content, Descriptor, Descriptor, Vec<u8>) {
    let mut content = Content::default();
    let data: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let layer = content.add(mt::OCI_LAYER, data.clone(), &[]);
    let manifest = content.add(mt::OCI_MANIFEST, "{}", &["latest"]);
    (content, manifest, layer, data)
}

#[tokio::test]
async fn tags_and_digests_resolve_and_blobs_come_in() {
    let (content, manifest, layer, data) = image();
    let server = Server::start(move |request| content.reply(request)).await;
    let pinned = format!("@{}", manifest.digest);
    for object in [":latest", pinned.as_str()] {
        let got = repository(&server, object, opts()).resolve().await.unwrap();
        assert_eq!(got, manifest);
    }
    let repository = repository(&server, "", opts());
    assert_eq!(read(&repository, &manifest, 0).await.unwrap(), b"{}");
    assert_eq!(read(&repository, &layer, 0).await.unwrap(), data);
    assert_eq!(
        read(&repository, &layer, 700_001).await.unwrap(),
        data[700_001..]
    );
    assert!(
        read(&repository, &layer, layer.size)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        read(&repository, &layer, layer.size + 1)
            .await
            .unwrap_err()
            .is(Code::OutOfRange)
    );
    assert!(
        server
            .requests()
            .iter()
            .all(|r| r.header("authorization").is_empty())
    );
    assert!(
        server.requests()[0]
            .header("accept")
            .starts_with(mt::OCI_INDEX)
    );
}

#[tokio::test]
async fn without_a_digest_header_the_manifest_is_hashed() {
    let (content, manifest, ..) = image();
    let server = Server::start(move |request| {
        let mut reply = content.reply(request);
        reply
            .headers
            .retain(|(name, _)| name != "docker-content-digest");
        reply
    })
    .await;
    assert_eq!(
        repository(&server, ":latest", opts())
            .resolve()
            .await
            .unwrap(),
        manifest
    );
    let (content, ..) = image();
    let headless = Server::start(move |request| match request.method.as_str() {
        "HEAD" => Reply::status(405),
        _ => content.reply(request),
    })
    .await;
    assert_eq!(
        repository(&headless, ":latest", opts())
            .resolve()
            .await
            .unwrap(),
        manifest
    );
    let wrong = format!("@sha256:{}", "0".repeat(64));
    let error = repository(&server, &wrong, opts())
        .resolve()
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn a_lying_registry_is_caught_at_once() {
    let cases: [(&str, &str, Code); 4] = [
        ("docker-content-digest", "sha256:1", Code::InvalidArgument),
        ("content-type", "text/html", Code::NotFound),
        (
            "content-type",
            "application/vnd.docker.distribution.manifest.v1+json",
            Code::NotImplemented,
        ),
        ("content-length", "4194305", Code::ResourceExhausted),
    ];
    for (name, value, code) in cases {
        let (content, ..) = image();
        let server = Server::start(move |request| {
            let mut reply = content.reply(request);
            reply.headers.retain(|(header, _)| header != name);
            reply.with(name, value)
        })
        .await;
        let error = repository(&server, ":latest", opts())
            .resolve()
            .await
            .unwrap_err();
        assert!(error.is(code), "{name}: {value}: {error}");
    }
    // Another manifest than the one that was asked for.
    let (content, manifest, ..) = image();
    let other = format!("sha256:{}", "1".repeat(64));
    let served = other.clone();
    let server = Server::start(move |request| {
        let latest = Request {
            path: "/v2/r/manifests/latest".into(),
            ..request.clone()
        };
        if request.path.ends_with(&served) {
            content.reply(&latest)
        } else {
            Reply::status(404)
        }
    })
    .await;
    let error = repository(&server, &format!("@{other}"), opts())
        .resolve()
        .await
        .unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(
        error.to_string().contains(manifest.digest.as_str()),
        "{error}"
    );
}

#[tokio::test]
async fn statuses_become_classes() {
    for (status, code, tries) in [
        (404, Code::NotFound, 1),
        (401, Code::Unauthenticated, 1),
        (403, Code::PermissionDenied, 1),
        (400, Code::InvalidArgument, 1),
        (429, Code::Unavailable, 3),
        (503, Code::Unavailable, 3),
    ] {
        let body = r#"{"errors":[{"code":"X","message":"said so"}]}"#;
        let server = Server::start(move |_| Reply::status(status).body(body)).await;
        let descriptor = image().2;
        let error = read(&repository(&server, "", opts()), &descriptor, 0)
            .await
            .unwrap_err();
        assert!(error.is(code), "{status}: {error}");
        assert!(error.to_string().contains("X: said so"), "{error}");
        assert_eq!(server.requests().len(), tries, "{status}");
    }
    let error = repository_of("127.0.0.1:1/r:x")
        .resolve()
        .await
        .unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
    for bad in [
        "127.0.0.1:1/r",
        "127.0.0.1:1/r:.x",
        "127.0.0.1:1/r@sha256:x",
    ] {
        assert!(
            repository_of(bad)
                .resolve()
                .await
                .unwrap_err()
                .is(Code::InvalidArgument),
            "{bad}"
        );
    }
}

fn repository_of(reference: &str) -> Repository {
    Repository::new(&reference.parse().unwrap(), opts()).unwrap()
}

#[tokio::test]
async fn transient_failures_pass() {
    let (content, manifest, ..) = image();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::status(500),
        1 => Reply::status(429).with("retry-after", "0"),
        _ => content.reply(request),
    })
    .await;
    assert_eq!(
        repository(&server, ":latest", opts())
            .resolve()
            .await
            .unwrap(),
        manifest
    );
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn broken_connections_are_resumed_where_they_broke() {
    let (content, _, layer, data) = image();
    let server = Server::start(move |request| {
        let mut reply = content.reply(request);
        reply.cut = Some(reply.body.len().min(150_000));
        reply
    })
    .await;
    assert_eq!(
        read(&repository(&server, "", opts()), &layer, 0)
            .await
            .unwrap(),
        data
    );
    let ranges: Vec<String> = server
        .requests()
        .iter()
        .map(|r| r.header("range").to_owned())
        .collect();
    let want = ["", "bytes=150000-", "bytes=300000-", "bytes=450000-"];
    assert_eq!(ranges[..4], want);
    assert_eq!(ranges.len(), 6);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start_again() {
    let (content, _, layer, data) = image();
    let count = AtomicUsize::new(0);
    let server = Server::start(move |request| {
        let mut whole = request.clone();
        whole.headers.remove("range");
        let mut reply = content.reply(&whole);
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            reply.cut = Some(300_000);
        }
        reply
    })
    .await;
    assert_eq!(
        read(&repository(&server, "", opts()), &layer, 5)
            .await
            .unwrap(),
        data[5..]
    );
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn wrong_lengths_are_refused() {
    let (content, _, layer, _) = image();
    let shorter = Descriptor {
        size: layer.size - 1,
        ..layer.clone()
    };
    let longer = Descriptor {
        size: layer.size + 1,
        ..layer.clone()
    };
    let plain = content.clone();
    let server = Server::start(move |request| plain.reply(request)).await;
    for wrong in [&shorter, &longer] {
        let error = read(&repository(&server, "", opts()), wrong, 0)
            .await
            .unwrap_err();
        assert!(error.is(Code::FailedPrecondition), "{error}");
    }
    assert_eq!(server.requests().len(), 2);
    // Without a length the surplus is noticed as it comes.
    let server = Server::start(move |request| {
        let reply = content.reply(request);
        let mut body = format!("{:x}\r\n", reply.body.len()).into_bytes();
        body.extend_from_slice(&reply.body);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        Reply::status(200)
            .with("transfer-encoding", "chunked")
            .body(body)
    })
    .await;
    let error = read(&repository(&server, "", opts()), &shorter, 0)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
    let error = read(&repository(&server, "", opts()), &longer, 0)
        .await
        .unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
}

#[tokio::test]
async fn stuck_servers_are_given_up() {
    let (content, _, layer, _) = image();
    for stall in [None, Some(0), Some(1000)] {
        let content = content.clone();
        let server = Server::start(move |request| match stall {
            None => Reply::status(0),
            stall => Reply {
                stall,
                ..content.reply(request)
            },
        })
        .await;
        let error = read(&repository(&server, "", impatient()), &layer, 0)
            .await
            .unwrap_err();
        assert!(error.is(Code::Unavailable), "{error}");
        assert!(error.to_string().contains("in time"), "{error}");
    }
}

#[test]
fn digests_of_the_suite_are_sha256() {
    let descriptor = Content::default().add(mt::OCI_LAYER, "", &[]);
    let empty: Digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        .parse()
        .unwrap();
    assert_eq!((descriptor.digest, descriptor.size), (empty, 0));
}
