//! Bugs in the middle of a request: they end it, and nothing stays stuck.

use super::*;
use crate::caught::fault;
use crate::options::Options;
use crate::process::Attached;
use crate::runc::Limits;
use crate::stdio::{Paths, Streams};
use crate::testing::{block_on, program};
use protos::shim::task::{CreateTaskRequest, ExecProcessRequest};
use std::path::Path;
use std::time::SystemTime;

/// Longer than anything here takes on the slowest machine.
const SOON: Duration = Duration::from_secs(60);

/// A pid that nobody has.
const PID: u32 = i32::MAX.unsigned_abs();

fn shim() -> Arc<Shim> {
    Arc::new(Shim::new("ns".parse().unwrap()))
}

/// There is no such runtime: who does not say otherwise starts no process.
fn options() -> Options {
    Options {
        binary_name: "/no/such/runtime".into(),
        ..Options::default()
    }
}

/// A running container, as far as the shim knows.
fn running(shim: &Shim, bundle: &Path) -> Arc<Container> {
    running_with(shim, bundle, options())
}

/// Lets its init end.
fn end_init(shim: &Arc<Shim>, container: &Arc<Container>, status: u8) {
    let (tell, ending) = tokio::sync::oneshot::channel();
    container.watch(shim, &container.init, PID, ending);
    let ended = crate::reap::Ended {
        status: Status::Exited(status),
        at: SystemTime::UNIX_EPOCH,
    };
    tell.send(ended).unwrap();
}

/// Version 2 of a group whose counter of kills is this.
fn group(dir: &Path, kills: u64) -> Cgroup {
    let text = format!("max 9\noom 7\noom_kill {kills}\n");
    std::fs::write(dir.join("memory.events"), text).unwrap();
    Cgroup::V2(dir.to_owned())
}

/// Waits until there is such a file.
async fn appears(file: &Path) {
    let there = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, there).await.unwrap();
}

/// One whose runtime is a script; what has ended is reaped.
fn scripted(shim: &Arc<Shim>, bundle: &Path, script: &str) -> Arc<Container> {
    let runtime = bundle.join("runtime.sh");
    program(&runtime, &format!("#!/bin/sh\n{script}\n"));
    let options = Options {
        binary_name: runtime.display().to_string(),
        ..Options::default()
    };
    let reap = Arc::clone(&shim.reap);
    drop(tokio::spawn(async move {
        loop {
            reap.round();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }));
    running_with(shim, bundle, options)
}

fn running_with(shim: &Shim, bundle: &Path, options: Options) -> Arc<Container> {
    let limits = Limits::default();
    let runtime = Runtime::new(Arc::clone(&shim.reap), bundle, "ns", "c1", options, limits);
    let init = Process::new("", Paths::default(), Vec::new());
    init.has_started(PID, Attached::Streams(Streams::default()));
    init.step(Input::Start).unwrap();
    init.announced();
    Arc::new(Container {
        id: "c1".into(),
        bundle: bundle.to_owned(),
        runtime,
        own_pids: true,
        mounted: false,
        init: Arc::new(init),
        execs: Mutex::default(),
        cgroup: OnceLock::new(),
        image: None,
        oom: Oom::default(),
    })
}

fn exec_request(id: &str) -> ExecProcessRequest {
    let spec = protos::well_known::Any {
        value: b"{}".to_vec(),
        ..Default::default()
    };
    ExecProcessRequest {
        exec_id: id.into(),
        spec: Some(spec).into(),
        ..ExecProcessRequest::default()
    }
}

fn exit(status: u32) -> Exit {
    Exit {
        pid: PID,
        status,
        at: SystemTime::UNIX_EPOCH,
    }
}

/// A runtime that says what it is called for, and whose `slow` call ends when there is a file `go`.
fn slow(shim: &Arc<Shim>, bundle: &Path, slow: &str) -> Arc<Container> {
    let script = format!(
        "for verb; do case $verb in\n\
         {slow}) echo >{dir}/begun; while [ ! -e {dir}/go ]; do sleep 0.01; done;;\n\
         pause|kill|resume) ;;\n*) continue;;\nesac\necho $verb >>{dir}/calls; done",
        dir = bundle.display()
    );
    scripted(shim, bundle, &script)
}

/// What the runtime has done.
fn calls(bundle: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(bundle.join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Begins to freeze it and returns when the runtime is at it.
async fn freeze(
    container: &Arc<Container>,
    shim: &Arc<Shim>,
    bundle: &Path,
) -> tokio::task::JoinHandle<Result<()>> {
    let (container, shim) = (Arc::clone(container), Arc::clone(shim));
    let pausing = tokio::spawn(async move { container.pause(&shim).await });
    appears(&bundle.join("begun")).await;
    pausing
}

#[test]
fn a_kill_while_it_is_being_frozen_is_not_frozen() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = slow(&shim, dir.path(), "pause");
        let pausing = freeze(&container, &shim, dir.path()).await;
        container.kill("", 9, false).await.unwrap();
        std::fs::write(dir.path().join("go"), "").unwrap();
        assert!(pausing.await.unwrap().unwrap_err().is_not_found());
        assert_eq!(calls(dir.path()), ["kill", "resume", "pause", "resume"]);
        assert!(shim.publisher.topics().is_empty());
    });
}

#[test]
fn a_pause_is_not_told_after_the_exit() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = slow(&shim, dir.path(), "pause");
        let pausing = freeze(&container, &shim, dir.path()).await;
        end_init(&shim, &container, 3);
        assert_eq!(container.init.wait().await.unwrap(), exit(3));
        std::fs::write(dir.path().join("go"), "").unwrap();
        assert!(pausing.await.unwrap().unwrap_err().is_not_found());
        assert_eq!(shim.publisher.topics(), ["/tasks/exit"]);
    });
}

#[test]
fn what_is_frozen_while_the_runtime_kills_it_thaws() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = slow(&shim, dir.path(), "kill");
        let killing = tokio::spawn({
            let container = Arc::clone(&container);
            async move { container.kill("", 9, true).await }
        });
        appears(&dir.path().join("begun")).await;
        container.pause(&shim).await.unwrap();
        std::fs::write(dir.path().join("go"), "").unwrap();
        killing.await.unwrap().unwrap();
        assert_eq!(calls(dir.path()), ["pause", "kill", "resume"]);
    });
}

#[test]
fn the_execs_of_a_frozen_init_that_ended_thaw() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = slow(&shim, dir.path(), "none");
        container.pause(&shim).await.unwrap();
        end_init(&shim, &container, 3);
        let thawed = async {
            while calls(dir.path()) != ["pause", "resume"] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, thawed).await.unwrap();
    });
}

/// A process whose output is a file that it does not see.
fn writer_to_the_host(dir: &Path) -> sys::process::Child {
    std::fs::create_dir(dir).unwrap();
    let tmpfs = types::Mount {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        ..types::Mount::default()
    };
    sys::mount::mount_all(&[tmpfs], dir).unwrap();
    let file = std::fs::File::create(dir.join("out")).unwrap();
    sys::mount::detach_all(dir).unwrap();
    let sleeper = sys::process::Spawn::new("sleep").arg("1000");
    sleeper.stdout(file.into()).spawn().unwrap()
}

#[test]
fn an_image_that_was_made_stays_whatever_fails_after() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let script = "while [ $# -gt 0 ]; do [ $1 != --image-path ] || image=$2; shift; done\n\
                      [ -e $image/stdio.json.new ] || exit 1\n\
                      mkdir $image/stdio.json; echo >$image/core.img";
        let container = scripted(&shim, dir.path(), script);
        let writer = writer_to_the_host(&dir.path().join("host"));
        let streams = Attached::Streams(Streams::default());
        container.init.has_started(writer.pid(), streams);
        let request = |path: &str| protos::shim::task::CheckpointTaskRequest {
            path: dir.path().join(path).display().to_string(),
            ..Default::default()
        };
        let error = container.checkpoint(&shim, &request("image")).await;
        assert!(error.unwrap_err().to_string().contains("stdio.json"));
        assert!(dir.path().join("image/core.img").exists());
        assert!(!dir.path().join("image/stdio.json.new").exists());
        // What cannot be written is found out before anything is dumped.
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = container.checkpoint(&shim, &request("file/image")).await;
        assert_eq!(error.unwrap_err().errno(), Some(libc::ENOTDIR));
        writer.kill(libc::SIGKILL).unwrap();
        writer.wait().unwrap();
    });
}

#[test]
fn a_panic_while_a_container_is_made_frees_its_id() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let shim = shim();
        let wire = protos::runc::Options {
            binary_name: options().binary_name,
            ..Default::default()
        };
        let request = CreateTaskRequest {
            id: "c1".into(),
            options: Some(protos::any::pack(&wire).unwrap().to_wire()).into(),
            bundle: dir.path().display().to_string(),
            ..CreateTaskRequest::default()
        };
        fault::arm("make");
        let error = shim.create(request.clone()).await.unwrap_err();
        assert!(error.is(Code::Internal), "{error}");
        // Not taken: it comes as far as the runtime, which is asked for nothing here.
        fault::arm("make");
        let again = shim.create(request).await.unwrap_err();
        assert!(again.is(Code::Internal), "{again}");
        assert!(!dir.path().join("options.json").exists());
    });
}

#[test]
fn a_panic_while_an_exec_is_started_leaves_it_unstarted() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = running(&shim, dir.path());
        container.add_exec(&shim, &exec_request("e1")).unwrap();
        fault::arm("make exec");
        let error = container.start_exec(&shim, "e1").await.unwrap_err();
        assert!(error.is(Code::Internal), "{error}");
        let exec = container.process("e1").unwrap();
        assert!(!exec.view().active);
        drop(exec.gate.try_lock().unwrap());
        // It keeps nobody's end back.
        container.ended(&shim, &container.init, exit(3));
        assert_eq!(container.init.wait().await.unwrap(), exit(3));
    });
}

#[test]
fn a_panic_at_an_end_does_not_hide_it() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = running(&shim, dir.path());
        fault::arm("ended");
        end_init(&shim, &container, 7);
        assert_eq!(container.init.wait().await.unwrap(), exit(7));
    });
}

#[test]
fn who_waits_for_an_exec_that_never_started_learns_of_the_containers_deletion() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = scripted(&shim, dir.path(), "exit 0");
        container.add_exec(&shim, &exec_request("e1")).unwrap();
        let exec = container.process("e1").unwrap();
        let waiting = tokio::spawn(async move { exec.wait().await });
        tokio::task::yield_now().await;
        container.ended(&shim, &container.init, exit(3));
        assert_eq!(container.delete(&shim, "").await.unwrap(), exit(3));
        let told = timeout(SOON, waiting).await.unwrap();
        assert!(told.unwrap().unwrap_err().is_not_found());
        assert!(container.process("e1").unwrap_err().is_not_found());
    });
}

/// Its init's exit is told soon although an exec, whose streams go to `stdout`, is being started.
async fn is_not_held_back(container: &Arc<Container>, shim: &Arc<Shim>, begun: &Path, io: &str) {
    let request = ExecProcessRequest {
        stdout: io.into(),
        ..exec_request("e1")
    };
    container.add_exec(shim, &request).unwrap();
    let start = {
        let (container, shim) = (Arc::clone(container), Arc::clone(shim));
        tokio::spawn(async move { container.start_exec(&shim, "e1").await })
    };
    appears(begun).await;
    end_init(shim, container, 3);
    // Before a logger is given up.
    let told = timeout(Duration::from_secs(25), container.init.wait()).await;
    assert_eq!(told.unwrap().unwrap(), exit(3));
    let error = start.await.unwrap().unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
}

#[test]
fn an_exec_that_hangs_does_not_hold_back_the_end_of_its_container() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let begun = dir.path().join("begun");
        let script = format!("echo >{}; exec sleep 1000", begun.display());
        let container = scripted(&shim, dir.path(), &script);
        is_not_held_back(&container, &shim, &begun, "").await;
    });
}

#[test]
fn nor_does_the_logger_of_an_exec_that_does_not_get_ready() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let begun = dir.path().join("begun");
        let script = format!("echo >{}; exec sleep 30", begun.display());
        let container = scripted(&shim, dir.path(), &script);
        let logger = format!("binary://{}/runtime.sh", dir.path().display());
        is_not_held_back(&container, &shim, &begun, &logger).await;
    });
}

#[test]
fn memory_is_looked_at_before_the_group_can_go_with_the_init() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = running(&shim, dir.path());
        let cgroup = dir.path().join("group");
        std::fs::create_dir(&cgroup).unwrap();
        container.cgroup.set(group(&cgroup, 1)).unwrap();
        let sleeper = sys::process::Spawn::new("sleep").arg("1000");
        let (pid, ending) = shim.reap.spawn(sleeper).unwrap();
        container.watch(&shim, &container.init, pid, ending);
        shim.reap.signal(pid, libc::SIGKILL).unwrap();
        while sys::process::start_time(pid).is_some() {
            shim.reap.round();
        }
        // Who manages the group has heard of the end too.
        std::fs::remove_dir_all(&cgroup).unwrap();
        assert_eq!(container.init.wait().await.unwrap().status, 137);
        let record = std::fs::read_to_string(dir.path().join("exit")).unwrap();
        assert!(record.contains("\"oom\":true"), "{record}");
        let topics = shim.publisher.topics();
        assert_eq!(topics, ["/tasks/oom", "/tasks/exit"]);
    });
}

#[test]
fn memory_is_watched_where_the_loop_cannot_wait_for_the_file_itself() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = running(&shim, dir.path());
        let kills = |kills| group(dir.path(), kills);
        container.cgroup.set(kills(0)).unwrap();
        container.watch_oom(&shim);
        kills(1);
        let told = async {
            while shim.publisher.topics() != ["/tasks/oom"] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, told).await.unwrap();
        container.stop_watching_oom();
    });
}

#[test]
fn what_has_ended_is_not_absent_to_who_starts_it() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let shim = shim();
        let container = running(&shim, dir.path());
        let again = container.start(&shim).await.unwrap_err();
        assert!(again.is(Code::FailedPrecondition), "{again}");
        container.add_exec(&shim, &exec_request("e1")).unwrap();
        let exec = container.process("e1").unwrap();
        exec.step(Input::Exited(exit(0))).unwrap();
        let error = container.start_exec(&shim, "e1").await.unwrap_err();
        assert!(error.is(Code::Unknown), "{error}");
        container.ended(&shim, &container.init, exit(3));
        let error = container.start(&shim).await.unwrap_err();
        assert!(error.is(Code::Unknown), "{error}");
    });
}

/// A process of the runtime has these owners of its standard descriptors.
async fn owners(name: &str, dir: &Path, paths: ExecProcessRequest) -> Vec<String> {
    let shim = shim();
    let bundle = dir.join(name);
    std::fs::create_dir(&bundle).unwrap();
    let script = "cd /proc/$$/fd; all=$(stat -Lc %u:%g 0 1 2); cd $OLDPWD; echo \"$all\" >owners; \
                  exit 1";
    let container = scripted(&shim, &bundle, script);
    let options = Options {
        io_uid: 1234,
        io_gid: 5678,
        ..container.runtime.options().clone()
    };
    let container = running_with(&shim, &bundle, options);
    container.add_exec(&shim, &paths).unwrap();
    container.start_exec(&shim, "e1").await.unwrap_err();
    let text = std::fs::read_to_string(bundle.join("owners")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn streams_belong_to_whom_the_options_say() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let fifo = |name: &str| {
            let path = dir.path().join(name);
            sys::fifo::Fifo::make(&path, 0o600).unwrap();
            path.display().to_string()
        };
        let to = |stdin: &str, stdout: &str, stderr: &str| ExecProcessRequest {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            ..exec_request("e1")
        };
        let theirs = ["1234:5678"; 3];
        let fifos = to(&fifo("in"), &fifo("out"), &fifo("err"));
        assert_eq!(owners("fifos", dir.path(), fifos).await, theirs);
        let pipes = to("attach://", "attach://", "attach://");
        assert_eq!(owners("pipes", dir.path(), pipes).await, theirs);
        let log = format!("file://{}", dir.path().join("log").display());
        let logs = to("", &log, &log);
        assert_eq!(owners("logs", dir.path(), logs).await[1..], theirs[1..]);
        // Nobody's, and everybody's: the null device keeps its owner.
        assert_eq!(owners("null", dir.path(), to("", "", "")).await, ["0:0"; 3]);
    });
}
