//! Pushes of images in memory to a registry that stores.

use std::collections::BTreeMap;
use std::sync::Mutex;

use images::testsuite::{Store, image};
use registry::testsuite::{Reply, Request, Server};
use types::{Code, Fields, Platform, media_type as mt};

use super::*;

/// What the registry has, by path; mounts work from `other/repo`.
#[derive(Default)]
struct Kept {
    files: BTreeMap<String, Bytes>,
    uploads: Vec<Vec<u8>>,
    puts: Vec<String>,
}

impl Kept {
    fn reply(&mut self, request: &Request) -> Reply {
        let upload = request.path.strip_prefix("/v2/r/blobs/uploads/");
        match (request.method.as_str(), upload) {
            ("POST", Some("")) => self.begin(request),
            ("PATCH" | "PUT", Some(number)) => {
                let at: usize = number.parse().unwrap();
                self.uploads[at].extend_from_slice(&request.body);
                let data = Bytes::from(self.uploads[at].clone());
                if request.method == "PATCH" {
                    let range = format!("0-{}", data.len().saturating_sub(1));
                    return Reply::status(202)
                        .with("location", request.path.as_str())
                        .with("range", range);
                }
                let digest = images::digest_of(&data).unwrap();
                self.files.insert(format!("/v2/r/blobs/{digest}"), data);
                Reply::status(201).with("docker-content-digest", digest.as_str())
            }
            ("PUT", None) => {
                let data = request.body.clone();
                let digest = images::digest_of(&data).unwrap();
                self.puts.push(request.path.clone());
                self.files.insert(request.path.clone(), data.clone());
                self.files.insert(format!("/v2/r/manifests/{digest}"), data);
                Reply::status(201).with("docker-content-digest", digest.as_str())
            }
            ("HEAD", None) => match self.files.get(&request.path) {
                Some(data) => Reply::status(200).body(data.clone()),
                None => Reply::status(404),
            },
            _ => Reply::status(405),
        }
    }

    fn begin(&mut self, request: &Request) -> Reply {
        if request.query.contains("from=other%2Frepo") {
            return Reply::status(201);
        }
        self.uploads.push(Vec::new());
        let number = self.uploads.len() - 1;
        Reply::status(202).with("location", format!("/v2/r/blobs/uploads/{number}"))
    }
}

async fn serve() -> (Server, Arc<Mutex<Kept>>) {
    let kept = Arc::new(Mutex::new(Kept::default()));
    let shared = Arc::clone(&kept);
    let server = Server::start(move |request| shared.lock().unwrap().reply(request)).await;
    (server, kept)
}

fn opts() -> PushOpts {
    PushOpts {
        registry: RegistryOpts {
            plain_http: true,
            ..RegistryOpts::default()
        },
        ..PushOpts::default()
    }
}

fn shared(store: &Store) -> Arc<dyn ContentStore> {
    Arc::new(store.clone())
}

#[tokio::test]
async fn children_go_before_parents_and_the_name_last() {
    let (server, kept) = serve().await;
    let store = Store::default();
    let one = image(&store, "linux/amd64", &[b"a", b"shared"]).await;
    let two = image(&store, "linux/arm64", &[b"shared", b"b"]).await;
    let inner = store.index(&[(&two, Some("linux/arm64"))]).await;
    // The inner index names a manifest that the outer one names, too.
    let entries = [(&two, Some("linux/arm64")), (&inner, None), (&one, None)];
    let root = store.index(&entries).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let progress = OnProgress::new(move |p| told.lock().unwrap().push(p.clone()));
    let opts = PushOpts { progress, ..opts() };
    let name = format!("{}/r:v1", server.host());
    push(&name, &root, &shared(&store), opts).await.unwrap();
    let manifest = images::read_manifest(&store, &one).await.unwrap();
    let kept = kept.lock().unwrap();
    let at = |d: &Descriptor| {
        let path = format!("/v2/r/manifests/{}", d.digest);
        kept.puts.iter().position(|put| *put == path).unwrap()
    };
    assert!(at(&two) < at(&inner));
    assert_eq!(kept.puts.last().unwrap(), "/v2/r/manifests/v1");
    assert_eq!(kept.puts.len(), 4);
    for layer in &manifest.layers {
        assert!(
            kept.files
                .contains_key(&format!("/v2/r/blobs/{}", layer.digest))
        );
    }
    // Two configs, three layers, each once.
    assert_eq!(kept.uploads.len(), 5);
    let seen = seen.lock().unwrap();
    let of_root: Vec<_> = seen
        .iter()
        .filter(|p| p.reference == images::ref_key(&root))
        .map(|p| p.status.word())
        .collect();
    assert_eq!(of_root, ["waiting", "uploading", "done"]);
}

#[tokio::test]
async fn what_is_there_is_not_sent_again() {
    let (server, kept) = serve().await;
    let store = Store::default();
    let root = image(&store, "linux/amd64", &[b"a"]).await;
    let name = format!("{}/r:v1", server.host());
    push(&name, &root, &shared(&store), opts()).await.unwrap();
    let name = format!("{}/r:v2", server.host());
    push(&name, &root, &shared(&store), opts()).await.unwrap();
    let kept = kept.lock().unwrap();
    assert_eq!(kept.uploads.len(), 2);
    assert_eq!(kept.puts, ["/v2/r/manifests/v1", "/v2/r/manifests/v2"]);
}

#[tokio::test]
async fn blobs_that_are_not_here_are_mounted_or_missed() {
    let (server, kept) = serve().await;
    let store = Store::default();
    let root = image(&store, "linux/amd64", &[b"a"]).await;
    let layer = images::read_manifest(&store, &root).await.unwrap().layers[0].clone();
    store.delete(&layer.digest).await.unwrap();
    let name = format!("{}/r:v1", server.host());
    let error = push(&name, &root, &shared(&store), opts())
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains(layer.digest.as_str()), "{error}");
    assert!(kept.lock().unwrap().puts.is_empty());
    let key = format!("{}.127.0.0.1", label::DISTRIBUTION_SOURCE);
    let labels = Labels::new().with(&key, "far/away,other/repo,r");
    let fields = Fields::new(vec![format!("labels.{key}")]);
    store.update(&root.digest, labels, &fields).await.unwrap();
    push(&name, &root, &shared(&store), opts()).await.unwrap();
    assert_eq!(kept.lock().unwrap().puts.len(), 1);
}

#[tokio::test]
async fn platforms_choose_and_digests_bind() {
    let (server, kept) = serve().await;
    let store = Store::default();
    let one = image(&store, "linux/amd64", &[b"a"]).await;
    let two = image(&store, "linux/arm64", &[b"b"]).await;
    let entries = [(&one, Some("linux/amd64")), (&two, Some("linux/arm64"))];
    let root = store.index(&entries).await;
    let only = |platform: &str| PushOpts {
        platforms: PlatformSet::Only(vec![platform.parse::<Platform>().unwrap()]),
        ..opts()
    };
    let name = format!("{}/r:v1", server.host());
    push(&name, &root, &shared(&store), only("linux/arm64"))
        .await
        .unwrap();
    {
        let kept = kept.lock().unwrap();
        assert_eq!(kept.puts, ["/v2/r/manifests/v1"]);
        let data = &kept.files["/v2/r/manifests/v1"];
        assert_eq!(images::digest_of(data).unwrap(), two.digest);
    }
    let none = push(&name, &root, &shared(&store), only("linux/s390x")).await;
    assert!(none.unwrap_err().is_not_found());
    let bound = format!("{}/r@{}", server.host(), one.digest);
    let error = push(&bound, &root, &shared(&store), opts())
        .await
        .unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    push(&bound, &one, &shared(&store), opts()).await.unwrap();
}

#[tokio::test]
async fn foreign_layers_stay_unless_they_are_asked_for() {
    let store = Store::default();
    let layer = store
        .put(
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            b"foreign",
        )
        .await;
    let config = store.put(mt::OCI_CONFIG, b"{}").await;
    let fields = images::testsuite::fields_of;
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{{{}}}]}}"#,
        fields(&config),
        fields(&layer)
    );
    let root = store.put(mt::OCI_MANIFEST, text.as_bytes()).await;
    for (allowed, want) in [(false, 1), (true, 2)] {
        let (server, kept) = serve().await;
        let name = format!("{}/r:v1", server.host());
        let opts = PushOpts {
            allow_non_distributable: allowed,
            ..opts()
        };
        push(&name, &root, &shared(&store), opts).await.unwrap();
        assert_eq!(kept.lock().unwrap().uploads.len(), want);
    }
}

#[test]
fn the_nearest_repositories_are_asked_first() {
    let labels = Labels::new().with("s", "x/y,a/b/c,a/z,,a/b/d");
    assert_eq!(candidates(&labels, "s", "a/b/d"), ["a/b/c", "a/z", "x/y"]);
    assert!(candidates(&labels, "t", "a").is_empty());
}

#[tokio::test]
async fn only_what_the_registry_lacks_waits_for_a_place() {
    let (server, _) = serve().await;
    let store = Store::default();
    let there = image(&store, "linux/amd64", &[b"a"]).await;
    let more = image(&store, "linux/amd64", &[b"a", b"b"]).await;
    let name = format!("{}/r:v1", server.host());
    push(&name, &there, &shared(&store), opts()).await.unwrap();
    let places = Places::new(1);
    let with = || PushOpts {
        places: Some(places.clone()),
        ..opts()
    };
    let place = places.find().unwrap();
    push(&name, &there, &shared(&store), with()).await.unwrap();
    let content = shared(&store);
    let mut pushing = std::pin::pin!(push(&name, &more, &content, with()));
    let long = std::time::Duration::from_millis(300);
    let waited = tokio::time::timeout(long, &mut pushing).await;
    assert!(waited.is_err(), "it has a place");
    drop(place);
    pushing.await.unwrap();
    assert!(places.find().is_some(), "the place is not given back");
}
