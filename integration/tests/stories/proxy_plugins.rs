//! Plugins that other programs serve: a snapshotter and a differ behind sockets, alive, deaf and dead.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use integration::{Host, IMAGE, Whose, bin_dir};
use snapshotters::testsuite::{Variation, Varied};
use snapshotters::{Local, Overlay, OverlayConfig, Snapshotter};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use types::{Error, Labels, Mount, Result, SnapshotKey};

use crate::task_mounts::managed;

/// A program that serves plugins.
pub(crate) struct Server {
    runtime: Runtime,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

impl Server {
    fn start(socket: &Path, served: Arc<dyn Snapshotter>) -> Self {
        let all = BTreeMap::from([("mine".to_owned(), served)]);
        Self::of(socket, |listener, stopped| {
            client::serve::snapshotters(listener, all, async {
                let _stopped = stopped.await;
            })
        })
    }

    /// One that runs what `serve` makes of its socket and of the sign to stop.
    pub(crate) fn of<F: Future<Output = ()> + Send + 'static>(
        socket: &Path,
        serve: impl FnOnce(tokio::net::UnixListener, oneshot::Receiver<()>) -> F,
    ) -> Self {
        let runtime = Runtime::new().expect("runtime");
        let (stop, stopped) = oneshot::channel();
        let _inside = runtime.enter();
        let listener = tokio::net::UnixListener::bind(socket).expect("listen");
        let ended = runtime.spawn(serve(listener, stopped));
        Self {
            runtime,
            stop,
            ended,
        }
    }

    fn overlay(dir: &Path) -> Self {
        Self::start(&dir.join("mine.sock"), Arc::new(overlay(dir)))
    }

    /// Ends it as a killed program ends: its connections break.
    fn kill(self, dir: &Path) {
        self.kill_at(&dir.join("mine.sock"));
    }

    /// The same of one at `socket`.
    pub(crate) fn kill_at(self, socket: &Path) {
        let Self {
            runtime,
            stop,
            ended,
        } = self;
        ended.abort();
        drop(stop);
        drop(runtime);
        std::fs::remove_file(socket).expect("remove the socket");
    }
}

fn overlay(dir: &Path) -> Local {
    Overlay::open(&dir.join("proxied"), OverlayConfig::default()).expect("open")
}

fn sections(dir: &Path) -> String {
    let plugin = |name: &str, kind: &str| {
        let socket = dir.join(format!("{name}.sock"));
        format!(
            "[proxy_plugins.{name}]\ntype = \"{kind}\"\naddress = \"{}\"\n\
             capabilities = [\"rebase\"]\n[proxy_plugins.{name}.exports]\nroot = \"/r\"\n",
            socket.display()
        )
    };
    [
        plugin("mine", "snapshot"),
        plugin("deaf", "snapshot"),
        plugin("elsewhere", "diff"),
    ]
    .concat()
}

/// Runs a container to its end.
fn runs(host: &Host, snapshotter: &str, id: &str) {
    let ran = host.run(
        &["--rm", "--snapshotter", snapshotter],
        id,
        &["echo", "here"],
    );
    assert_eq!((ran.code, &*ran.stdout), (0, "here\n"), "{}", ran.stderr);
}

/// A client that prepares a snapshot.
fn prepares(host: &Host, snapshotter: &str) -> Child {
    Command::new(bin_dir().join("ctr"))
        .arg("--address")
        .arg(host.address())
        .args([
            "-n",
            host.namespace(),
            "snapshots",
            "--snapshotter",
            snapshotter,
        ])
        .args(["prepare", "k"])
        .stderr(Stdio::null())
        .spawn()
        .expect("start a client")
}

#[test]
fn a_container_runs_on_a_proxied_snapshotter_and_its_end_is_nobody_elses() {
    let dir = tempfile::tempdir().expect("directory");
    // The kernel takes connections, and nobody reads them.
    let _deaf = UnixListener::bind(dir.path().join("deaf.sock")).expect("listen");
    let server = Server::overlay(dir.path());
    let mut host = Host::configured("proxied", Whose::Ours, &sections(dir.path()));
    host.image();
    runs(&host, "mine", "one");
    let row = host.ctr(["plugins", "ls", "-d", "id==mine"]).ok();
    assert!(row.contains("rebase") && row.contains("/r"), "{row}");
    let flags = ["-d", "--null-io", "--snapshotter", "mine"];
    drop(host.run(&flags, "kept", &["sleep", "1000"]).ok());

    let mut waiting = prepares(&host, "deaf");
    runs(&host, "overlayfs", "beside");
    runs(&host, "mine", "beside");
    assert!(
        waiting.try_wait().expect("wait").is_none(),
        "nobody answers"
    );
    waiting.kill().expect("kill");
    drop(waiting.wait());
    server.kill(dir.path());
    let told = host.ctr(["snapshots", "--snapshotter", "mine", "ls"]).err();
    assert!(told.contains("unavailable"), "{told}");
    runs(&host, "overlayfs", "two");
    // A start waits for nobody, and what runs, runs on.
    host.kill();
    host.start();
    assert!(host.task("kept", "RUNNING").is_some());
    runs(&host, "overlayfs", "three");
    let server = Server::overlay(dir.path());
    host.remove("kept");
    runs(&host, "mine", "four");
    host.finish();
    server.kill(dir.path());
}

/// A snapshotter of another kind than ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strange {
    /// It has a layer without being given its files.
    Lazy,
    /// Its views are mounts that only the daemon performs.
    Formatted,
}

#[async_trait::async_trait]
impl Variation for Strange {
    async fn prepare(
        &self,
        inner: &dyn Snapshotter,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let mounts = inner.prepare(key, parent, labels.clone()).await?;
        let target = labels.get("containerd.io/snapshot.ref");
        let Some(target) = target.filter(|_| *self == Self::Lazy) else {
            return Ok(mounts);
        };
        let file = PathBuf::from(&mounts[0].source).join("far-away");
        std::fs::write(&file, target).map_err(|e| Error::os("write", e))?;
        let name: SnapshotKey = format!("of/{key}").parse()?;
        inner.commit(&name, key, labels.clone()).await?;
        Err(Error::already_exists(format_args!("target {target}")))
    }

    async fn view(
        &self,
        inner: &dyn Snapshotter,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let mut mounts = inner.view(key, parent, labels).await?;
        if *self == Self::Formatted {
            let below = mounts.clone();
            mounts[0].kind = "format/bind".into();
            mounts[0].source = "{{ mount 0 }}".into();
            mounts.splice(0..0, below);
        }
        Ok(mounts)
    }
}

#[test]
fn a_layer_that_a_remote_snapshotter_has_is_not_unpacked() {
    let dir = tempfile::tempdir().expect("directory");
    let lazy = Arc::new(Varied(Arc::new(overlay(dir.path())), Strange::Lazy));
    let server = Server::start(&dir.path().join("mine.sock"), lazy);
    let host = Host::configured("lazy", Whose::Ours, &sections(dir.path()));
    let archive = integration::archive();
    let import = ["images", "import", "--snapshotter", "mine"].map(Into::into);
    drop(
        host.ctr(import.into_iter().chain([archive.into_os_string()]))
            .ok(),
    );
    let list = host.ctr(["snapshots", "--snapshotter", "mine", "ls"]).ok();
    let layer = list.lines().nth(1).expect("a layer");
    assert!(layer.contains("Committed"), "{list}");
    let layer = layer.split_whitespace().next().expect("a key");
    let view = [
        "snapshots",
        "--snapshotter",
        "mine",
        "view",
        "--mounts",
        "v",
        layer,
    ];
    let mounts: serde_json::Value = serde_json::from_str(&host.ctr(view).ok()).expect("JSON");
    let source = mounts[0]["Source"].as_str().expect("a path");
    let names = std::fs::read_dir(source).expect("list");
    let names: Vec<_> = names
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(names, ["far-away"], "the layer was unpacked");
    drop(
        host.ctr(["snapshots", "--snapshotter", "mine", "rm", "v"])
            .ok(),
    );
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    host.finish();
    server.kill(dir.path());
}

#[test]
fn an_image_is_mounted_by_the_daemon_where_only_it_can() {
    let dir = tempfile::tempdir().expect("directory");
    let formatted = Arc::new(Varied(Arc::new(overlay(dir.path())), Strange::Formatted));
    let server = Server::start(&dir.path().join("mine.sock"), formatted);
    let host = Host::configured("formatted", Whose::Ours, &sections(dir.path()));
    host.image();
    let point = host.path("point");
    std::fs::create_dir(&point).expect("mount point");
    let images = |command: &str, args: &[&str]| {
        let all = ["images", command, "--snapshotter", "mine"];
        let program = host.ctr_program().args(all).args(args);
        drop(program.args([&point]).run().ok());
    };
    for _ in 0..2 {
        images("mount", &[IMAGE]);
        assert!(point.join("bin/busybox").exists());
        assert_eq!(managed(&host).len(), 1);
        images("unmount", &["--rm"]);
        assert!(!point.join("bin").exists());
        assert_eq!(managed(&host), Vec::<String>::new());
    }
    let list = host.ctr(["snapshots", "--snapshotter", "mine", "ls"]).ok();
    assert!(!list.contains("View"), "{list}");
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    host.finish();
    server.kill(dir.path());
}
