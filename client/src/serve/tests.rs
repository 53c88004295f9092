//! What is ours over a socket: the suites, and what comes of a server that hangs or dies.

use std::path::Path;
use std::time::{Duration, Instant};

use ::content::testsuite as contents;
use snapshotters::{Overlay, OverlayConfig, testsuite};
use tokio::sync::oneshot;
use types::{Code, Filter, Labels, SnapshotInfo};

use super::*;
use crate::remote::RemoteSnapshotter;
use crate::{Limits, Proxy};

/// A deadline that a call over a socket is not near to.
const FAR: Duration = Duration::from_secs(60);

/// An overlay snapshotter that is served at `socket`, until the sender is dropped.
fn served(root: &Path, socket: &Path) -> oneshot::Sender<()> {
    let overlay = Overlay::open(root, OverlayConfig::default()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let (running, stop) = oneshot::channel();
    let all = BTreeMap::from([("mine".to_owned(), Arc::new(overlay) as Arc<dyn Snapshotter>)]);
    tokio::spawn(snapshotters(listener, all, async {
        let _stopped = stop.await;
    }));
    running
}

fn proxied(socket: &Path, name: &str, limit: Duration) -> RemoteSnapshotter {
    let limits = Limits {
        quick: limit,
        whole: limit,
    };
    let proxy = Proxy::new(socket.to_str().unwrap(), limits).unwrap();
    RemoteSnapshotter::new(proxy.caller(), name).with_rebase(true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_overlay_conforms() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("s");
    let _running = served(&temp.path().join("root"), &socket);
    let sn: Arc<dyn Snapshotter> = Arc::new(proxied(&socket, "mine", FAR));
    testsuite::all(&sn).await;
}

#[tokio::test]
async fn another_name_is_not_served() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("s");
    let _running = served(&temp.path().join("root"), &socket);
    let sn = proxied(&socket, "other", FAR);
    let error = sn.list(&Filter::default()).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
}

#[tokio::test]
async fn every_call_of_a_server_that_hangs_comes_to_an_end() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("s");
    // Connections are taken by the kernel, and nobody reads them.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let sn = proxied(&socket, "mine", Duration::from_millis(100));
    let (key, started) = ("k".parse().unwrap(), Instant::now());
    let remote = Labels::new().with("containerd.io/snapshot.ref", "r");
    let info = SnapshotInfo {
        kind: types::SnapshotKind::Active,
        name: "k".parse().unwrap(),
        parent: None,
        labels: Labels::new(),
        created_at: std::time::UNIX_EPOCH,
        updated_at: std::time::UNIX_EPOCH,
    };
    let failed = [
        sn.stat(&key).await.map(drop),
        sn.update(info, &types::Fields::default()).await.map(drop),
        sn.usage(&key).await.map(drop),
        sn.mounts(&key).await.map(drop),
        sn.prepare(&key, None, Labels::new()).await.map(drop),
        sn.prepare(&key, None, remote).await.map(drop),
        sn.view(&key, None, Labels::new()).await.map(drop),
        sn.commit(&key, &key, Labels::new()).await,
        sn.rebase(&key, &key, &key, Labels::new()).await,
        sn.remove(&key).await,
        sn.list(&Filter::default()).await.map(drop),
        sn.cleanup().await,
    ];
    for (n, done) in failed.into_iter().enumerate() {
        let error = done.unwrap_err();
        assert!(error.is(Code::DeadlineExceeded), "call {n}: {error:?}");
    }
    assert!(started.elapsed() < FAR);
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_again() {
    let temp = tempfile::tempdir().unwrap();
    let (root, socket) = (temp.path().join("root"), temp.path().join("s"));
    // Before there is any.
    let sn = proxied(&socket, "mine", FAR);
    let error = sn.list(&Filter::default()).await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error:?}");
    for _ in 0..2 {
        let (stop, stopped) = oneshot::channel();
        let overlay = Overlay::open(&root, OverlayConfig::default()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let overlay: Arc<dyn Snapshotter> = Arc::new(overlay);
        let all = BTreeMap::from([("mine".to_owned(), overlay)]);
        let server = tokio::spawn(snapshotters(listener, all, async {
            let _stopped = stopped.await;
        }));
        sn.list(&Filter::default()).await.unwrap();
        let _stopping = stop.send(());
        server.await.unwrap();
        std::fs::remove_file(&socket).unwrap();
        let error = sn.list(&Filter::default()).await.unwrap_err();
        assert!(error.is(Code::Unavailable), "{error:?}");
    }
}

/// What serves at a socket ends with the sender.
fn caller(socket: &Path) -> crate::Caller {
    let limits = Limits {
        quick: FAR,
        whole: FAR,
    };
    Proxy::new(socket.to_str().unwrap(), limits)
        .unwrap()
        .caller()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_content_store_conforms() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("s");
    let store = ::content::Local::open(temp.path().join("root")).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let (_running, stop) = oneshot::channel::<()>();
    tokio::spawn(content(listener, Arc::new(store), async {
        let _stopped = stop.await;
    }));
    let store = crate::remote::RemoteContent::new(caller(&socket));
    // All of the suite but what needs the same machine: a blob that outlives its name, and a writer that is
    // gone at once.
    contents::a_committed_blob_reads_back(&store).await;
    contents::small_and_large_writes_arrive_in_order(&store).await;
    contents::a_mismatch_is_refused_and_the_ingest_stays(&store).await;
    contents::a_known_blob_is_refused_at_open_and_at_commit(&store).await;
    contents::truncation_starts_anew(&store).await;
    contents::an_aborted_ingest_is_gone(&store).await;
    contents::other_algorithms_commit(&store).await;
    contents::lists_are_ordered_and_filtered(&store).await;
    contents::an_empty_blob_is_a_blob(&store).await;
    contents::labels(&store, contents::Caps::default()).await;
    resumes(&store).await;
}

/// A writer that is dropped ends at the other end a moment later, with what was on its way.
async fn resumes(store: &dyn ContentStore) {
    let spec = || contents::spec("resumed");
    let mut ingest = store.ingest(spec()).await.unwrap();
    ingest.write("hello ".into()).await.unwrap();
    let error = store.ingest(spec()).await.map(drop).unwrap_err();
    assert!(error.is(Code::Unavailable), "a second writer: {error}");
    drop(ingest);
    let begun = Instant::now();
    let mut ingest = loop {
        match store.ingest(spec()).await {
            Ok(ingest) => break ingest,
            Err(error) => assert!(
                error.is(Code::Unavailable) && begun.elapsed() < FAR,
                "{error}"
            ),
        }
    };
    assert_eq!(ingest.status().offset, 6);
    ingest.write("world".into()).await.unwrap();
    let digest = ingest.commit(Some(11), None, Labels::new()).await.unwrap();
    let read = contents::get(store, &digest).await;
    assert_eq!(read, b"hello world");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_differ_works_on_the_content_of_who_asks() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("s");
    let store: Arc<dyn ContentStore> =
        Arc::new(::content::Local::open(temp.path().join("root")).unwrap());
    let listener = UnixListener::bind(&socket).unwrap();
    let (_running, stop) = oneshot::channel::<()>();
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (of, seen) = (Arc::clone(&store), Arc::clone(&asked));
    let walking = Arc::new(::diff::Walking::new(temp.path().join("temporary")));
    let given = move |scope: &Scope| {
        seen.lock().unwrap().push(scope.clone());
        Arc::clone(&of)
    };
    tokio::spawn(differ(listener, walking, given, async {
        let _stopped = stop.await;
    }));
    let remote = crate::remote::RemoteDiff::new(caller(&socket));
    let bind = |name: &str| {
        let directory = temp.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        Mount {
            kind: "bind".into(),
            source: directory.to_str().unwrap().into(),
            target: String::new(),
            options: vec!["rbind".into(), "rw".into()],
        }
    };
    let (lower, upper, copy) = (bind("lower"), bind("upper"), bind("copy"));
    std::fs::write(temp.path().join("upper/file"), "text").unwrap();
    let scope = Scope {
        namespace: "theirs".parse().unwrap(),
        lease: Some("l".parse().unwrap()),
    };
    let opts = CompareOpts {
        scope: Some(scope.clone()),
        ..CompareOpts::default()
    };
    let layer = remote
        .compare(&store, &[lower], &[upper], opts)
        .await
        .unwrap();
    let opts = ApplyOpts {
        scope: Some(scope.clone()),
        ..ApplyOpts::default()
    };
    remote.apply(&store, &layer, &[copy], opts).await.unwrap();
    let read = std::fs::read_to_string(temp.path().join("copy/file"));
    assert_eq!(read.unwrap(), "text");
    assert_eq!(*asked.lock().unwrap(), [scope.clone(), scope]);
}
