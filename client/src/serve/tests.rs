//! What is ours over a socket: the suites, and what comes of a server that hangs or dies.

use std::path::Path;
use std::time::{Duration, Instant};

use ::content::testsuite as contents;
use snapshotters::{Local, Overlay, OverlayConfig};
use tokio::sync::oneshot;
use types::{Code, Filter, Labels, SnapshotInfo};

use super::*;
use crate::remote::RemoteSnapshotter;
use crate::{Limits, Proxy};

mod backends;

/// A deadline that a call over a socket is not near to.
const FAR: Duration = Duration::from_secs(60);

/// A snapshotter that is served at `socket`, until the sender is dropped.
fn served(snapshotter: Local, socket: &Path) -> oneshot::Sender<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let (running, stop) = oneshot::channel();
    let all = BTreeMap::from([("mine".to_owned(), Arc::new(snapshotter) as _)]);
    tokio::spawn(snapshotters(listener, all, async {
        let _stopped = stop.await;
    }));
    running
}

fn overlay(root: &Path) -> Local {
    Overlay::open(root, OverlayConfig::default()).unwrap()
}

fn proxied(socket: &Path, name: &str, limit: Duration) -> RemoteSnapshotter {
    let limits = Limits {
        quick: limit,
        whole: limit,
    };
    let proxy = Proxy::new(socket.to_str().unwrap(), limits).unwrap();
    RemoteSnapshotter::new(proxy.caller(), name).with_rebase(true)
}

#[tokio::test]
async fn another_name_is_not_served() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("s");
    let _running = served(overlay(&temp.path().join("root")), &socket);
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
    let caps = contents::Caps {
        is_distant: true,
        ..contents::Caps::default()
    };
    contents::run(&store, caps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_proxied_differ_conforms_on_the_content_of_who_asks() {
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
    let scope = Scope {
        namespace: "theirs".parse().unwrap(),
        lease: Some("l".parse().unwrap()),
    };
    let suite = temp.path().join("suite");
    std::fs::create_dir(&suite).unwrap();
    ::diff::testsuite::run(&::diff::testsuite::Bench {
        differ: &remote,
        store,
        root: &suite,
        scope: Some(scope.clone()),
    })
    .await;
    let asked = asked.lock().unwrap();
    assert!(
        asked.len() > 20 && asked.iter().all(|of| *of == scope),
        "{asked:?}"
    );
}
