//! The whole way with real parts: the Go shim and runc of the distribution, a container of busybox.
//!
//! Every test has a private root and state and proves that it left no bundle, mount or process.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

mod home;
#[path = "../../src/testing.rs"]
#[expect(dead_code, reason = "some helpers are for other tests")]
mod testing;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use runtime_v2::{ExecOpts, Status, Stdio, TaskManager};
use serde_json::json;
use types::{Any, Code, ContainerId, Namespace, Scope};

use home::{Home, SOON, until};

fn scope() -> Scope {
    Scope::new("test".parse().unwrap())
}

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

fn ns() -> Namespace {
    scope().namespace
}

async fn pid_in(file: &Path) -> u32 {
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(pid) = text.strip_suffix('\n') {
            return pid.parse().unwrap();
        }
        tokio::task::yield_now().await;
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_from_create_to_delete() {
    let home = Home::new();
    let tasks = home.open().await;
    let task = within(tasks.create(&scope(), &id("c1"), home.opts("exit 7")))
        .await
        .unwrap();
    assert_eq!(task.state(None).await.unwrap().status, Status::Created);
    let waiting = {
        let task = Arc::clone(&task);
        tokio::spawn(async move { task.wait(None).await })
    };
    let again = tasks.create(&scope(), &id("c1"), home.opts("true")).await;
    assert!(again.unwrap_err().is_already_exists());
    assert_eq!(within(task.start(None)).await.unwrap(), task.pid());
    let exit = within(waiting).await.unwrap().unwrap();
    assert_eq!((exit.status, exit.pid), (7, task.pid()));
    let state = task.state(None).await.unwrap();
    assert_eq!(
        (state.status, state.exit.unwrap().0, state.stale),
        (Status::Stopped, 7, false)
    );
    assert_eq!(task.known(None).unwrap().status, Status::Stopped);
    let deleted = within(tasks.delete(&ns(), &id("c1"))).await.unwrap();
    assert_eq!(deleted.status, 7);
    assert!(
        tasks
            .get(&ns(), &id("c1"))
            .await
            .unwrap_err()
            .is_not_found()
    );
    home.assert_empty();
    let topics = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ];
    until("all events come", || *home.topics.lock().unwrap() == topics);
    let own = home.events.1.lock().unwrap().try_recv();
    assert!(own.is_err(), "the shim publishes its own events: {own:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_runs_beside_init() {
    let home = Home::new();
    let tasks = home.open().await;
    let task = within(tasks.create(&scope(), &id("c1"), home.opts("sleep 300")))
        .await
        .unwrap();
    within(task.start(None)).await.unwrap();
    let running = tasks.delete(&ns(), &id("c1")).await.unwrap_err();
    assert!(
        running.is(Code::Unknown) || running.is(Code::FailedPrecondition),
        "{running}"
    );
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", "exit 5"],
        "env": ["PATH=/bin"], "cwd": "/"
    });
    let exec = "e1".parse().unwrap();
    let opts = || ExecOpts {
        spec: Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(&process).unwrap(),
        },
        stdio: Stdio::default(),
    };
    within(task.exec(&exec, opts())).await.unwrap();
    assert!(
        task.exec(&exec, opts())
            .await
            .unwrap_err()
            .is_already_exists()
    );
    within(task.start(Some(&exec))).await.unwrap();
    assert_eq!(within(task.wait(Some(&exec))).await.unwrap().status, 5);
    assert_eq!(within(task.delete_exec(&exec)).await.unwrap().status, 5);
    assert!(task.state(Some(&exec)).await.unwrap_err().is_not_found());
    assert!(!within(task.pids()).await.unwrap().is_empty());
    within(task.pause()).await.unwrap();
    assert_eq!(task.state(None).await.unwrap().status, Status::Paused);
    within(task.resume()).await.unwrap();
    assert!(!within(task.stats()).await.unwrap().is_empty());
    within(task.kill(None, 9, false)).await.unwrap();
    assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
    within(tasks.delete(&ns(), &id("c1"))).await.unwrap();
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_create_leaves_nothing() {
    let home = Home::new();
    let tasks = home.open().await;
    let mut broken = home.opts("true");
    broken.spec =
        b"{\"ociVersion\":\"1.0.2\",\"process\":{\"args\":[\"/none\"],\"cwd\":\"/\"}}".to_vec();
    within(tasks.create(&scope(), &id("c1"), broken))
        .await
        .unwrap_err();
    home.assert_empty();
    let mut missing = home.opts("true");
    missing.runtime = "io.containerd.no-such.v2".into();
    let error = tasks
        .create(&scope(), &id("c1"), missing)
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let mut unstartable = home.opts("true");
    unstartable.runtime = "/bin/false".into();
    let error = within(tasks.create(&scope(), &id("c1"), unstartable))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("start shim /bin/false"),
        "{error}"
    );
    home.assert_empty();
    // The id is free again.
    within(tasks.create(&scope(), &id("c1"), home.opts("true")))
        .await
        .unwrap();
    within(
        tasks
            .get(&ns(), &id("c1"))
            .await
            .unwrap()
            .kill(None, 9, false),
    )
    .await
    .unwrap();
    within(tasks.get(&ns(), &id("c1")).await.unwrap().wait(None))
        .await
        .unwrap();
    within(tasks.delete(&ns(), &id("c1"))).await.unwrap();
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_caller_goes_away_is_undone() {
    let home = Home::new();
    let tasks = home.open().await;
    let started = home.dir.path().join("started");
    let stuck = home.dir.path().join("stuck-runc");
    let script = format!(
        "#!/bin/sh\nfor word; do [ \"$word\" = create ] && {{ echo $$ > {}; exec sleep 300; }}; done\n\
         exec runc \"$@\"\n",
        started.display()
    );
    testing::program(&stuck, &script);
    let mut opts = home.opts("true");
    let options = protos::runc::Options {
        binary_name: stuck.display().to_string(),
        ..Default::default()
    };
    opts.options = Some(protos::any::pack(&options).unwrap());
    let (scope, id) = (scope(), id("c1"));
    // `None` when it has ended already: Go shims end it when the connection of its request ends.
    let runtime;
    tokio::select! {
        created = tasks.create(&scope, &id, opts) => panic!("cannot be created: {created:?}"),
        pid = within(pid_in(&started)) => runtime = sys::pidfd::open(pid).ok(),
    }
    // Its id is free when everything is undone.
    let next = async {
        loop {
            match tasks.create(&scope, &id, home.opts("exit 2")).await {
                Err(error) if error.is_already_exists() => tokio::task::yield_now().await,
                done => return done.unwrap(),
            }
        }
    };
    let task = within(next).await;
    within(task.start(None)).await.unwrap();
    assert_eq!(within(task.wait(None)).await.unwrap().status, 2);
    within(tasks.delete(&ns(), &id)).await.unwrap();
    home.assert_empty();
    until("the runtime ends", || {
        let alive = |fd| sys::pidfd::is_alive(fd).unwrap();
        !runtime.as_ref().is_some_and(alive)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_group_share_a_shim_until_the_last_is_deleted() {
    let home = Home::new();
    let tasks = home.open().await;
    let mut all = Vec::new();
    for name in ["c1", "c2"] {
        let mut opts = home.opts("sleep 300");
        let mut spec: serde_json::Value = serde_json::from_slice(&opts.spec).unwrap();
        spec["annotations"] = json!({"io.containerd.runc.v2.group": "pod"});
        opts.spec = serde_json::to_vec(&spec).unwrap();
        let (scope, id) = (scope(), id(name));
        let task = within(tasks.create(&scope, &id, opts)).await.unwrap();
        within(task.start(None)).await.unwrap();
        all.push(task);
    }
    let addresses = ["c1", "c2"].map(|name| home.address_of(name));
    assert_eq!(addresses[0], addresses[1]);
    for (task, left) in all.iter().zip([1, 0]) {
        within(task.kill(None, 9, false)).await.unwrap();
        assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
        within(tasks.delete(&ns(), task.id())).await.unwrap();
        assert_eq!(tasks.list(None).await.unwrap().len(), left);
    }
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_is_noticed_and_its_container_ended() {
    let home = Home::new();
    let tasks = home.open().await;
    let task = within(tasks.create(&scope(), &id("c1"), home.opts("sleep 300")))
        .await
        .unwrap();
    within(task.start(None)).await.unwrap();
    let shim = sys::pidfd::open(home.shim_of("c1")).unwrap();
    sys::pidfd::send_signal(&shim, 9).unwrap();
    let exit = within(task.wait(None)).await.unwrap();
    assert_eq!(exit.status, 137);
    assert_eq!(task.state(None).await.unwrap().status, Status::Stopped);
    for topic in ["/tasks/exit", "/tasks/delete"] {
        assert_eq!(home.event(topic), topic);
    }
    home.assert_empty();
    assert_eq!(
        within(tasks.delete(&ns(), &id("c1"))).await.unwrap().status,
        137
    );
    assert!(
        tasks
            .get(&ns(), &id("c1"))
            .await
            .unwrap_err()
            .is_not_found()
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

#[test]
fn tasks_are_found_again_after_a_restart() {
    let home = Home::new();
    // Dropping the runtime cuts everything off at once, as killing the daemon does.
    let pids = runtime().block_on(first_life(&home));
    let [live, late, _dead] = pids;
    let dead = sys::pidfd::open(home.shim_of("dead")).unwrap();
    sys::pidfd::send_signal(&dead, 9).unwrap();
    let init = sys::pidfd::open(late).unwrap();
    std::fs::write(home.rootfs().join("go"), "").unwrap();
    until("the container ends", || {
        !sys::pidfd::is_alive(&init).unwrap()
    });
    let silent = sys::pidfd::open(home.shim_of("live")).unwrap();
    sys::pidfd::send_signal(&silent, 19).unwrap();
    runtime().block_on(second_life(&home, live, &silent));
    home.assert_empty();
}

async fn first_life(home: &Home) -> [u32; 3] {
    let daemon = home.open().await;
    let mut pids = [0; 3];
    let gated = "while [ ! -e /go ]; do sleep 0.02; done; exit 4";
    let scripts = [
        ("live", "sleep 300"),
        ("late", gated),
        ("dead", "sleep 300"),
    ];
    for (pid, (name, script)) in pids.iter_mut().zip(scripts) {
        let (scope, id) = (scope(), id(name));
        let created = within(daemon.create(&scope, &id, home.opts(script)));
        let task = created.await.unwrap();
        *pid = within(task.start(None)).await.unwrap();
    }
    pids
}

async fn second_life(home: &Home, live_pid: u32, silent: &OwnedFd) {
    let daemon = home.open().await;
    assert_eq!(daemon.list(Some(&ns())).await.unwrap().len(), 3);
    within(daemon.recover()).await;

    let late = daemon.get(&ns(), &id("late")).await.unwrap();
    let state = within(late.state(None)).await.unwrap();
    assert_eq!((state.status, state.exit.unwrap().0), (Status::Stopped, 4));
    let dead = daemon.get(&ns(), &id("dead")).await.unwrap();
    assert_eq!(within(dead.wait(None)).await.unwrap().status, 137);

    // A silent shim keeps its task; nothing was decided by the deadline.
    let live = daemon.get(&ns(), &id("live")).await.unwrap();
    let state = within(live.state(None)).await.unwrap();
    assert_eq!(
        (state.status, state.pid, state.stale),
        (Status::Running, live_pid, true)
    );
    sys::pidfd::send_signal(silent, 18).unwrap();
    within(live.kill(None, 9, false)).await.unwrap();
    assert_eq!(within(live.wait(None)).await.unwrap().status, 137);
    assert!(!within(live.state(None)).await.unwrap().stale);
    for (name, status) in [("live", 137), ("late", 4), ("dead", 137)] {
        let exit = within(daemon.delete(&ns(), &id(name))).await.unwrap();
        assert_eq!(exit.status, status, "{name}");
    }
}
