//! Checks that clients ask for, and clients that go away.

use client::fsck;
use grpc::introspection::IntrospectionClient;
use protos::MessageField;
use protos::services::introspection::PluginInfoRequest;
use protos::well_known::Empty;
use protos::wire::Wire as _;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use types::CheckOpts;

use super::{Daemon, SOON};

/// A blob that no namespace has, under the root.
const ORPHAN: &str = "root/io.containerd.content.v1.content/blobs/sha256/\
    2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

impl Daemon {
    /// A client of its own that asks for a check.
    fn ask(&self, repair: bool) -> JoinHandle<()> {
        let opts = CheckOpts {
            repair,
            ..CheckOpts::default()
        };
        let (kind, id) = fsck::PLUGIN;
        let message = PluginInfoRequest {
            type_: kind.into(),
            id: id.into(),
            options: MessageField::some(fsck::options_to_any(&opts).to_wire()),
            ..Default::default()
        };
        let mut client = IntrospectionClient::new(self.channel());
        tokio::spawn(async move {
            client.plugin_info(message).await.unwrap();
        })
    }

    /// The client goes away, and the daemon has seen it: one connection keeps the order.
    async fn hang_up(&self, client: JoinHandle<()>) {
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        let mut other = IntrospectionClient::new(self.channel());
        other.server(Empty::new()).await.unwrap();
    }
}

async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, met).await.unwrap();
}

#[tokio::test]
async fn a_check_that_waits_leaves_its_place_with_its_client() {
    let daemon = Daemon::start().await;
    let checker = &daemon.checker;
    let turn = checker.hold().await;
    let all = checker.free_places();
    for repair in [false, true] {
        let client = daemon.ask(repair);
        until(|| checker.free_places() < all).await;
        daemon.hang_up(client).await;
        until(|| checker.free_places() == all).await;
    }
    drop(turn);
    daemon.ask(false).await.unwrap();
}

#[test]
fn a_check_ends_with_its_client_unless_it_has_begun_to_repair() {
    // One thread for what blocks, and the test has it: a check that has begun comes no further.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let daemon = Daemon::start().await;
        let checker = &daemon.checker;
        let orphan = daemon.directory.path().join(ORPHAN);
        std::fs::write(&orphan, "hello").unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let blocked = tokio::task::spawn_blocking(move || wait.recv());

        let client = daemon.ask(false);
        until(|| checker.is_at_work()).await;
        daemon.hang_up(client).await;
        until(|| !checker.is_at_work()).await;

        let client = daemon.ask(true);
        until(|| checker.is_at_work()).await;
        daemon.hang_up(client).await;
        assert!(checker.is_at_work() && orphan.exists());
        drop(go);
        blocked.await.unwrap().unwrap_err();
        until(|| !checker.is_at_work()).await;
        assert!(!orphan.exists(), "it came to its end");
    });
}
