//! Older and newer layouts of the file, brought to the one that is read here: that of version 3.
//!
//! Invariant: nothing that was said is lost without a word. A key moves with its place, a key that
//! nothing has any more is told by name.

use toml::{Table, Value};

use super::places::Given;
use super::unknown::{Foreign, is_empty};

const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const CRI_RUNTIME: &str = "io.containerd.cri.v1.runtime";

/// Plugins as files of version 1 call them.
const SHORT: [(&str, &str); 16] = [
    ("cri", CRI),
    ("cgroups", "io.containerd.monitor.v1.cgroups"),
    ("linux", "io.containerd.runtime.v1.linux"),
    ("scheduler", "io.containerd.gc.v1.scheduler"),
    ("bolt", "io.containerd.metadata.v1.bolt"),
    ("task", "io.containerd.runtime.v2.task"),
    ("opt", "io.containerd.internal.v1.opt"),
    ("restart", "io.containerd.internal.v1.restart"),
    ("tracing", "io.containerd.internal.v1.tracing"),
    ("otlp", "io.containerd.tracing.processor.v1.otlp"),
    ("aufs", "io.containerd.snapshotter.v1.aufs"),
    ("btrfs", "io.containerd.snapshotter.v1.btrfs"),
    ("devmapper", "io.containerd.snapshotter.v1.devmapper"),
    ("native", "io.containerd.snapshotter.v1.native"),
    ("overlayfs", "io.containerd.snapshotter.v1.overlayfs"),
    ("zfs", "io.containerd.snapshotter.v1.zfs"),
];

/// Plugins that were given another name.
const RENAMED: [(&str, &str); 2] = [
    (
        "io.containerd.internal.v1.restart",
        "io.containerd.monitor.container.v1.restart",
    ),
    (
        "io.containerd.monitor.v1.cgroups",
        "io.containerd.monitor.task.v1.cgroups",
    ),
];

/// Plugins that there are no more.
const GONE: [&str; 2] = [
    "io.containerd.runtime.v1.linux",
    "io.containerd.snapshotter.v1.aufs",
];

/// Tables to which version 4 moved the sockets, and where they are read here.
const SERVERS: [(&str, &str); 4] = [
    ("io.containerd.server.v1.grpc", "grpc"),
    ("io.containerd.server.v1.ttrpc", "ttrpc"),
    ("io.containerd.server.v1.debug", "debug"),
    ("io.containerd.server.v1.metrics", "metrics"),
];
const TCP: &str = "io.containerd.server.v1.grpc-tcp";
const HISTOGRAM: &str = "io.containerd.metrics.v1.grpc-prometheus";

/// What of the one CRI table went to that of images, and under which name.
const IMAGES: [(&[&str], &[&str]); 11] = [
    (&["sandbox_image"], &["pinned_images", "sandbox"]),
    (&["registry"], &["registry"]),
    (&["image_decryption"], &["image_decryption"]),
    (&["max_concurrent_downloads"], &["max_concurrent_downloads"]),
    (
        &["image_pull_progress_timeout"],
        &["image_pull_progress_timeout"],
    ),
    (&["image_pull_with_sync_fs"], &["image_pull_with_sync_fs"]),
    (&["stats_collect_period"], &["stats_collect_period"]),
    (&["containerd", "snapshotter"], &["snapshotter"]),
    (
        &["containerd", "disable_snapshot_annotations"],
        &["disable_snapshot_annotations"],
    ),
    (
        &["containerd", "discard_unpacked_layers"],
        &["discard_unpacked_layers"],
    ),
    (
        &["concurrent_layer_fetch_buffer"],
        &["concurrent_layer_fetch_buffer"],
    ),
];

/// What stays in it; the rest went to that of the runtime.
const STREAMING: [&str; 6] = [
    "disable_tcp_service",
    "stream_server_address",
    "stream_server_port",
    "stream_idle_timeout",
    "enable_tls_streaming",
    "x509_key_pair_streaming",
];

/// What nothing of version 3 has any more.
const CRI_GONE: [&[&str]; 5] = [
    &["systemd_cgroup"],
    &["disable_cgroup"],
    &["containerd", "no_pivot"],
    &["containerd", "default_runtime"],
    &["containerd", "untrusted_workload_runtime"],
];
/// The same of each runtime handler.
const HANDLER_GONE: [&str; 2] = ["runtime_root", "runtime_engine"];

/// Brings what a file of `version` says to the layout of version 3. What is dropped is in `warnings`.
pub(super) fn migrate(given: &mut Given, version: i64, warnings: &mut Vec<String>) {
    if version < 2 {
        full_names(given);
    }
    if version < 3 {
        for uri in GONE {
            drop_said(given, &["plugins", uri], warnings);
        }
        split_cri(given, warnings);
    }
    for (old, new) in RENAMED {
        given.shift(&["plugins", old], &["plugins", new]);
    }
    rename_listed(given, |name| {
        let renamed = RENAMED.iter().find(|(old, _)| *old == name);
        renamed.map(|(_, new)| (*new).to_owned())
    });
    for (uri, section) in SERVERS {
        overlay(given, &["plugins", uri], section);
    }
    for key in [
        "address",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "tls_common_name",
    ] {
        let to = format!("tcp_{key}");
        given.shift(&["plugins", TCP, key], &["grpc", &to]);
    }
    given.shift(
        &["plugins", HISTOGRAM, "grpc_histogram"],
        &["metrics", "grpc_histogram"],
    );
    for uri in [TCP, HISTOGRAM] {
        if given.get(&["plugins", uri]).is_some_and(is_empty) {
            given.take(&["plugins", uri]);
        }
    }
}

/// Moves a table over another one: what stands in the newer place is what is meant.
fn overlay(given: &mut Given, from: &[&str], section: &str) {
    let Some(Value::Table(newer)) = given.get(from) else {
        return;
    };
    let keys: Vec<String> = newer.keys().cloned().collect();
    for key in keys {
        given.take(&[section, &key]);
    }
    given.shift(from, &[section]);
}

/// Version 1 wrote the ids of plugins alone.
fn full_names(given: &mut Given) {
    let short = |name: &str| {
        (!name.contains('.')).then(|| match SHORT.iter().find(|(id, _)| *id == name) {
            Some((_, uri)) => (*uri).to_owned(),
            None if name.ends_with("-service") => format!("io.containerd.service.v1.{name}"),
            None => format!("io.containerd.grpc.v1.{name}"),
        })
    };
    let tables = given.get(&["plugins"]).and_then(Value::as_table);
    let names: Vec<String> = tables.into_iter().flat_map(Table::keys).cloned().collect();
    for name in names {
        if let Some(uri) = short(&name) {
            given.shift(&["plugins", &name], &["plugins", &uri]);
        }
    }
    rename_listed(given, short);
}

/// Gives plugins that are disabled or required their other names.
fn rename_listed(given: &mut Given, rename: impl Fn(&str) -> Option<String>) {
    for list in ["disabled_plugins", "required_plugins"] {
        let names = given.table.get_mut(list).and_then(Value::as_array_mut);
        for name in names.into_iter().flatten() {
            if let Some(other) = name.as_str().and_then(&rename) {
                *name = Value::String(other);
            }
        }
    }
}

/// The one table of CRI becomes three.
fn split_cri(given: &mut Given, warnings: &mut Vec<String>) {
    if given.get(&["plugins", CRI]).is_none() {
        return;
    }
    for gone in CRI_GONE {
        drop_said(given, &[&["plugins", CRI], gone].concat(), warnings);
    }
    let runtimes = ["plugins", CRI, "containerd", "runtimes"];
    let handlers = given.get(&runtimes).and_then(Value::as_table);
    let handlers: Vec<String> = handlers
        .into_iter()
        .flat_map(Table::keys)
        .cloned()
        .collect();
    for handler in &handlers {
        for key in HANDLER_GONE {
            drop_said(given, &[&runtimes[..], &[handler, key]].concat(), warnings);
        }
    }
    for (from, to) in IMAGES {
        given.shift(
            &[&["plugins", CRI], from].concat(),
            &[&["plugins", CRI_IMAGES], to].concat(),
        );
    }
    let rest = given.get(&["plugins", CRI]).and_then(Value::as_table);
    let rest: Vec<String> = rest.into_iter().flat_map(Table::keys).cloned().collect();
    for key in rest.iter().filter(|key| !STREAMING.contains(&key.as_str())) {
        given.shift(&["plugins", CRI, key], &["plugins", CRI_RUNTIME, key]);
    }
    if given
        .get(&["plugins", CRI])
        .is_some_and(|v| v.as_table().is_some_and(Table::is_empty))
    {
        given.take(&["plugins", CRI]);
    }
}

/// Drops a key that means nothing any more, and says so if it meant something.
fn drop_said(given: &mut Given, path: &[&str], warnings: &mut Vec<String>) {
    let foreign = Foreign::known();
    let Some(value) = given.get(path) else {
        return;
    };
    if !is_empty(value) && !foreign.is_default(path, value) {
        let name = path.join(".");
        warnings.push(given.tell(
            path,
            format!("key {name:?} has no meaning any more: ignored"),
        ));
    }
    given.take(path);
}
