//! Recovery after a restart, against shims made up here: alive, old, silent, dead, empty.
//!
//! The binary of these shims is a script that notes its calls and answers `delete` as Go shims do.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod cut;
mod empty;
mod group;
mod making;
#[path = "../../src/testing.rs"]
mod testing;
mod unknown;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use protos::Message as _;
use protos::shim::task as wire;
use protos::shim::{task_v2_ttrpc, task_v3_ttrpc};
use runtime_v2::{Config, Status, TaskManager, Tasks};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Notify, Semaphore};
use ttrpc::asynchronous::{Server, TtrpcContext};
use types::{ContainerId, Event, Namespace};

use testing::{dead_socket, program};

const SOON: Duration = Duration::from_secs(60);
const PID: u32 = 4242;

/// A shim with one running task, or with none.
struct Fake {
    has_task: bool,
    shim: u32,
    init: u32,
}

fn unknown() -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(
        ttrpc::Code::NOT_FOUND,
        "container not created: not found",
    ))
}

impl Fake {
    fn new(has_task: bool) -> Self {
        Self {
            has_task,
            // One that has no task may be killed: it must not be this process.
            shim: if has_task { std::process::id() } else { 0 },
            init: PID,
        }
    }

    fn connect(&self) -> wire::ConnectResponse {
        wire::ConnectResponse {
            shim_pid: self.shim,
            task_pid: self.init,
            ..Default::default()
        }
    }

    fn state(&self) -> ttrpc::Result<wire::StateResponse> {
        if !self.has_task {
            return Err(unknown());
        }
        Ok(wire::StateResponse {
            pid: self.init,
            status: protos::task::Status::RUNNING.into(),
            stdout: "/out".into(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl task_v3_ttrpc::Task for Fake {
    async fn connect(
        &self,
        _: &TtrpcContext,
        _: wire::ConnectRequest,
    ) -> ttrpc::Result<wire::ConnectResponse> {
        Ok(Fake::connect(self))
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        _: wire::StateRequest,
    ) -> ttrpc::Result<wire::StateResponse> {
        Fake::state(self)
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        _: wire::DeleteRequest,
    ) -> ttrpc::Result<wire::DeleteResponse> {
        Ok(wire::DeleteResponse {
            pid: self.init,
            ..Default::default()
        })
    }

    /// Hears it and never answers.
    async fn start(
        &self,
        _: &TtrpcContext,
        _: wire::StartRequest,
    ) -> ttrpc::Result<wire::StartResponse> {
        std::future::pending().await
    }

    /// The same.
    async fn kill(
        &self,
        _: &TtrpcContext,
        _: wire::KillRequest,
    ) -> ttrpc::Result<protos::well_known::Empty> {
        std::future::pending().await
    }
}

#[async_trait]
impl task_v2_ttrpc::Task for Fake {
    async fn connect(
        &self,
        _: &TtrpcContext,
        _: wire::ConnectRequest,
    ) -> ttrpc::Result<wire::ConnectResponse> {
        Ok(Fake::connect(self))
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        _: wire::StateRequest,
    ) -> ttrpc::Result<wire::StateResponse> {
        Fake::state(self)
    }
}

struct Home {
    dir: tempfile::TempDir,
    events: Mutex<UnboundedReceiver<(Namespace, Event)>>,
    config: Config,
}

fn ns() -> Namespace {
    "ns".parse().unwrap()
}

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = unbounded_channel();
        let script = format!(
            "#!/bin/sh\necho \"$*\" >> {0}/calls\necho noise >&2\ncat {0}/answer\n",
            dir.path().display()
        );
        let binary = dir.path().join("shim");
        program(&binary, &script);
        let config = Config {
            root: dir.path().join("root"),
            state: dir.path().join("state"),
            grpc_address: "/grpc".into(),
            ttrpc_address: "/ttrpc".into(),
            containerd_binary: "/bin/containerd".into(),
            default_runtime: "x.none.v0".into(),
            debug: false,
            sched_core: false,
            most_at_once: 0,
            publisher: Arc::new(move |namespace, event| drop(sender.send((namespace, event)))),
            runtime_of: Arc::new(|_, _| None),
        };
        let home = Self {
            dir,
            events: Mutex::new(receiver),
            config,
        };
        home.answer(PID);
        home
    }

    /// What `delete` tells of the container's process.
    fn answer(&self, pid: u32) {
        let answer = wire::DeleteResponse {
            pid,
            exit_status: 137,
            ..Default::default()
        };
        let text = answer.write_to_bytes().unwrap();
        std::fs::write(self.dir.path().join("answer"), text).unwrap();
    }

    fn bundle(&self, name: &str) -> PathBuf {
        let tasks = self.config.state.join("io.containerd.runtime.v2.task/ns");
        tasks.join(name)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle as an earlier daemon left it.
    fn leave(&self, name: &str, version: i32) {
        let bundle = self.bundle(name);
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let work = self
            .config
            .root
            .join("io.containerd.runtime.v2.task/ns")
            .join(name);
        std::fs::create_dir_all(work).unwrap();
        let binary = self.dir.path().join("shim");
        let put = |file: &str, text: &str| std::fs::write(bundle.join(file), text).unwrap();
        put("shim-binary-path", binary.to_str().unwrap());
        let socket = self.socket(name);
        put(
            "bootstrap.json",
            &format!(
                "{{\"version\":{version},\"address\":\"unix://{}\",\"protocol\":\"ttrpc\"}}",
                socket.display()
            ),
        );
    }

    /// A socket that nobody listens on any more.
    fn dead_socket(&self, name: &str) {
        dead_socket(&self.socket(name));
    }

    /// Makes a bundle one of before the machine was started.
    fn age(&self, name: &str) {
        let spec = std::fs::File::create(self.bundle(name).join("config.json")).unwrap();
        spec.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }

    async fn recover(&self) -> Arc<Tasks> {
        let tasks = Tasks::open(self.config.clone()).unwrap();
        within(tasks.recover()).await;
        tasks
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default()
    }

    fn events(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap();
        std::iter::from_fn(|| events.try_recv().ok())
            .map(|(_, event)| event)
            .collect()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

async fn serve(path: &Path, services: Vec<Services>) -> Server {
    let address = format!("unix://{}", path.display());
    let mut server = Server::new().bind(&address).unwrap();
    for service in services {
        server = server.register_service(service);
    }
    server.start().await.unwrap();
    server
}

type Services = std::collections::HashMap<String, ttrpc::asynchronous::Service>;

fn v3(has_task: bool) -> Services {
    task_v3_ttrpc::create_task(Arc::new(Fake::new(has_task)))
}

fn v2(has_task: bool) -> Services {
    task_v2_ttrpc::create_task(Arc::new(Fake::new(has_task)))
}

#[tokio::test]
async fn live_tasks_are_found_whatever_their_shim_speaks() {
    let home = Home::new();
    let mut servers = Vec::new();
    for (name, said, services) in [
        ("new", 3, vec![v3(true)]),
        ("both", 3, vec![v3(true), v2(true)]),
        ("old", 2, vec![v2(true)]),
        // Says 3 but has only 2: the fallback that Go daemons know, too.
        ("mixed", 3, vec![v2(true)]),
    ] {
        home.leave(name, said);
        servers.push(serve(&home.socket(name), services).await);
    }
    // It runs: what it was restored from was to go when the daemon ended.
    let work = home
        .config
        .root
        .join("io.containerd.runtime.v2.task/ns/old");
    let checkpoint = work.join("checkpoint");
    std::fs::create_dir(&checkpoint).unwrap();
    let tasks = home.recover().await;
    let served = async {
        while checkpoint.exists() {
            tokio::task::yield_now().await;
        }
    };
    within(served).await;
    for task in tasks.list(None).await.unwrap() {
        let state = within(task.state(None)).await.unwrap();
        assert_eq!(
            (state.status, state.pid, state.stale),
            (Status::Running, PID, false)
        );
        assert_eq!(state.stdio.stdout, "/out");
        assert_eq!(task.known(None).unwrap().status, Status::Running);
    }
    assert_eq!(tasks.list(Some(&ns())).await.unwrap().len(), 4);
    assert_eq!(home.calls(), "");
    assert!(home.events().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_silent_shim_keeps_its_task() {
    let home = Home::new();
    home.leave("c1", 3);
    // Accepts and never answers.
    let listener = UnixListener::bind(home.socket("c1")).unwrap();
    let tasks = home.recover().await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    assert!(task.state(None).await.unwrap().stale);
    for error in [
        task.kill(None, 9, false).await.unwrap_err(),
        tasks.delete(&ns(), &id("c1")).await.unwrap_err(),
    ] {
        assert!(error.is(types::Code::Unavailable), "{error}");
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(tasks.list(None).await.unwrap().len(), 1);
    assert!(home.bundle("c1").join("bootstrap.json").exists());
    assert_eq!(home.calls(), "");
    assert!(home.events().is_empty());
    drop(listener);
}

#[tokio::test]
async fn the_exit_that_the_shim_recorded_is_told() {
    let home = Home::new();
    home.leave("c1", 3);
    home.dead_socket("c1");
    let exit = r#"{"pid":77,"status":3,"exited_at":1700000000000000000,"oom":true}"#;
    std::fs::write(home.bundle("c1").join("exit"), exit).unwrap();
    let stdio = r#"{"stdin":"","stdout":"/fifo/out","stderr":"/fifo/err","terminal":false}"#;
    std::fs::write(home.bundle("c1").join("stdio.json"), stdio).unwrap();
    let tasks = home.recover().await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    let exit = within(task.wait(None)).await.unwrap();
    assert_eq!((exit.pid, exit.status), (77, 3));
    let state = task.state(None).await.unwrap();
    assert_eq!((state.status, state.stale), (Status::Stopped, false));
    // Whoever deletes it removes its pipes, too.
    assert_eq!(
        (&*state.stdio.stdout, &*state.stdio.stderr),
        ("/fifo/out", "/fifo/err")
    );
    assert!(home.calls().ends_with("delete\n"), "{}", home.calls());
    assert!(!home.bundle("c1").exists());
    assert!(!home.socket("c1").exists());
    // Whether the shim still published it nobody knows: told again.
    let topics: Vec<_> = home.events().iter().map(Event::topic).collect();
    assert_eq!(topics, ["/tasks/oom", "/tasks/exit", "/tasks/delete"]);
    assert_eq!(tasks.delete(&ns(), &id("c1")).await.unwrap(), exit);
    assert!(tasks.list(None).await.unwrap().is_empty());
}

#[tokio::test]
async fn without_a_record_the_clean_up_tells_the_exit() {
    let home = Home::new();
    // Of an earlier boot.
    home.leave("c1", 3);
    home.age("c1");
    home.leave("c2", 3);
    home.dead_socket("c2");
    // Never started; no binary known, none in the container's record.
    home.leave("c3", 3);
    for file in ["shim-binary-path", "bootstrap.json"] {
        std::fs::remove_file(home.bundle("c3").join(file)).unwrap();
    }
    let tasks = home.recover().await;
    let mut told = Vec::new();
    for name in ["c1", "c2", "c3"] {
        let task = tasks.get(&ns(), &id(name)).await.unwrap();
        told.push(within(task.wait(None)).await.unwrap().status);
        assert!(!home.bundle(name).exists());
    }
    assert_eq!(told, [137, 137, 255]);
    let mut topics: Vec<_> = home.events().iter().map(Event::topic).collect();
    topics.sort_unstable();
    assert_eq!(topics, [["/tasks/delete"; 3], ["/tasks/exit"; 3]].concat());
}

/// Passes connections on to a shim, until it is told to cut them.
async fn relay(front: UnixListener, back: PathBuf, cut: Arc<Notify>, seen: Arc<Semaphore>) {
    loop {
        let (mut near, _) = front.accept().await.unwrap();
        seen.add_permits(1);
        let mut far = UnixStream::connect(&back).await.unwrap();
        let cut = Arc::clone(&cut);
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = cut.notified() => {}
            }
        });
    }
}

#[tokio::test]
async fn a_cut_connection_is_made_again_and_a_dead_shim_is_noticed() {
    let home = Home::new();
    home.leave("c1", 3);
    let back = home.socket("back");
    let _server = serve(&back, vec![v3(true)]).await;
    let cut = Arc::new(Notify::new());
    let front = UnixListener::bind(home.socket("c1")).unwrap();
    let accepted = Arc::new(Semaphore::new(0));
    let relay = tokio::spawn(relay(front, back, Arc::clone(&cut), Arc::clone(&accepted)));
    let tasks = home.recover().await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    assert!(!task.state(None).await.unwrap().stale);
    cut.notify_waiters();
    within(accepted.acquire_many(2)).await.unwrap().forget();
    let fresh = async { while task.state(None).await.unwrap().stale {} };
    within(fresh).await;
    assert_eq!(home.calls(), "");

    // A shim's own pid is alive here (it is ours): only the refused connection counts.
    relay.abort();
    assert!(relay.await.unwrap_err().is_cancelled());
    cut.notify_waiters();
    assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
    assert!(home.calls().ends_with("delete\n"), "{}", home.calls());
}

#[tokio::test]
async fn an_id_is_taken_while_its_shim_is_looked_for_and_free_when_it_is_gone() {
    let home = Home::new();
    home.leave("c1", 3);
    home.dead_socket("c1");
    let tasks = Tasks::open(home.config.clone()).unwrap();
    let scope = types::Scope::new(ns());
    let opts = |runtime: &Path| runtime_v2::CreateOpts {
        spec: b"{}".to_vec(),
        rootfs: Vec::new(),
        stdio: runtime_v2::Stdio::default(),
        runtime: runtime.display().to_string(),
        options: None,
        checkpoint: None,
        sandbox: String::new(),
    };
    let shim = home.dir.path().join("shim");
    let taken = tasks
        .create(&scope, &id("c1"), opts(&shim))
        .await
        .unwrap_err();
    assert!(taken.is_already_exists(), "{taken}");
    within(tasks.recover()).await;
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    within(task.wait(None)).await.unwrap();
    // This shim cannot start anything, but the id is free to try.
    let failed = within(tasks.create(&scope, &id("c1"), opts(&shim)))
        .await
        .unwrap_err();
    assert!(
        failed.to_string().contains("shim answered no address"),
        "{failed}"
    );
    assert!(!home.bundle("c1").exists());
    // And the one before can still be asked for its exit.
    let task = tasks.get(&ns(), &id("c1")).await.unwrap();
    assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
    assert_eq!(
        within(tasks.delete(&ns(), &id("c1"))).await.unwrap().status,
        137
    );
    tasks.get(&ns(), &id("c1")).await.unwrap_err();
}
