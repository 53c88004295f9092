//! The services in one process, over a real socket, with the stubs that clients use.
//!
//! Real floors below: content, snapshotters, metadata and tasks in a directory of the test's own.

mod basics;
mod content;
mod events;
mod fsck;
mod networks;
mod records;
mod snapshots;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::Scope;

use crate::config::Config;
use crate::engine::Engine;
use crate::face;
use crate::fsck::Checker;
use crate::ground::Ground;
use crate::listen::Socket;
use crate::store::Store;
use crate::ttrpc_server;

/// The namespace of every test: each has a daemon of its own.
const NAMESPACE: &str = "test";
/// Longest wait for something that must come.
const SOON: Duration = Duration::from_secs(60);

/// A daemon's services. Gone with the value.
struct Daemon {
    channel: Channel,
    exchange: Arc<::events::Exchange>,
    /// Path of the main socket.
    address: String,
    /// Path of the shims' socket.
    ttrpc: String,
    server: JoinHandle<()>,
    checker: Checker,
    directory: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Daemon {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            root: directory.path().join("root"),
            state: directory.path().join("state"),
            ..Config::default()
        };
        config.grpc.address = directory.path().join("c.sock").display().to_string();
        std::fs::create_dir_all(&config.root).unwrap();
        std::fs::create_dir_all(&config.state).unwrap();
        change(&mut config);

        let socket = Socket::bind(config.grpc.address.as_ref(), 0, 0).unwrap();
        let store = Store::open(Ground::open(&config).unwrap(), &config)
            .await
            .unwrap();
        let engine = Engine::open(store, &config).unwrap();
        let exchange = Arc::clone(&engine.store.ground.events);
        let checker = Checker::new(&engine.store.metadata, &config).with_mounts(&engine.mounts);
        let routes = face::routes(&engine, &checker, &config).unwrap();
        let ttrpc = config.ttrpc_address();
        let shims_socket = Socket::bind(ttrpc.as_ref(), 0, 0).unwrap();
        let shims = ttrpc_server::serve(&shims_socket, face::events(&engine))
            .await
            .unwrap();
        let incoming = socket.incoming(|_| true).unwrap();
        let serving = grpc::connections::serve(routes, incoming, std::future::pending());
        let server = tokio::spawn(async move {
            let _held = (engine, shims, socket, shims_socket);
            serving.await;
        });
        let channel = client::connect(&config.grpc.address, SOON).await.unwrap();
        Self {
            channel,
            exchange,
            address: config.grpc.address,
            ttrpc,
            server,
            checker,
            directory,
        }
    }

    fn channel(&self) -> Channel {
        self.channel.clone()
    }
}

/// A request in the tests' namespace.
fn scoped<T>(message: T) -> Request<T> {
    grpc::request(&Scope::new(NAMESPACE.parse().unwrap()), message).unwrap()
}

/// A request in the tests' namespace under a lease.
fn leased<T>(lease: &str, message: T) -> Request<T> {
    let scope = Scope {
        namespace: NAMESPACE.parse().unwrap(),
        lease: Some(lease.parse().unwrap()),
    };
    grpc::request(&scope, message).unwrap()
}

/// Code and text of a refusal.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (tonic::Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}
