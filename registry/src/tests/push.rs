//! Pushing to a registry that keeps what it gets, and to one that makes it hard.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use types::{Algorithm, Code, Descriptor, Digest, Error, Labels, Result, media_type as mt};

use super::{opts, repository};
use crate::testsuite::{Reply, Request, Server};
use crate::{BlobSource, OnSent, Pushed, RegistryOpts, Repository};

/// A registry that stores: uploads by number, blobs and manifests by path.
#[derive(Default)]
struct Store {
    uploads: BTreeMap<usize, Vec<u8>>,
    files: BTreeMap<String, (String, Bytes)>,
}

/// How the registry behaves.
#[derive(Clone, Copy, Default)]
struct Manners {
    min_chunk: Option<u64>,
    largest_body: Option<usize>,
    may_mount: bool,
    forgets: bool,
}

impl Store {
    fn reply(&mut self, request: &Request, manners: Manners) -> Reply {
        if manners
            .largest_body
            .is_some_and(|most| request.body.len() > most)
        {
            return Reply::status(413);
        }
        let upload = request.path.strip_prefix("/v2/r/blobs/uploads/");
        match (request.method.as_str(), upload) {
            ("POST", Some("")) => self.begin(request, manners),
            ("GET", Some(number)) => self.status(number, 204, manners),
            ("PATCH", Some(number)) => self.patch(number, request, manners),
            ("PUT", Some(number)) => self.finish(number, request),
            ("PUT", None) => {
                let kind = request.header("content-type").to_owned();
                let file = (kind, request.body.clone());
                self.files.insert(request.path.clone(), file);
                Reply::status(201).with("docker-content-digest", sha256(&request.body))
            }
            ("HEAD", None) => match self.files.get(&request.path) {
                Some((_, data)) => Reply::status(200).body(data.clone()),
                None => Reply::status(404),
            },
            _ => Reply::status(405),
        }
    }

    fn begin(&mut self, request: &Request, manners: Manners) -> Reply {
        if manners.may_mount && request.query.contains("from=other%2Frepo") {
            return Reply::status(201);
        }
        let number = self.uploads.len();
        self.uploads.insert(number, Vec::new());
        let reply =
            Reply::status(202).with("location", format!("/v2/r/blobs/uploads/{number}?s=0"));
        match manners.min_chunk {
            Some(least) => reply.with("oci-chunk-min-length", least.to_string()),
            None => reply,
        }
    }

    fn status(&self, number: &str, status: u16, manners: Manners) -> Reply {
        let upload = number
            .parse()
            .ok()
            .and_then(|n: usize| self.uploads.get(&n));
        match upload {
            Some(data) if !manners.forgets => Reply::status(status)
                .with(
                    "location",
                    format!("/v2/r/blobs/uploads/{number}?s={}", data.len()),
                )
                .with("range", format!("0-{}", data.len().saturating_sub(1))),
            _ => Reply::status(404),
        }
    }

    fn patch(&mut self, number: &str, request: &Request, manners: Manners) -> Reply {
        let data = self.uploads.get_mut(&number.parse().unwrap()).unwrap();
        let first = request.header("content-range").split('-').next().unwrap();
        if first.parse() != Ok(data.len()) {
            return Reply::status(416);
        }
        data.extend_from_slice(&request.body);
        self.status(number, 202, manners)
    }

    fn finish(&mut self, number: &str, request: &Request) -> Reply {
        let mut data = self.uploads.remove(&number.parse().unwrap()).unwrap();
        data.extend_from_slice(&request.body);
        let digest = sha256(&data);
        let named = request.query.split("digest=").nth(1).unwrap();
        if named.replace("%3A", ":") != digest {
            return Reply::status(400);
        }
        let file = (String::new(), data.into());
        self.files.insert(format!("/v2/r/blobs/{digest}"), file);
        Reply::status(201).with("docker-content-digest", digest)
    }
}

fn sha256(data: &[u8]) -> String {
    let digest = Digest::from_bytes(Algorithm::Sha256, &Sha256::digest(data)).unwrap();
    digest.to_string()
}

fn describe(media_type: &str, data: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: sha256(data).parse().unwrap(),
        size: data.len() as u64,
        annotations: Labels::new(),
    }
}

fn blob() -> (Descriptor, Bytes) {
    static BLOB: LazyLock<(Descriptor, Bytes)> = LazyLock::new(|| {
        let data: Vec<u8> = (0..900_000u32).flat_map(u32::to_le_bytes).collect();
        (describe(mt::OCI_LAYER, &data), data.into())
    });
    BLOB.clone()
}

async fn registry(manners: Manners) -> (Server, Arc<Mutex<Store>>) {
    let store = Arc::new(Mutex::new(Store::default()));
    let kept = Arc::clone(&store);
    let server = Server::start(move |r| kept.lock().unwrap().reply(r, manners)).await;
    (server, store)
}

fn quiet() -> OnSent {
    Arc::new(|_| {})
}

async fn push(repository: &Repository, from: &[String]) -> Result<Pushed> {
    let (descriptor, data) = blob();
    repository
        .push_blob(&descriptor, Arc::new(data), from, quiet())
        .await
}

fn methods(server: &Server) -> Vec<String> {
    server.requests().into_iter().map(|r| r.method).collect()
}

#[tokio::test]
async fn a_blob_is_sent_once_and_then_is_there() {
    let (server, store) = registry(Manners::default()).await;
    let repository = repository(&server, "", opts());
    let (descriptor, data) = blob();
    assert!(!repository.exists(&descriptor).await.unwrap());
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let on: OnSent = Arc::new(move |sent| heard.lock().unwrap().push(sent));
    let pushed = repository
        .push_blob(&descriptor, Arc::new(data.clone()), &[], on)
        .await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    let path = format!("/v2/r/blobs/{}", descriptor.digest);
    assert_eq!(store.lock().unwrap().files[&path].1, data);
    assert_eq!(methods(&server), ["HEAD", "HEAD", "POST", "PUT"]);
    let told = told.lock().unwrap().clone();
    assert!(told.is_sorted() && told.len() > 10, "{told:?}");
    assert_eq!(told.last(), Some(&descriptor.size));
    assert!(repository.exists(&descriptor).await.unwrap());
    assert_eq!(push(&repository, &[]).await.unwrap(), Pushed::Existed);
    assert_eq!(methods(&server).len(), 6);
    // There, but not the same.
    let longer = Descriptor {
        size: descriptor.size + 1,
        ..descriptor
    };
    let error = repository.exists(&longer).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
}

#[tokio::test]
async fn an_empty_blob_is_sent_too() {
    let (server, store) = registry(Manners::default()).await;
    let descriptor = describe(mt::OCI_LAYER, b"");
    let pushed = repository(&server, "", opts())
        .push_blob(&descriptor, Arc::new(Bytes::new()), &[], quiet())
        .await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    assert_eq!(store.lock().unwrap().files.len(), 1);
}

#[tokio::test]
async fn a_registry_gets_chunks_when_it_wants_them() {
    let data: Vec<u8> = vec![7; (9 << 20) + 5];
    let descriptor = describe(mt::OCI_LAYER, &data);
    let data = Bytes::from(data);
    let asks = Manners {
        min_chunk: Some(1),
        ..Manners::default()
    };
    let refuses = Manners {
        largest_body: Some(8 << 20),
        ..Manners::default()
    };
    for (manners, want) in [
        (asks, vec!["HEAD", "POST", "PATCH", "PATCH", "PUT"]),
        (
            refuses,
            vec!["HEAD", "POST", "PUT", "POST", "PATCH", "PATCH", "PUT"],
        ),
    ] {
        let (server, store) = registry(manners).await;
        let pushed = repository(&server, "", opts())
            .push_blob(&descriptor, Arc::new(data.clone()), &[], quiet())
            .await;
        assert_eq!(pushed.unwrap(), Pushed::Uploaded);
        assert_eq!(methods(&server), want);
        let path = format!("/v2/r/blobs/{}", descriptor.digest);
        assert_eq!(store.lock().unwrap().files[&path].1, data);
    }
}

/// A registry whose connection breaks in the middle of the first PUT, and that keeps what came.
async fn breaking(manners: Manners) -> (Server, Arc<Mutex<Store>>) {
    let store = Arc::new(Mutex::new(Store::default()));
    let (kept, cut) = (Arc::clone(&store), Arc::clone(&store));
    let broken = std::sync::atomic::AtomicBool::new(false);
    let cut = move |request: &Request| {
        let long = request.method == "PUT" && request.path.contains("uploads");
        if !long || broken.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return None;
        }
        let part = blob().1.slice(..1_000_000);
        let number = request.path.rsplit('/').next().unwrap().parse().unwrap();
        cut.lock().unwrap().uploads.insert(number, part.to_vec());
        Some(1_000_000)
    };
    let handler = move |r: &Request| kept.lock().unwrap().reply(r, manners);
    (Server::start_hanging_up(cut, handler).await, store)
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_the_registry_has_got() {
    let (server, store) = breaking(Manners::default()).await;
    let pushed = push(&repository(&server, "", opts()), &[]).await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    let want = ["HEAD", "POST", "PUT", "GET", "PATCH", "PUT"];
    assert_eq!(methods(&server), want);
    let requests = server.requests();
    let range = format!("1000000-{}", blob().0.size - 1);
    assert_eq!(requests[4].header("content-range"), range);
    assert_eq!(store.lock().unwrap().files.len(), 1);
}

#[tokio::test]
async fn an_upload_that_the_registry_has_forgotten_begins_anew() {
    let manners = Manners {
        forgets: true,
        ..Manners::default()
    };
    let (server, store) = breaking(manners).await;
    let pushed = push(&repository(&server, "", opts()), &[]).await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    assert_eq!(
        methods(&server),
        ["HEAD", "POST", "PUT", "GET", "POST", "PUT"]
    );
    assert_eq!(store.lock().unwrap().files.len(), 1);
}

#[tokio::test]
async fn a_blob_is_mounted_where_the_registry_lets_us() {
    let candidates = ["other/repo".to_owned()];
    for (may_mount, want, requests) in [
        (
            true,
            Pushed::Mounted("other/repo".into()),
            vec!["HEAD", "POST"],
        ),
        (false, Pushed::Uploaded, vec!["HEAD", "POST", "PUT"]),
    ] {
        let manners = Manners {
            may_mount,
            ..Manners::default()
        };
        let (server, _store) = registry(manners).await;
        let repository = repository(&server, "", opts());
        assert_eq!(push(&repository, &candidates).await.unwrap(), want);
        assert_eq!(methods(&server), requests);
        let query = server.requests()[1].query.clone();
        let digest = blob().0.digest.to_string().replace(':', "%3A");
        assert_eq!(query, format!("mount={digest}&from=other%2Frepo"));
    }
}

#[tokio::test]
async fn a_mount_that_is_forbidden_is_an_upload() {
    let store = Mutex::new(Store::default());
    let server = Server::start(move |request| {
        if request.query.contains("mount") {
            return Reply::status(403);
        }
        store.lock().unwrap().reply(request, Manners::default())
    })
    .await;
    let repository = repository(&server, "", opts());
    let candidates = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
    assert_eq!(
        push(&repository, &candidates).await.unwrap(),
        Pushed::Uploaded
    );
    assert_eq!(methods(&server), ["HEAD", "POST", "POST", "POST", "PUT"]);
}

#[tokio::test]
async fn manifests_are_put_under_tag_or_digest() {
    let (server, store) = registry(Manners::default()).await;
    let repository = repository(&server, "", opts());
    let bytes = Bytes::from_static(b"{}");
    let descriptor = describe(mt::OCI_MANIFEST, &bytes);
    for (tag, path) in [
        (Some("v1"), "/v2/r/manifests/v1".to_owned()),
        (None, format!("/v2/r/manifests/{}", descriptor.digest)),
    ] {
        repository
            .push_manifest(&descriptor, bytes.clone(), tag)
            .await
            .unwrap();
        let want = (mt::OCI_MANIFEST.to_owned(), bytes.clone());
        assert_eq!(store.lock().unwrap().files[&path], want);
    }
    assert!(repository.exists(&descriptor).await.unwrap());
    for (bytes, tag) in [
        ("{ }", None),
        ("[]", None),
        ("{}", Some("../x")),
        ("{}", Some("")),
    ] {
        let error = repository
            .push_manifest(&descriptor, Bytes::from(bytes), tag)
            .await
            .unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
    }
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn a_registry_that_stores_something_else_is_told_of() {
    let other = sha256(b"other");
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" => Reply::status(404),
        "POST" => Reply::status(202).with("location", "/upload"),
        _ => Reply::status(201).with("docker-content-digest", other.clone()),
    })
    .await;
    let repository = repository(&server, "", opts());
    let error = push(&repository, &[]).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    let text = error.to_string();
    for part in [
        server.host(),
        blob().0.digest.as_str(),
        "got digest",
        "push blob",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let descriptor = describe(mt::OCI_MANIFEST, b"{}");
    let error = repository
        .push_manifest(&descriptor, Bytes::from_static(b"{}"), None)
        .await
        .unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
}

/// A source that fails in the middle.
struct Torn;

#[async_trait::async_trait]
impl BlobSource for Torn {
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes> {
        if offset > 500_000 {
            return Err(Error::data_loss("torn"));
        }
        Ok(vec![0; max.min(100_000)].into())
    }
}

#[tokio::test]
async fn the_error_of_the_source_ends_the_push() {
    let (server, _store) = registry(Manners::default()).await;
    let error = repository(&server, "", opts())
        .push_blob(&blob().0, Arc::new(Torn), &[], quiet())
        .await
        .unwrap_err();
    assert!(error.is(Code::DataLoss), "{error}");
    // It did not ask how far it had come, as after a failure of the registry.
    assert_eq!(methods(&server)[..2], ["HEAD", "POST"]);
    assert!(!methods(&server).contains(&"GET".to_owned()));
}

#[tokio::test]
async fn the_token_for_a_push_allows_it_and_no_more_travels() {
    let tokens = Server::start(|_| Reply::status(200).body(r#"{"token":"t"}"#)).await;
    let realm = format!("http://{}/token", tokens.host());
    let storage = Server::start(|_| Reply::status(201)).await;
    let elsewhere = format!("http://{}/upload", storage.host());
    let server = Server::start(move |request| {
        if request.header("authorization") != "Bearer t" {
            let challenge = format!(r#"Bearer realm="{realm}",service="s""#);
            return Reply::status(401).with("www-authenticate", challenge);
        }
        match request.method.as_str() {
            "HEAD" => Reply::status(404),
            _ => Reply::status(202).with("location", elsewhere.clone()),
        }
    })
    .await;
    let pushed = push(&repository(&server, "", opts()), &["o".to_owned()]).await;
    assert_eq!(pushed.unwrap(), Pushed::Uploaded);
    let asked: Vec<String> = tokens.requests().into_iter().map(|r| r.query).collect();
    let own = "scope=repository%3Ar%3Apull%2Cpush";
    assert_eq!(
        asked,
        [
            format!("service=s&{own}"),
            format!("service=s&scope=repository%3Ao%3Apull&{own}"),
        ]
    );
    let seen = storage.requests();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), "");
    assert_eq!(seen[0].body.len() as u64, blob().0.size);
}

#[tokio::test]
async fn a_registry_that_does_not_take_the_bytes_is_given_up() {
    // It reads the head of the PUT and then nothing more: `0` bytes, and the connection stays.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deaf = listener.local_addr().unwrap();
    let server = Server::start(move |request| match request.method.as_str() {
        "HEAD" => Reply::status(404),
        _ => Reply::status(202).with("location", format!("http://{deaf}/upload")),
    })
    .await;
    let mut options: RegistryOpts = super::impatient();
    options.limits.attempts = 2;
    let data = Bytes::from(vec![1; 16 << 20]);
    let descriptor = describe(mt::OCI_LAYER, &data);
    let error = repository(&server, "", options)
        .push_blob(&descriptor, Arc::new(data), &[], quiet())
        .await
        .unwrap_err();
    assert!(error.is(Code::Unavailable), "{error}");
    assert!(error.to_string().contains("in time"), "{error}");
    drop(listener);
}
