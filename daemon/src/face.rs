//! Top floor: the services on the sockets, and what introspection says of all floors.

use std::sync::Arc;

use client::serve;
use grpc::Routes;
use metadata::Metadata;
use runtime_v2::{TaskManager, Tasks as Manager};
use types::Result;

use crate::config::Config;
use crate::debug;
use crate::engine::Engine;
use crate::fsck::Checker;
use crate::identity::Identity;
use crate::point::Row;
use crate::restart;
use crate::services::attach::Attach;
use crate::services::containers::Containers;
use crate::services::content::Content;
use crate::services::diff::Diff;
use crate::services::events::Events;
use crate::services::flights::Flights;
use crate::services::health::Health;
use crate::services::images::Images;
use crate::services::introspection::Introspection;
use crate::services::leases::Leases;
use crate::services::mounts::Mounts;
use crate::services::namespaces::Namespaces;
use crate::services::network::Network;
use crate::services::snapshots::Snapshots;
use crate::services::streaming::Streaming;
use crate::services::tasks::Tasks;
use crate::services::transfer::Transfer;
use crate::services::version::Version;

/// Kind of the services.
const GRPC: &str = "io.containerd.grpc.v1";
/// Every service that there is, with what it needs.
const SERVICES: [(&str, &[&str]); 18] = [
    ("attach", &["io.containerd.runtime.v2"]),
    ("containers", &["io.containerd.metadata.v1"]),
    ("content", &["io.containerd.metadata.v1"]),
    (
        "diff",
        &["io.containerd.metadata.v1", "io.containerd.differ.v1"],
    ),
    ("events", &["io.containerd.event.v1"]),
    ("flights", &[]),
    ("healthcheck", &[]),
    (
        "images",
        &["io.containerd.metadata.v1", "io.containerd.gc.v1"],
    ),
    ("introspection", &[]),
    ("leases", &["io.containerd.lease.v1", "io.containerd.gc.v1"]),
    ("mounts", &["io.containerd.mount-manager.v1"]),
    ("namespaces", &["io.containerd.metadata.v1"]),
    ("network", &["io.containerd.network.v1"]),
    ("snapshots", &["io.containerd.metadata.v1"]),
    ("streaming", &["io.containerd.streaming.v1"]),
    (
        "tasks",
        &["io.containerd.metadata.v1", "io.containerd.runtime.v2"],
    ),
    (
        "transfer",
        &["io.containerd.transfer.v1", "io.containerd.streaming.v1"],
    ),
    ("version", &[]),
];

/// True when the configuration lets service `id` run.
fn enabled(config: &Config, id: &str) -> bool {
    config.enabled(&format!("{GRPC}.{id}"))
}

/// The rows of all floors and of the services.
fn rows(engine: &Engine, config: &Config) -> Vec<Row> {
    let mut rows = engine.store.ground.rows.clone();
    rows.extend_from_slice(&engine.store.rows);
    rows.extend_from_slice(&engine.rows);
    let served = |id: &str| id != "transfer" || engine.transfers.is_some();
    let services = SERVICES
        .iter()
        .filter(|(id, _)| enabled(config, id) && served(id));
    rows.extend(services.map(|(id, requires)| Row::ready(GRPC, id, requires)));
    rows.extend(restart::row(config));
    let (kind, id) = client::fsck::PLUGIN;
    rows.push(Row::ready(kind, id, &["io.containerd.metadata.v1"]));
    rows.push(Row::ready("io.containerd.server.v1", "grpc", &[GRPC]));
    rows.push(Row::ready(
        "io.containerd.server.v1",
        "ttrpc",
        &["io.containerd.event.v1"],
    ));
    if !config.metrics.address.is_empty() && config.enabled("io.containerd.server.v1.metrics") {
        rows.push(Row::ready("io.containerd.server.v1", "metrics", &[]));
    }
    if debug::is_wanted(config) {
        rows.push(Row::ready("io.containerd.server.v1", "debug", &[]));
    }
    rows.sort_by(|a, b| (a.kind, &a.id).cmp(&(b.kind, &b.id)));
    rows
}

/// Adds a service with the configured limits, unless it is disabled.
macro_rules! add {
    ($routes:ident, $config:ident, $id:literal, $module:ident::$server:ident, $service:expr) => {
        if enabled($config, $id) {
            let server = grpc::$module::$server::new($service)
                .max_decoding_message_size($config.grpc.max_recv_message_size)
                .max_encoding_message_size($config.grpc.max_send_message_size);
            $routes.add(server);
        }
    };
}

/// The events service, for either socket.
pub(crate) fn events(engine: &Engine) -> Events {
    let exchange = Arc::clone(&engine.store.ground.events);
    Events {
        exchange,
        tasks: Arc::clone(&engine.tasks),
    }
}

/// The services over `engine`, with the standard answer for those that are not there.
///
/// # Errors
/// `FailedPrecondition` without a required plugin; the errno of the daemon's UUID.
pub(crate) fn routes(engine: &Engine, checker: &Checker, config: &Config) -> Result<Routes> {
    let mut routes = Routes::default();
    add_records(&mut routes, &engine.store.metadata, config);
    add_work(&mut routes, engine, config);
    let rows = rows(engine, config);
    let working = rows.iter().filter(|row| row.failure.is_none());
    config.check_required(&working.map(Row::uri).collect::<Vec<_>>())?;
    let introspection = Introspection {
        rows: rows.into(),
        identity: Arc::new(Identity::load(&config.root)?),
        tasks: manager(engine),
        checker: checker.clone(),
    };
    add!(routes, config, "healthcheck", health::HealthServer, Health);
    add!(
        routes,
        config,
        "introspection",
        introspection::IntrospectionServer,
        introspection
    );
    add!(routes, config, "flights", flight::FlightsServer, Flights);
    add!(routes, config, "version", version::VersionServer, Version);
    Ok(routes)
}

/// Services of what is stored.
fn add_records(routes: &mut Routes, metadata: &Metadata, config: &Config) {
    let max_message = config.grpc.max_send_message_size;
    let containers = Containers {
        metadata: metadata.clone(),
        max_message,
    };
    let content = Content {
        metadata: metadata.clone(),
    };
    let images = Images {
        metadata: metadata.clone(),
        max_message,
    };
    let leases = Leases {
        metadata: metadata.clone(),
    };
    let namespaces = Namespaces {
        metadata: metadata.clone(),
    };
    let snapshots = Snapshots {
        metadata: metadata.clone(),
    };
    add!(
        routes,
        config,
        "containers",
        containers::ContainersServer,
        containers
    );
    add!(
        routes,
        config,
        "content",
        content::ContentServer,
        serve::Content(content)
    );
    add!(routes, config, "images", images::ImagesServer, images);
    add!(routes, config, "leases", leases::LeasesServer, leases);
    add!(
        routes,
        config,
        "namespaces",
        namespaces::NamespacesServer,
        namespaces
    );
    add!(
        routes,
        config,
        "snapshots",
        snapshots::SnapshotsServer,
        serve::Snapshots(snapshots)
    );
}

/// Services of what works on it.
fn add_work(routes: &mut Routes, engine: &Engine, config: &Config) {
    let metadata = &engine.store.metadata;
    let diff = Diff {
        metadata: metadata.clone(),
        differs: Arc::clone(&engine.differs),
    };
    let tasks = Tasks {
        metadata: metadata.clone(),
        mounts: engine.mounts.clone(),
        checkpoints: engine.checkpoints.clone(),
        manager: manager(engine),
    };
    add!(routes, config, "diff", diff::DiffServer, serve::Diff(diff));
    add!(
        routes,
        config,
        "events",
        events::EventsServer,
        events(engine)
    );
    let mounts = Mounts {
        mounts: engine.mounts.clone(),
    };
    add!(routes, config, "mounts", mounts::MountsServer, mounts);
    let network = Network {
        networks: engine.networks.clone(),
        metadata: engine.store.metadata.clone(),
        drivers: engine.drivers.clone(),
    };
    add!(routes, config, "network", network::NetworkServer, network);
    add!(routes, config, "tasks", tasks::TasksServer, tasks);
    let attach = Attach {
        manager: manager(engine),
    };
    add!(routes, config, "attach", attach::AttachServer, attach);
    let streaming = Streaming {
        streams: engine.streams.clone(),
    };
    add!(
        routes,
        config,
        "streaming",
        streaming::StreamingServer,
        streaming
    );
    if let Some(transfers) = engine.transfers.clone() {
        let transfer = Transfer { transfers };
        add!(
            routes,
            config,
            "transfer",
            transfer::TransferServer,
            transfer
        );
    }
}

fn manager(engine: &Engine) -> Arc<dyn TaskManager> {
    Arc::<Manager>::clone(&engine.tasks)
}
