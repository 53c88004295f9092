//! A content store and a differ that other programs serve: a pull goes through both, and their end is the
//! error of who needs them.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use client::remote::RemoteContent;
use client::{Caller, serve};
use diff::Walking;
use integration::{Host, IMAGE, Registry, Whose, bin_dir, until};
use tokio::net::UnixListener as Listener;

use crate::proxy_plugins::Server;

/// The sockets of the plugins, and where they keep things.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("directory"))
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.sock"))
    }

    /// A daemon with neither store nor differ of its own in use: `first` is the differ that is asked.
    fn sections(&self, first: &str) -> String {
        let plugin = |name: &str, kind: &str| {
            let socket = self.socket(name);
            let socket = socket.display();
            format!("[proxy_plugins.{name}]\ntype = \"{kind}\"\naddress = \"{socket}\"\n")
        };
        [
            "disabled_plugins = [\"io.containerd.content.v1.content\"]\n".to_owned(),
            plugin("blobs", "content"),
            plugin("layers", "diff"),
            plugin("deaf", "diff"),
            format!(
                "[plugins.\"io.containerd.service.v1.diff-service\"]\ndefault = [\"{first}\"]\n\
                 [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                 platform = \"linux\"\nsnapshotter = \"overlayfs\"\n\
                 [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
                 platform = \"linux\"\nsnapshotter = \"native\"\ndiffer = \"deaf\"\n"
            ),
        ]
        .concat()
    }

    /// A program that keeps blobs.
    fn blobs(&self) -> Server {
        let store = content::Local::open(self.0.path().join("blobs")).expect("open");
        Server::of(&self.socket("blobs"), |listener, stopped| {
            serve::content(listener, Arc::new(store), async {
                let _stopped = stopped.await;
            })
        })
    }

    /// A program that unpacks, with the blobs of the daemon at `address`.
    fn layers(&self, address: &Path) -> Server {
        let temporary = self.0.path().join("temporary");
        let address = address.display().to_string();
        let soon = std::time::Duration::from_secs(10);
        Server::of(&self.socket("layers"), |listener: Listener, stopped| {
            let channel = client::connect_lazily(&address, soon).expect("an address");
            let store = move |scope: &types::Scope| -> Arc<dyn content::ContentStore> {
                Arc::new(RemoteContent::new(Caller::new(
                    channel.clone(),
                    scope.clone(),
                )))
            };
            let differ = Arc::new(Walking::new(temporary));
            serve::differ(listener, differ, store, async {
                let _stopped = stopped.await;
            })
        })
    }
}

/// Files below the directory of the program's blobs.
fn blobs_in(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("blobs/blobs/sha256")).map_or(0, Iterator::count)
}

#[test]
fn a_pull_goes_through_a_proxied_content_store_and_differ() {
    let place = Place::new();
    let _deaf = UnixListener::bind(place.socket("deaf")).expect("listen");
    let blobs = place.blobs();
    let mut host = Host::configured("proxied-content", Whose::Ours, &place.sections("layers"));
    let layers = place.layers(&host.address());
    let registry = Registry::start();
    let reference = registry.reference();
    pulls(&host, &place, &reference);
    host.image();
    host.sleeper("kept");

    hangs(&host, &reference);

    // What is dead is told, and what needs it not goes on; it is found again when it is back.
    layers.kill_at(&place.socket("layers"));
    let told = host.ctr(["snapshots", "diff", "kept"]).err();
    assert!(told.contains("unavailable"), "{told}");
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    let archive = integration::archive();
    let import = ["images", "import"].map(std::ffi::OsString::from);
    let import = || host.ctr(import.iter().cloned().chain([archive.clone().into()]));
    assert!(host.task("kept", "RUNNING").is_some());
    blobs.kill_at(&place.socket("blobs"));
    let told = import().err();
    assert!(told.contains("unavailable"), "{told}");
    let told = host.ctr(["tasks", "exec", "--exec-id", "e", "kept", "echo", "alive"]);
    assert_eq!(told.stdout, "alive\n", "{}", told.stderr);
    let blobs = place.blobs();
    let layers = place.layers(&host.address());
    drop(import().ok());
    host.kill();
    host.start();
    let ran = host.run(&["--rm"], "after", &["echo", "here"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    host.remove("kept");
    // Of the client that was killed.
    let leases = host.ctr(["leases", "ls", "-q"]).ok();
    for lease in leases.lines() {
        drop(host.ctr(["leases", "rm", "--sync", lease]).ok());
    }
    host.finish();
    blobs.kill_at(&place.socket("blobs"));
    layers.kill_at(&place.socket("layers"));
}

/// Both ways to pull.
fn pulls(host: &Host, place: &Place, reference: &str) {
    for how in [&["--local"][..], &[]] {
        let pull = ["images", "pull", "--plain-http"];
        let pull = host.ctr_program().args(pull).args(how).args([reference]);
        drop(pull.run().ok());
        drop(host.ctr(["images", "tag", reference, IMAGE]).ok());
        assert_eq!(blobs_in(place.0.path()), 3, "manifest, config and layer");
        assert!(
            !host
                .root()
                .join("io.containerd.content.v1.content/blobs")
                .exists()
        );
        let ran = host.run(&["--rm"], "one", &["echo", "here"]);
        assert_eq!((ran.code, &*ran.stdout), (0, "here\n"), "{}", ran.stderr);
        // The differ makes layers as well, into the namespace of who asks.
        drop(host.ctr(["snapshots", "prepare", "a", &top(host)]).ok());
        let made = host.ctr(["snapshots", "diff", "a"]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        assert!(!made.stdout.is_empty());
        drop(host.ctr(["snapshots", "rm", "a"]).ok());
        drop(host.ctr(["images", "rm", reference]).ok());
        drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
        until("the program's blobs are collected", || {
            blobs_in(place.0.path()) == 0
        });
    }
}

/// A differ that hangs keeps nobody waiting who did not ask it.
fn hangs(host: &Host, reference: &str) {
    let mut waiting = Command::new(bin_dir().join("ctr"))
        .arg("--address")
        .arg(host.address())
        .args(["-n", host.namespace(), "images", "pull", "--plain-http"])
        .args(["--snapshotter", "native", reference])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start a client");
    until("the differ is asked", || {
        let list = host.ctr(["snapshots", "--snapshotter", "native", "ls"]);
        list.stdout.contains("extract-")
    });
    let ran = host.run(&["--rm"], "beside", &["echo", "here"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        waiting.try_wait().expect("wait").is_none(),
        "nobody answers"
    );
    waiting.kill().expect("kill");
    drop(waiting.wait());
}

/// The image's layer.
fn top(host: &Host) -> String {
    let list = host.ctr(["snapshots", "ls"]).ok();
    let mut names = list.lines().filter(|line| line.starts_with("sha256:"));
    let name = names.next().and_then(|line| line.split(' ').next());
    name.expect("a layer").to_owned()
}
