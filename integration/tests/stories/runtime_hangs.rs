//! Runtimes that hang or are killed: the caller learns what it was, and nothing is left or stuck.

use integration::shim::{Bundle, Contract, Driver, Io, Script, Task};
use integration::{Oci, until};
use protos::task::Status;
use types::Code;

/// Seconds that a runtime has: more than an honest call takes on a busy machine.
const LIMIT: u32 = 15;

/// A container whose runtime has only so many seconds for a call.
fn prepare(driver: &Driver) -> (Task, Script) {
    driver.write("c", &Bundle::new("while :; do sleep 1; done"));
    let script = driver.script();
    let options = driver.options_with(&script.path().to_string_lossy());
    let shim = driver.start("c", Contract::Bootstrap);
    (driver.connect(&shim, "c").runtime(options), script)
}

fn impatient(name: &str) -> Driver {
    Driver::new(name).env("CONTAINERD_SHIM_RUNTIME_TIMEOUT", &LIMIT.to_string())
}

fn is_alive(pid: u32) -> bool {
    sys::pidfd::open(pid).is_ok_and(|fd| sys::pidfd::is_alive(fd).unwrap_or(false))
}

/// Blocks until no child of the shim is alive but this one.
fn only(task: &Task, init: Option<u32>) {
    until("the shim has no other children", || {
        let children = sys::process::children(task.shim).expect("the shim lives");
        !children
            .into_iter()
            .any(|pid| Some(pid) != init && is_alive(pid))
    });
}

fn hung(error: &types::Error, verb: &str) {
    assert!(error.is(Code::Aborted), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("{verb} hung for {LIMIT}s and was killed")),
        "{text}"
    );
}

#[test]
fn a_create_that_hangs_is_killed_and_undone() {
    let driver = impatient("hang-create");
    let (task, script) = prepare(&driver);
    for how in ["hang", "hang after"] {
        script.on("create", how);
        let error = task.create(&Io::null()).expect_err("a create that hangs");
        hung(&error, "create");
        assert!(
            error.to_string().contains("OCI runtime create failed"),
            "{error}"
        );
        until("what it left is gone", || !is_alive(script.left()));
        let undone = script.calls("delete").pop().expect("an undoing");
        assert!(undone.ends_with("delete --force c"), "{undone}");
        assert!(!task.bundle.join("init.pid").exists());
        only(&task, None);
    }
    script.off("create");
    task.create(&Io::null()).expect("create");
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn an_exec_that_hangs_is_not_started_and_keeps_no_end_back() {
    let driver = impatient("hang-exec");
    let (task, script) = prepare(&driver);
    task.create(&Io::null()).expect("create");
    let init = task.start("").expect("start");
    script.on("exec", "hang after");
    task.exec("e", "sleep 1000", &Io::null()).expect("exec");
    hung(&task.start("e").expect_err("an exec that hangs"), "exec");
    only(&task, Some(init));
    script.on("exec", "die after");
    let error = task.start("e").expect_err("a runtime that is killed");
    assert!(
        error.to_string().contains("exec was killed by SIGKILL"),
        "{error}"
    );
    // What the runtime had made in the container is gone, too.
    only(&task, Some(init));
    script.off("exec");
    task.start("e").expect("start");
    assert_eq!(task.end(), 137);
    let mut topics = driver.topics_of("c");
    topics.retain(|topic| topic.starts_with("ex"));
    assert_eq!(topics, ["exec-added", "exec-started", "exit", "exit"]);
    driver.finish();
}

#[test]
fn a_start_or_deletion_that_hangs_can_be_asked_for_again() {
    let driver = impatient("hang-start");
    let (task, script) = prepare(&driver);
    task.create(&Io::null()).expect("create");
    script.on("start", "hang");
    hung(&task.start("").expect_err("a start that hangs"), "start");
    until("what it left is gone", || !is_alive(script.left()));
    script.off("start");
    task.start("").expect("start");
    task.kill("", 9).expect("kill");
    task.wait("").expect("wait");
    script.on("delete", "hang");
    hung(
        &task.delete("").expect_err("a deletion that hangs"),
        "delete",
    );
    script.off("delete");
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn a_start_that_hangs_does_not_hold_back_the_end_of_its_container() {
    // As patient as it is by itself.
    let driver = Driver::new("hang-ended");
    let (task, script) = prepare(&driver);
    let init = task.create(&Io::null()).expect("create");
    script.on("start", "hang");
    let error = std::thread::scope(|scope| {
        let start = scope.spawn(|| task.start(""));
        until("the start hangs", || script.has_left());
        // By somebody else: the task itself is being started.
        let process = sys::pidfd::open(init).expect("it lives");
        sys::pidfd::send_signal(process, 9).expect("kill");
        start.join().expect("join").expect_err("it has ended")
    });
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(
        error
            .to_string()
            .contains("start was killed: the container has ended"),
        "{error}"
    );
    assert_eq!(task.wait("").expect("wait"), 137);
    until("what it left is gone", || !is_alive(script.left()));
    script.off("start");
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn a_pause_that_hangs_does_not_leave_the_container_frozen() {
    let driver = impatient("hang-pause");
    let (task, script) = prepare(&driver);
    task.create(&Io::null()).expect("create");
    task.start("").expect("start");
    script.on("pause", "hang after");
    hung(&task.pause().expect_err("a pause that hangs"), "pause");
    assert_eq!(task.status().expect("state"), Status::RUNNING);
    // It would not end if it were frozen.
    assert_eq!(task.run("e", "exit 3", &Io::null()).expect("exec"), 3);
    script.off("pause");
    task.pause().expect("pause");
    assert_eq!(task.end(), 137);
    driver.finish();
}

fn killed_in_the_middle(driver: Driver) {
    let (task, script) = prepare(&driver);
    script.on("create", "die after");
    let error = task
        .create(&Io::null())
        .expect_err("a runtime that is killed");
    assert!(
        error.to_string().contains("create was killed by SIGKILL"),
        "{error}"
    );
    only(&task, None);
    // In the middle of it: by a hook, whose parent the runtime is.
    let task = task.runtime(driver.options());
    let file = task.bundle.join("config.json");
    let config = std::fs::read_to_string(&file).expect("read the spec");
    let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", "kill -KILL $PPID"]});
    for stage in ["prestart", "createRuntime"] {
        let mut broken: serde_json::Value = serde_json::from_str(&config).expect("parse");
        broken["hooks"] = serde_json::json!({ stage: [hook] });
        std::fs::write(&file, broken.to_string()).expect("write the spec");
        let error = task
            .create(&Io::null())
            .expect_err("a runtime that is killed");
        assert!(
            error.to_string().contains("create was killed by SIGKILL"),
            "{stage}: {error}"
        );
        only(&task, None);
    }
    std::fs::write(&file, config).expect("write the spec");
    task.create(&Io::null()).expect("create");
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn a_runc_that_is_killed_in_a_create_is_named_with_the_signal() {
    killed_in_the_middle(Driver::new("killed-runc"));
}

#[test]
fn a_crun_that_is_killed_in_a_create_is_named_with_the_signal() {
    killed_in_the_middle(Driver::with("killed-crun", Oci::Crun));
}

#[test]
fn a_shim_that_is_told_to_end_finishes_what_it_makes_and_lets_containers_live() {
    let driver = Driver::new("term");
    let (task, script) = prepare(&driver);
    script.on("create", "slow");
    let pid = std::thread::scope(|scope| {
        let create = scope.spawn(|| task.create(&Io::null()));
        script.begun();
        task.shim().signal(15);
        create.join().expect("join").expect("create")
    });
    task.shim().ends();
    assert!(is_alive(pid));
    driver.until_event("c", "/tasks/create");
    // What is left is for the daemon, as after any other end of a shim.
    let output = driver.action("c", "delete", b"");
    assert!(output.status.is_success(), "{output:?}");
    until("the container is gone", || !is_alive(pid));
    driver.finish();
}
