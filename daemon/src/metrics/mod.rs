//! What the daemon counts, for Prometheus.
//!
//! Invariant: a scrape reads counters and local state; it asks no shim, and takes no lock for longer than
//! it takes to copy what is behind it. Names are those of Go's daemon where that has one.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use events::Exchange;
use grpc::meter::{self, Meter};
use http::StatusCode;
use metadata::Metadata;
use runtime_v2::{Status, TaskManager};
use types::Result;

use self::text::{Kind, Text};
use crate::config::{Config, Metrics};
use crate::engine::Engine;
use crate::traces;
use crate::transfers::Transfers;
use crate::version;
use crate::web::{self, Answer};

/// What the configuration calls the server of them.
const SERVER: &str = "io.containerd.server.v1.metrics";

/// Names in one scrape, of what should be nothing.
const NAMED: usize = 100;

/// What is counted.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    tasks: Arc<dyn TaskManager>,
    events: Arc<Exchange>,
    metadata: Metadata,
    transfers: Option<Transfers>,
    /// Also how long calls took.
    histogram: bool,
}

impl Counters {
    /// The metrics of the daemon around `engine`.
    pub(crate) fn new(engine: &Engine, histogram: bool) -> Self {
        let tasks = Arc::<runtime_v2::Tasks>::clone(&engine.tasks);
        Self {
            tasks,
            events: Arc::clone(&engine.store.ground.events),
            metadata: engine.store.metadata.clone(),
            transfers: engine.transfers.clone(),
            histogram,
        }
    }

    /// Answers a scrape.
    pub(crate) async fn answer(&self, path: &str) -> Answer {
        match path {
            // Go's path, and the one that everybody tries first.
            "/v1/metrics" | "/metrics" => Answer {
                media_type: text::MEDIA_TYPE,
                ..Answer::text(StatusCode::OK, self.text().await)
            },
            _ => Answer::absent(),
        }
    }

    /// All of it as text.
    pub(crate) async fn text(&self) -> String {
        let mut text = Text::default();
        let build = [
            ("version", version::VERSION),
            ("revision", version::REVISION),
        ];
        text.family(
            "containerd_build_info_total",
            Kind::Counter,
            "Version and revision of the daemon.",
        )
        .add(&build, 1);
        calls(&mut text, self.histogram);
        self.tasks(&mut text).await;
        self.events(&mut text);
        self.collections(&mut text);
        if let Some(transfers) = &self.transfers {
            transferred(&mut text, transfers);
        }
        process(&mut text);
        text.finish()
    }

    async fn tasks(&self, text: &mut Text) {
        // From memory: it cannot fail, and waits for nobody.
        let all = self.tasks.list(None).await.unwrap_or_default();
        let mut by_state = BTreeMap::new();
        let (mut shims, mut silent) = (BTreeSet::new(), Vec::new());
        for task in &all {
            let known = task
                .known(None)
                .map_or(Status::Unknown, |known| known.status);
            *by_state.entry(word(known)).or_insert(0_u64) += 1;
            shims.extend(task.endpoint().ok());
            if task.is_silent() {
                silent.push(task);
            }
        }
        let mut family = text.family("containerd_tasks", Kind::Gauge, "Tasks by state.");
        for state in STATES.map(word) {
            let count = by_state.get(state).copied().unwrap_or_default();
            family.add(&[("state", state)], count);
        }
        text.one(
            "containerd_shims",
            Kind::Gauge,
            "Shims in use.",
            shims.len(),
        );
        let name = "containerd_tasks_silent";
        let help = "Tasks whose shim does not answer.";
        text.one(name, Kind::Gauge, help, silent.len());
        let help = "Names of tasks whose shim does not answer, not of more than a hundred.";
        let mut family = text.family("containerd_task_silent", Kind::Gauge, help);
        for task in silent.iter().take(NAMED) {
            let labels = [
                ("namespace", task.namespace().as_str()),
                ("container", task.id().as_str()),
            ];
            family.add(&labels, 1);
        }
    }

    fn events(&self, text: &mut Text) {
        let counts = self.events.counts();
        let name = "containerd_events_published_total";
        text.one(name, Kind::Counter, "Events published.", counts.published);
        let name = "containerd_event_subscribers";
        text.one(name, Kind::Gauge, "Event subscribers.", counts.subscribers);
        let name = "containerd_event_subscribers_dropped_total";
        let help = "Event subscribers that were cut off since they were too slow.";
        text.one(name, Kind::Counter, help, counts.cut_off);
    }

    fn collections(&self, text: &mut Text) {
        let totals = self.metadata.gc_totals();
        let name = "containerd_gc_collections_total";
        let mut family = text.family(name, Kind::Counter, "Garbage collections by outcome.");
        family.add(&[("status", "success")], totals.runs);
        family.add(&[("status", "fail")], totals.failed);
        let name = "containerd_gc_gc_seconds";
        let help = "How long garbage collections took.";
        let mut family = text.family(name, Kind::Histogram, help);
        let counts = totals.took.into_iter();
        family.histogram(&[], &metadata::gc::TOOK, counts, totals.elapsed);
        let name = "containerd_gc_pause_seconds_total";
        let help = "Time that writers waited for garbage collections.";
        text.one(name, Kind::Counter, help, totals.pause.as_secs_f64());
        let name = "containerd_gc_removed_total";
        let help = "What garbage collections removed from the backends.";
        let mut family = text.family(name, Kind::Counter, help);
        family.add(&[("kind", "blob")], totals.blobs);
        family.add(&[("kind", "snapshot")], totals.snapshots);
    }
}

/// Serves them where the configuration says. `is_handed`: another daemon of this place may still be there
/// for a moment, and is waited for.
///
/// # Errors
/// `InvalidArgument` for what is no address; `Unavailable` when another process serves there.
pub(crate) async fn start(engine: &Engine, config: &Config, is_handed: bool) -> Result<()> {
    let Metrics {
        address,
        grpc_histogram,
    } = &config.metrics;
    if address.is_empty() || !config.enabled(SERVER) {
        return Ok(());
    }
    let address = web::address(address)?;
    let counters = Counters::new(engine, *grpc_histogram);
    let listener = match is_handed {
        true => None,
        false => web::bind(address).await?,
    };
    tokio::spawn(async move {
        let listener = match listener {
            Some(listener) => listener,
            None => web::bind_late(address).await,
        };
        tracing::info!(%address, "metrics are served");
        let answer = move |path: String| {
            let counters = counters.clone();
            async move { counters.answer(&path).await }
        };
        web::serve(web::incoming(listener), answer).await;
    });
    Ok(())
}

const STATES: [Status; 6] = [
    Status::Unknown,
    Status::Created,
    Status::Running,
    Status::Stopped,
    Status::Paused,
    Status::Pausing,
];

const fn word(status: Status) -> &'static str {
    match status {
        Status::Unknown => "unknown",
        Status::Created => "created",
        Status::Running => "running",
        Status::Stopped => "stopped",
        Status::Paused => "paused",
        Status::Pausing => "pausing",
    }
}

/// Calls of the methods that somebody has called.
fn calls(text: &mut Text, histogram: bool) {
    let called = || meter::all().iter().filter(|meter| meter.begun() > 0);
    let name = "grpc_server_started_total";
    let mut family = text.family(name, Kind::Counter, "Calls begun, by method.");
    for meter in called() {
        family.add(&labels(meter), meter.begun());
    }
    let name = "grpc_server_handled_total";
    let mut family = text.family(name, Kind::Counter, "Calls ended, by method and code.");
    for meter in called() {
        let [kind, service, method] = labels(meter);
        for (code, count) in meter.ended().filter(|(_, count)| *count > 0) {
            family.add(&[kind, service, method, ("grpc_code", code)], count);
        }
    }
    for (name, help, count) in [
        (
            "grpc_server_msg_received_total",
            "Messages received, by method.",
            Meter::received as fn(&Meter) -> u64,
        ),
        (
            "grpc_server_msg_sent_total",
            "Messages sent, by method.",
            Meter::sent,
        ),
    ] {
        let mut family = text.family(name, Kind::Counter, help);
        for meter in called() {
            family.add(&labels(meter), count(meter));
        }
    }
    if histogram {
        let name = "grpc_server_handling_seconds";
        let mut family = text.family(name, Kind::Histogram, "How long calls took, by method.");
        for meter in called() {
            let (ends, counts) = (&meter::BUCKETS, meter.took());
            family.histogram(&labels(meter), ends, counts, meter.total());
        }
    }
    if let Some((sent, dropped)) = traces::counts() {
        let name = "containerd_traces_total";
        let mut family = text.family(name, Kind::Counter, "Traces by outcome.");
        family.add(&[("status", "sent")], sent);
        family.add(&[("status", "dropped")], dropped);
    }
    let counts = recorder::counts();
    let name = "containerd_calls_waiting";
    let help = "Calls and other work in flight that wait for something.";
    text.one(name, Kind::Gauge, help, counts.in_flight);
}

fn labels(meter: &Meter) -> [(&'static str, &'static str); 3] {
    let path = meter.path.trim_start_matches('/');
    let (service, method) = path.split_once('/').unwrap_or((path, ""));
    [
        ("grpc_type", meter.kind),
        ("grpc_service", service),
        ("grpc_method", method),
    ]
}

fn transferred(text: &mut Text, transfers: &Transfers) {
    let all: Vec<_> = transfers.counts().told().collect();
    let name = "containerd_transfers_running";
    let mut family = text.family(name, Kind::Gauge, "Transfers under way, by kind.");
    for told in &all {
        family.add(&[("kind", told.kind)], told.running);
    }
    let name = "containerd_transfers_total";
    let mut family = text.family(name, Kind::Counter, "Transfers ended, by kind and outcome.");
    for told in &all {
        family.add(&[("kind", told.kind), ("status", "success")], told.done);
        family.add(&[("kind", told.kind), ("status", "fail")], told.failed);
    }
    let name = "containerd_transfers_seconds_total";
    let mut family = text.family(name, Kind::Counter, "Time that transfers took, by kind.");
    for told in &all {
        family.add(&[("kind", told.kind)], told.took.as_secs_f64());
    }
}

/// The daemon's own process, in the words of all of Prometheus's clients.
fn process(text: &mut Text) {
    let Ok(usage) = sys::usage::Usage::of_this_process() else {
        return;
    };
    for (name, help, value) in [
        (
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            usage.resident,
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            usage.size,
        ),
        (
            "process_open_fds",
            "Number of open file descriptors.",
            usage.files,
        ),
        (
            "process_max_fds",
            "Maximum number of open file descriptors.",
            usage.most_files,
        ),
        ("process_threads", "Number of threads.", usage.threads),
    ] {
        text.one(name, Kind::Gauge, help, value);
    }
    let name = "process_cpu_seconds_total";
    let help = "Total user and system CPU time spent in seconds.";
    text.one(name, Kind::Counter, help, usage.cpu.as_secs_f64());
    let name = "process_start_time_seconds";
    let help = "Start time of the process since unix epoch in seconds.";
    let began = usage.began.duration_since(std::time::UNIX_EPOCH);
    let began = began.unwrap_or_default().as_secs_f64();
    text.one(name, Kind::Gauge, help, began);
    let name = "containerd_heap_in_use_bytes";
    let help = "Memory that is allocated and not freed.";
    text.one(name, Kind::Gauge, help, sys::limits::heap_in_use());
}
