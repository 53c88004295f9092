//! Programs that the shim runs and that fail: loggers and runtimes. Their caller is told in time,
//! another container of the same shim goes on, and what was half made is taken away.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::shim::{Bundle, Contract, Driver, Io};
use integration::until;
use protos::shim::task as api;
use types::{Code, Result};

use crate::bad_requests::{SOON, Shared, nothing_of, refused};

fn script(path: &Path, text: &str) -> String {
    integration::script(path, &format!("#!/bin/sh\n{text}\n"))
}

#[test]
fn loggers_that_fail() {
    let shared = Shared::new("bad-loggers");
    let driver = &shared.driver;
    let plain = driver.path("plain-file");
    fs::write(&plain, "no program").expect("write");
    let dies = script(&driver.path("dies"), "exit 1");
    let silent = script(&driver.path("silent"), "exec 5>&-; exit 0");
    let targets = [
        ("dies", format!("binary://{dies}")),
        ("false", "binary:///bin/false".to_owned()),
        ("absent", "binary:///no/such/logger".to_owned()),
        ("plain", format!("binary://{}", plain.display())),
        ("directory", format!("binary://{}", driver.dir().display())),
        ("mute", format!("binary-v2://{silent}")),
    ];
    for (id, target) in targets {
        let task = shared.other(id, "echo hello");
        let error = refused(id, Instant::now(), task.create(&Io::log(&target)));
        assert!(
            error.to_string().contains("logging binary"),
            "{id}: {error}"
        );
        nothing_of(&shared, id);
        assert!(driver.action(id, "delete", &[]).status.is_success());
    }
    shared.finish();
}

#[test]
fn a_logger_that_gets_ready_and_fails_does_not_hold_its_container() {
    let shared = Shared::new("bad-logger-end");
    let logger = script(&shared.driver.path("leaves"), "exec 5>&-; exit 1");
    let task = shared.other("c", "seq 1 100000; exit 3");
    let created = task.create(&Io::log(&format!("binary://{logger}")));
    if let Err(error) = created {
        // It was quicker than the shim's look at it.
        assert!(error.to_string().contains("logging binary"), "{error}");
        nothing_of(&shared, "c");
    } else {
        task.start("").expect("start");
        let begin = Instant::now();
        let status = task.wait("").expect("wait");
        assert!(
            begin.elapsed() < SOON,
            "it waited for a logger that is gone"
        );
        // Nobody reads: it may have been told so by a signal or an error.
        assert_ne!(status, 0);
        task.delete("").expect("delete");
    }
    shared.finish();
}

#[test]
fn a_logger_that_never_gets_ready_is_given_up() {
    let shared = Shared::new("bad-logger-late");
    let logger = script(&shared.driver.path("sleeps"), "exec sleep 100000");
    let task = shared.other("c", "exit 0");
    let target = format!("binary://{logger}");
    let error = std::thread::scope(|scope| {
        let create = scope.spawn(|| task.create(&Io::log(&target)));
        // Everybody else goes on meanwhile.
        for _ in 0..20 {
            let got = shared.good.run("e", "exit 7", &Io::null());
            assert_eq!(got.expect("exec"), 7);
        }
        create
            .join()
            .expect("thread")
            .expect_err("it is never ready")
    });
    assert!(error.is(Code::DeadlineExceeded), "{error}");
    assert!(error.to_string().contains("logging binary"), "{error}");
    nothing_of(&shared, "c");
    shared.finish();
}

/// A runtime that does with one of its commands what `how` says, and tells its pid first.
fn runtime(driver: &Driver, command: &str, how: &str) -> (String, PathBuf) {
    let pid = driver.path(&format!("{command}.pid"));
    let real = driver.binary().display().to_string();
    let text = format!(
        "for word; do if test \"$word\" = {command}; then\n\
         {how}\necho $$ >{pid}.new; mv {pid}.new {pid}; exec sleep 100000\nfi; done\n\
         exec {real} \"$@\"",
        how = how.replace("REAL", &real),
        pid = pid.display(),
    );
    (
        script(&driver.path(&format!("runtime-{command}")), &text),
        pid,
    )
}

fn pid_in(file: &Path) -> u32 {
    until("the runtime is at work", || file.exists());
    fs::read_to_string(file)
        .expect("read")
        .trim()
        .parse()
        .expect("a pid")
}

fn kill(pid: u32) {
    let pidfd = sys::pidfd::open(pid).expect("it lives");
    sys::pidfd::send_signal(&pidfd, 9).expect("kill");
}

#[test]
fn a_runtime_that_is_killed_in_the_middle_of_create() {
    let shared = Shared::new("bad-create");
    // Before it has made anything, and when all but its own end is done.
    for (id, how) in [("early", ":"), ("late", "REAL \"$@\"")] {
        let (binary, file) = runtime(&shared.driver, "create", how);
        let task = shared.other(id, "sleep 100000");
        let task = task.runtime(shared.driver.options_with(&binary));
        let error = std::thread::scope(|scope| {
            let create = scope.spawn(|| task.create(&Io::null()));
            let pid = pid_in(&file);
            shared
                .good
                .run("e", "exit 7", &Io::null())
                .expect("exec meanwhile");
            kill(pid);
            create
                .join()
                .expect("thread")
                .expect_err("its runtime was killed")
        });
        let text = error.to_string();
        assert!(text.contains("OCI runtime create failed"), "{id}: {text}");
        assert!(
            text.contains("137") || text.contains("killed"),
            "{id}: {text}"
        );
        nothing_of(&shared, id);
        assert!(
            shared.driver.action(id, "delete", &[]).status.is_success(),
            "{id}"
        );
        // With a runtime that works the id is free.
        let task = task.runtime(shared.driver.options());
        task.create(&Io::null()).expect("create");
        task.delete("").expect("delete");
        fs::remove_file(file).expect("remove");
        shared.unharmed();
    }
    shared.finish();
}

#[test]
fn a_runtime_that_hangs_holds_only_its_own_caller() {
    let shared = Shared::new("bad-hang");
    let (binary, file) = runtime(&shared.driver, "create", ":");
    let task = shared.other("c", "sleep 100000");
    let task = task.runtime(shared.driver.options_with(&binary));
    let begin = Instant::now();
    let made: Result<api::CreateTaskResponse> = task.call_of(
        "containerd.task.v3.Task",
        "Create",
        &task.create_request(&Io::null()),
        Duration::from_secs(2),
    );
    let error = refused("a hanging create", begin, made);
    assert!(
        error.is(Code::DeadlineExceeded) || error.is(Code::Unknown),
        "{error}"
    );
    // The caller has given up, the shim has not: nobody knows yet whether it will be there.
    let asked = task.status().expect_err("not created");
    assert!(asked.is(Code::Unavailable), "{asked}");
    assert_eq!(
        shared.good.run("e", "exit 7", &Io::null()).expect("exec"),
        7
    );
    kill(pid_in(&file));
    until("the shim has undone it", || {
        let task = task.clone().runtime(shared.driver.options());
        task.create(&Io::null()).is_ok()
    });
    task.delete("").expect("delete");
    shared.finish();
}

#[test]
fn a_shim_that_was_killed_in_the_middle_of_create() {
    let driver = Driver::new("bad-middle");
    for (id, how) in [("early", ":"), ("late", "REAL \"$@\"")] {
        let (binary, file) = runtime(&driver, "create", how);
        driver.write(id, &Bundle::new("sleep 100000"));
        let shim = driver.start(id, Contract::Bootstrap);
        let task = driver
            .connect(&shim, id)
            .runtime(driver.options_with(&binary));
        std::thread::scope(|scope| {
            let create = scope.spawn(|| task.create(&Io::null()));
            pid_in(&file);
            shim.signal(9);
            let error = create
                .join()
                .expect("thread")
                .expect_err("the shim was killed");
            assert!(error.is(Code::Unavailable), "{error}");
        });
        shim.ends();
        let output = driver.action(id, "delete", &[]);
        assert!(output.status.is_success(), "{id}: {output:?}");
        assert!(!driver.runtime_state(id).exists(), "{id}");
        fs::remove_file(file).expect("remove");
    }
    driver.finish();
}
