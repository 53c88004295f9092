//! Hundreds of short containers while the daemon is killed at random: each ends once, with its own code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use integration::{Host, Oci, PATIENCE, need};
use protos::events::TaskExit;
use protos::services::{containers, events, snapshots, tasks};
use protos::types::{Envelope, Mount};
use protos::well_known::Any;
use protos::{Message as _, MessageField};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

const AT_A_TIME: u32 = 8;
/// The daemon lives at most so much longer than it took to be born, ms.
const LONGEST_LIFE: u64 = 1_500;
/// Work goes on until the daemon has died so often, however fast the machine is.
const DEATHS: u32 = 6;
/// Pause before the next attempt to reach a daemon that is gone.
const PAUSE: Duration = Duration::from_millis(10);

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// SplitMix64: the same moments and codes for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// What one worker needs to run containers.
struct Client {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    namespace: String,
    parent: String,
    marks: PathBuf,
    options: Any,
}

fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
        let socket = socket.clone();
        async move {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// True when the daemon's death says nothing about what was asked.
fn is_lost(status: &Status) -> bool {
    let text = status.to_string();
    let broken = [
        "transport error",
        "h2 protocol error",
        "connection",
        "broken pipe",
    ];
    status.code() == Code::Unavailable || broken.iter().any(|word| text.contains(word))
}

impl Client {
    fn new(host: &Host, parent: &str, marks: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("start a runtime");
        let _inside = runtime.enter();
        let options = protos::runc::Options {
            binary_name: need("crun").to_string_lossy().into_owned(),
            ..Default::default()
        };
        Self {
            channel: channel(&host.address()),
            namespace: host.namespace().to_owned(),
            parent: parent.to_owned(),
            marks: marks.to_owned(),
            options: Any {
                type_url: "containerd.runc.v1.Options".into(),
                value: options.write_to_bytes().expect("encode"),
                ..Default::default()
            },
            runtime,
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let value = self.namespace.parse().expect("a header value");
        request.metadata_mut().insert("containerd-namespace", value);
        request
    }

    /// Asks until there is an answer from a daemon that lives.
    fn ask<Q: Clone, A>(
        &self,
        message: &Q,
        call: impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Status> {
        let began = Instant::now();
        let (mut lost, mut longest) = (0, Duration::ZERO);
        loop {
            let request = self.request(message.clone());
            let asked = Instant::now();
            let done = self.runtime.block_on(async {
                let called = call(self.channel.clone(), request);
                let limited = tokio::time::timeout(PATIENCE, called).await;
                limited.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
            });
            match done {
                Err(status) if is_lost(&status) => {
                    lost += 1;
                    longest = longest.max(asked.elapsed());
                    let told = format!("{status}: {lost} answers lost, after {longest:?} at most");
                    assert!(began.elapsed() < PATIENCE, "{told}");
                    std::thread::sleep(PAUSE);
                }
                done => return done.map(Response::into_inner),
            }
        }
    }

    fn mounts(&self, id: &str) -> Vec<Mount> {
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            parent: self.parent.clone(),
            labels: [("containerd.io/gc.root".to_owned(), "story".to_owned())].into(),
            ..Default::default()
        };
        let made = self.ask(&prepare, async |channel, request| {
            grpc::snapshots::SnapshotsClient::new(channel)
                .prepare(request)
                .await
        });
        match made {
            Ok(made) => return made.mounts,
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
        let mounts = snapshots::MountsRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            ..Default::default()
        };
        let found = self.ask(&mounts, async |channel, request| {
            grpc::snapshots::SnapshotsClient::new(channel)
                .mounts(request)
                .await
        });
        found.expect("mounts").mounts
    }

    fn record(&self, id: &str, code: u32) {
        // The mark tells how often it ran.
        let script = format!("echo ran >>/marks/{id}; exit {code}");
        let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/marks", "type": "bind", "source": self.marks,
                    "options": ["rbind", "rw"]},
            ],
            "linux": {"cgroupsPath": format!("/{}/{id}", self.namespace), "namespaces": namespaces},
        });
        let container = containers::Container {
            id: id.into(),
            snapshotter: "overlayfs".into(),
            snapshot_key: id.into(),
            runtime: MessageField::some(containers::container::Runtime {
                name: "io.containerd.runc.v2".into(),
                options: MessageField::some(self.options.clone()),
                ..Default::default()
            }),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: spec.to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let create = containers::CreateContainerRequest {
            container: MessageField::some(container),
            ..Default::default()
        };
        let made = self.ask(&create, async |channel, request| {
            grpc::containers::ContainersClient::new(channel)
                .create(request)
                .await
        });
        if let Err(status) = made {
            assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        }
    }

    /// Creates and starts the task. What a daemon that died had begun is found or made again, but
    /// never made twice.
    fn start(&self, id: &str, mounts: &[Mount]) {
        let create = tasks::CreateTaskRequest {
            container_id: id.into(),
            rootfs: mounts.to_vec(),
            options: MessageField::some(self.options.clone()),
            ..Default::default()
        };
        let start = tasks::StartRequest {
            container_id: id.into(),
            ..Default::default()
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let created = self.ask(&create, async |channel, request| {
                grpc::tasks::TasksClient::new(channel).create(request).await
            });
            if let Err(status) = &created {
                assert_eq!(status.code(), Code::AlreadyExists, "create {id}: {status}");
            }
            let started = self.ask(&start, async |channel, request| {
                grpc::tasks::TasksClient::new(channel).start(request).await
            });
            let Err(refused) = started else { return };
            match refused.code() {
                // A start whose answer was lost.
                Code::FailedPrecondition => return,
                // That, and it has ended since: its mark is older than its end.
                _ if self.marks.join(id).exists() => return,
                // What was half made has been cleaned up since.
                Code::NotFound if Instant::now() < deadline => {}
                _ => panic!("{id}: create {created:?}, start {refused:?}"),
            }
        }
    }

    /// Pid of the init.
    fn pid(&self, id: &str) -> u32 {
        let get = tasks::GetRequest {
            container_id: id.into(),
            ..Default::default()
        };
        let found = self.ask(&get, async |channel, request| {
            grpc::tasks::TasksClient::new(channel).get(request).await
        });
        let found = found.unwrap_or_else(|status| panic!("get {id}: {status}"));
        found.process.pid
    }

    /// What Wait, asked twice, and Delete say.
    fn ends(&self, id: &str) -> [u32; 3] {
        let wait = tasks::WaitRequest {
            container_id: id.into(),
            ..Default::default()
        };
        let [first, second] = [(); 2].map(|()| {
            let told = self.ask(&wait, async |channel, request| {
                grpc::tasks::TasksClient::new(channel).wait(request).await
            });
            told.unwrap_or_else(|status| panic!("wait {id}: {status}"))
                .exit_status
        });
        let delete = tasks::DeleteTaskRequest {
            container_id: id.into(),
            ..Default::default()
        };
        let deleted = self.ask(&delete, async |channel, request| {
            grpc::tasks::TasksClient::new(channel).delete(request).await
        });
        match deleted {
            Ok(deleted) => [first, second, deleted.exit_status],
            // Done by the call whose answer was lost.
            Err(status) if status.code() == Code::NotFound => [first, second, second],
            Err(status) => panic!("delete {id}: {status}"),
        }
    }

    fn remove(&self, id: &str) {
        let delete = containers::DeleteContainerRequest {
            id: id.into(),
            ..Default::default()
        };
        let gone = self.ask(&delete, async |channel, request| {
            grpc::containers::ContainersClient::new(channel)
                .delete(request)
                .await
        });
        let remove = snapshots::RemoveSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            ..Default::default()
        };
        let removed = self.ask(&remove, async |channel, request| {
            grpc::snapshots::SnapshotsClient::new(channel)
                .remove(request)
                .await
        });
        for done in [gone, removed] {
            if let Err(status) = done {
                assert_eq!(status.code(), Code::NotFound, "{id}: {status}");
            }
        }
    }
}

/// An exit, and the subscription that it came by: none lives longer than its daemon.
type Heard = (u32, TaskExit);

/// Hears exits as long as `on`; those while nobody was connected are missed.
fn listen(client: &Client, on: &AtomicBool, heard: &Mutex<Vec<Heard>>) {
    let mut subscription = 0;
    while on.load(Ordering::Relaxed) {
        subscription += 1;
        let request = client.request(events::SubscribeRequest {
            filters: vec!["topic==\"/tasks/exit\"".into()],
            ..Default::default()
        });
        client.runtime.block_on(async {
            let channel = client.channel.clone();
            let subscribed = grpc::events::EventsClient::new(channel)
                .subscribe(request)
                .await;
            let mut stream = match subscribed {
                Ok(stream) => stream.into_inner(),
                Err(status) => {
                    assert!(is_lost(&status), "subscribe: {status}");
                    tokio::time::sleep(PAUSE).await;
                    return;
                }
            };
            while on.load(Ordering::Relaxed) {
                let next = tokio::time::timeout(Duration::from_millis(100), stream.message());
                let envelope: Envelope = match next.await {
                    Err(_) => continue,
                    Ok(Ok(Some(envelope))) => envelope,
                    Ok(_) => return,
                };
                let exit = TaskExit::parse_from_bytes(&envelope.event.value).expect("an exit");
                heard.lock().expect("lock").push((subscription, exit));
            }
        });
    }
}

/// What the workers share.
struct Work {
    /// At least so many containers.
    count: u64,
    seed: u64,
    next: AtomicU64,
    /// How often the daemon was killed.
    deaths: AtomicU32,
    /// Pid and exit code of each container.
    ran: Mutex<BTreeMap<String, (u32, u32)>>,
    heard: Mutex<Vec<Heard>>,
    /// Work and listening go on.
    on: AtomicBool,
}

/// Ends them with the test, however that ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Work {
    fn new(count: u64, seed: u64) -> Self {
        Self {
            count,
            seed,
            next: AtomicU64::new(0),
            deaths: AtomicU32::new(0),
            ran: Mutex::default(),
            heard: Mutex::default(),
            on: AtomicBool::new(true),
        }
    }

    /// Runs one container after the other until there were enough of them, and of deaths.
    fn run(&self, client: &Client) {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let enough = n >= self.count && self.deaths.load(Ordering::Relaxed) >= DEATHS;
            if enough || !self.on.load(Ordering::Relaxed) {
                return;
            }
            // The same code for the same number and seed, whoever gets it when.
            let code = Dice(self.seed.wrapping_add(n << 32)).roll(128);
            let code = u32::try_from(code).expect("small");
            let id = format!("c{n}");
            let mounts = client.mounts(&id);
            client.record(&id, code);
            client.start(&id, &mounts);
            let pid = client.pid(&id);
            let ran = (pid, code);
            self.ran.lock().expect("lock").insert(id.clone(), ran);
            assert_eq!(client.ends(&id), [code; 3], "{id}");
            client.remove(&id);
        }
    }

    /// Every container ran once, and all events about it say the same; one daemon says it once. The
    /// number of those that were heard of, and of all.
    fn agree(self, marks: &Path) -> (usize, usize) {
        let (heard, ran) = (self.heard.into_inner(), self.ran.into_inner());
        let (heard, ran) = (heard.expect("lock"), ran.expect("lock"));
        for (id, (_, code)) in &ran {
            let runs = std::fs::read_to_string(marks.join(id));
            assert_eq!(runs.expect("it ran"), "ran\n", "{id} with code {code}");
        }
        let mut told: BTreeMap<&str, &TaskExit> = BTreeMap::new();
        let mut once = BTreeSet::new();
        for (subscription, exit) in &heard {
            let id = exit.container_id.as_str();
            assert!(
                once.insert((subscription, id, exit.pid)),
                "twice by one daemon: {exit:?}"
            );
            let (pid, code) = ran[id];
            if exit.pid == pid {
                // Told again after a lost answer: the very same.
                assert_eq!(*told.entry(id).or_insert(exit), exit);
                assert_eq!(exit.exit_status, code, "{id}");
            } else {
                // Made by a daemon that died over it, and cleaned up without having run.
                assert_eq!(exit.exit_status, 137, "{exit:?}");
            }
        }
        (told.len(), ran.len())
    }
}

/// Chain id of the image's only layer.
fn layer(host: &Host) -> String {
    let table = host.ctr(["snapshots", "ls"]).ok();
    let mut rows = table.lines().filter(|l| l.contains("Committed"));
    let row = rows.next().expect("a layer");
    row.split_whitespace().next().expect("a key").to_owned()
}

#[test]
fn every_container_has_one_true_exit_whatever_happens_to_the_daemon() {
    let (count, seed) = (number("CONTAINERS", 500), number("SEED", 20_261_125));
    // Shown when the test fails.
    println!("CONTAINERS={count} SEED={seed}");
    let mut host = Host::with("true-exits", Oci::Crun);
    host.image();
    let parent = layer(&host);
    let marks = host.path("marks");
    std::fs::create_dir(&marks).expect("make the marks' directory");
    let mut dice = Dice(seed);
    let work = Work::new(count, seed);
    let new_client = || Client::new(&host, &parent, &marks);
    let clients: Vec<Client> = (0..AT_A_TIME).map(|_| new_client()).collect();
    let listener = new_client();
    let mut born = Duration::ZERO;
    std::thread::scope(|scope| {
        let _stop = Stop(&work.on);
        let workers: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(|| work.run(client)))
            .collect();
        scope.spawn(|| listen(&listener, &work.on, &work.heard));
        let ended = std::thread::ScopedJoinHandle::is_finished;
        while !workers.iter().all(ended) {
            // On a busy machine it is born more slowly, and gets less done.
            let life = born + Duration::from_millis(dice.roll(LONGEST_LIFE));
            std::thread::sleep(life);
            host.kill();
            let death = Instant::now();
            host.start();
            born = death.elapsed();
            work.deaths.fetch_add(1, Ordering::Relaxed);
        }
    });
    let deaths = work.deaths.load(Ordering::Relaxed);
    let (heard, all) = work.agree(&marks);
    println!("{heard} of {all} were heard, {deaths} deaths");
    assert!(heard > 0, "no exit was heard");
    host.finish();
}
