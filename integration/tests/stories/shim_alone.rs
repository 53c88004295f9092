//! The shim with a runtime and nothing else: no daemon but a driver.

use integration::shim::{Bundle, Contract, Driver, Form, Io};
use protos::Message as _;
use protos::shim::task as api;
use protos::task::Status;
use serde_json::json;
use types::Code;

#[test]
fn every_generation_of_daemons_starts_it_and_both_versions_answer() {
    let driver = Driver::new("shim-start");
    let ways = [
        ("plain", Contract::Plain, Form::Plain, 2),
        ("versioned", Contract::Versioned, Form::Json, 2),
        ("bootstrap", Contract::Bootstrap, Form::Message, 3),
    ];
    for (id, contract, form, version) in ways {
        driver.write(id, &Bundle::new("exit 3"));
        let shim = driver.start(id, contract);
        // The group's shim is there already: the same answer, and no second one.
        let again = driver.ask(id, contract);
        assert_eq!(again.form, form, "{id}");
        assert_eq!(
            (
                again.address.as_str(),
                again.version,
                again.protocol.as_str()
            ),
            (shim.address.as_str(), version, "ttrpc"),
            "{id}"
        );
        let kept = std::fs::read_to_string(driver.bundle(id).join("address"));
        assert_eq!(kept.expect("address"), shim.address);
        let dir = std::fs::read_link(driver.bundle(id).join("s")).expect("link");
        assert!(shim.address.contains(&format!("{}/", dir.display())));
        let task = driver.connect(&shim, id);
        assert_eq!(task.shim, shim.pid);
        task.create(&Io::null()).expect("create");
        let old = driver.connect(&shim, id).version_2();
        old.start("").expect("start over version 2");
        assert_eq!(
            (task.wait("").expect("wait"), old.wait("").expect("wait")),
            (3, 3)
        );
        assert_eq!(old.delete("").expect("delete").exit_status, 3);
    }
    driver.write("direct", &Bundle::new("exit 4"));
    let task = driver.connect(&driver.start("direct", Contract::Direct), "direct");
    task.create(&Io::null()).expect("create");
    task.start("").expect("start");
    assert_eq!(task.wait("").expect("wait"), 4);
    task.delete("").expect("delete");
    for id in ["plain", "versioned", "bootstrap", "direct"] {
        assert_eq!(driver.topics_of(id), ["create", "start", "exit", "delete"]);
    }
    driver.finish();
}

#[test]
fn a_task_lives_and_ends_with_its_events_in_order() {
    let driver = Driver::new("shim-life");
    let task = driver.task("c1", &Bundle::new("echo hello; exit 7"));
    task.create(&Io::log(&driver.log("c1"))).expect("create");
    assert_eq!(task.status().expect("state"), Status::CREATED);
    let pid = task.start("").expect("start");
    assert_eq!(task.wait("").expect("wait"), 7);
    // Any number of callers, also long after the end.
    assert_eq!(task.wait("").expect("wait again"), 7);
    let state = task.state("").expect("state");
    assert_eq!(
        (state.status.enum_value_or_default(), state.exit_status),
        (Status::STOPPED, 7)
    );
    assert!(task.kill("", 9).expect_err("it has ended").is_not_found());
    let gone = task.delete("").expect("delete");
    assert_eq!((gone.pid, gone.exit_status), (pid, 7));
    assert_eq!(
        driver.topics_of("c1"),
        ["create", "start", "exit", "delete"]
    );
    assert_eq!(driver.output("c1"), "hello\n");
    let error = task.state("").expect_err("it is deleted");
    assert!(error.is_not_found(), "{error}");
    assert!(
        error
            .to_string()
            .contains("container not created: not found"),
        "{error}"
    );
    driver.finish();
}

#[test]
fn execs_have_their_own_ends_and_the_inits_is_the_last() {
    let driver = Driver::new("shim-execs");
    let task = driver.task("c1", &Bundle::new("while :; do sleep 1; done"));
    task.create(&Io::null()).expect("create");
    task.exec("e0", "exit 0", &Io::null())
        .expect("before the start");
    task.start("").expect("start");
    // Any id is free, also one that sounds like the shim's own files.
    let io = Io::log(&driver.log("e1"));
    task.exec("init", "echo from exec; exit 5", &io)
        .expect("exec");
    let taken = task.exec("init", "exit 0", &Io::null()).expect_err("taken");
    assert!(taken.is_already_exists(), "{taken}");
    task.start("init").expect("start");
    assert_eq!(task.wait("init").expect("wait"), 5);
    assert_eq!(task.delete("init").expect("delete").exit_status, 5);
    assert_eq!(driver.output("e1"), "from exec\n");
    assert!(driver.bundle("c1").join("init.pid").exists());
    task.exec("e2", "sleep 1000", &Io::null()).expect("exec");
    let pid = task.start("e2").expect("start");
    let pids = task.pids().expect("pids");
    let exec = pids.iter().find(|p| p.pid == pid).expect("the exec");
    assert_eq!(exec.info.type_url, "containerd.runc.v1.ProcessDetails");
    let runs = task.delete("").expect_err("runs");
    assert!(runs.is(Code::Unknown), "{runs}");
    assert!(runs.to_string().contains("cannot delete a running process"));
    task.kill("", 9).expect("kill");
    assert_eq!(
        (task.wait("").expect("wait"), task.wait("e2").expect("wait")),
        (137, 137)
    );
    let late = task.start("e0").expect_err("too late");
    assert!(late.is(Code::FailedPrecondition), "{late}");
    task.delete("").expect("delete");
    let want = [
        "create",
        "exec-added",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "exec-added",
        "exec-started",
        "exit",
        "exit",
        "delete",
    ];
    assert_eq!(driver.topics_of("c1"), want);
    let events = driver.events_of("c1");
    let exits: Vec<_> = events
        .iter()
        .filter_map(|e| e.exit.as_ref())
        .map(|e| e.id.as_str())
        .collect();
    assert_eq!(exits, ["init", "e2", "c1"]);
    driver.finish();
}

#[test]
fn pausing_metrics_and_updates_reach_the_container() {
    let driver = Driver::new("shim-pause");
    let task = driver.run("c1", "sleep 1000");
    task.pause().expect("pause");
    assert_eq!(task.status().expect("state"), Status::PAUSED);
    assert!(
        task.pause()
            .expect_err("frozen")
            .is(Code::FailedPrecondition)
    );
    task.resume().expect("resume");
    task.update(&json!({"pids": {"limit": 77}}))
        .expect("update");
    let stats = task.stats().expect("stats");
    let limit = if stats.type_url == "io.containerd.cgroups.v1.Metrics" {
        protos::cgroups::v1::Metrics::parse_from_bytes(&stats.value)
            .expect("metrics")
            .pids
            .limit
    } else {
        protos::cgroups::v2::Metrics::parse_from_bytes(&stats.value)
            .expect("metrics")
            .pids
            .limit
    };
    assert_eq!(limit, 77);
    task.pause().expect("pause");
    assert_eq!(task.end(), 137);
    driver.finish();
}

#[test]
fn a_group_shares_one_shim_that_stays_until_its_last_container_is_gone() {
    let driver = Driver::new("shim-group");
    let tasks = ["pod", "c1"].map(|id| {
        let task = driver.task(id, &Bundle::new("sleep 1000").group("pod"));
        let kept = std::fs::read_to_string(driver.bundle(id).join("address"));
        assert_eq!(kept.expect("address"), task.shim().address);
        task.create(&Io::null()).expect("create");
        let twice = task.create(&Io::null()).expect_err("it is there");
        assert!(twice.is_already_exists(), "{twice}");
        task
    });
    assert_eq!(tasks[0].shim(), tasks[1].shim());
    // Never started: the deletion ends it.
    tasks[0].delete("").expect("delete");
    tasks[0].shutdown(false).expect("shutdown");
    assert_eq!(tasks[1].status().expect("state"), Status::CREATED);
    tasks[1].delete("").expect("delete");
    driver.finish();
}

#[test]
fn a_killed_shims_container_is_cleaned_up_with_its_true_end() {
    let driver = Driver::new("shim-killed");
    let ended = driver.run("c1", "exit 42");
    let running = driver.run("c2", "sleep 1000");
    let pid = running.state("").expect("state").pid;
    assert_eq!(ended.wait("").expect("wait"), 42);
    for task in [&ended, &running] {
        task.shim().signal(9);
        task.shim().ends();
    }
    for (id, status) in [("c1", 42), ("c2", 137)] {
        let output = driver.action(id, "delete", &[]);
        assert!(output.status.is_success(), "{output:?}");
        let answer = api::DeleteResponse::parse_from_bytes(&output.text).expect("an answer");
        assert_eq!(answer.exit_status, status, "{id}");
    }
    let alive = sys::pidfd::open(pid).is_ok_and(|fd| sys::pidfd::is_alive(fd).unwrap_or(false));
    assert!(!alive, "the container outlived its deletion");
    driver.finish();
}

#[test]
fn a_failed_create_says_why_and_leaves_nothing() {
    let driver = Driver::new("shim-create");
    let task = driver.task("c1", &Bundle::new("exit 0"));
    let config = task.bundle.join("config.json");
    let good = std::fs::read_to_string(&config).expect("read");
    std::fs::write(&config, good.replace("\"/bin/sh\"", "\"/no/such\"")).expect("write");
    let error = task
        .create(&Io::null())
        .expect_err("no such program")
        .to_string();
    assert!(
        error.contains("OCI runtime create failed: runc create failed"),
        "{error}"
    );
    assert!(error.contains("/no/such"), "{error}");
    assert!(!driver.runtime_state("c1").exists());
    assert!(!task.bundle.join("init.pid").exists());
    let absent = task
        .create(&Io::log("/no/such/fifo"))
        .expect_err("no such fifo");
    assert!(absent.to_string().contains("/no/such/fifo"), "{absent}");
    // The shim is unharmed: the same id works when the bundle does.
    std::fs::write(&config, good).expect("write");
    task.create(&Io::null()).expect("create");
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn a_terminal_has_a_size_and_takes_input() {
    let driver = Driver::new("shim-tty");
    let (input, output) = (driver.fifo("in"), driver.fifo("out"));
    let script = "until test \"$(stty size)\" = \"33 77\"; do usleep 10000; done; read x; exit $x";
    let task = driver.task("c1", &Bundle::new(script).terminal());
    let io = Io {
        stdin: input.display().to_string(),
        stdout: output.display().to_string(),
        terminal: true,
        ..Io::default()
    };
    // A client holds both of its ends.
    let reader = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&output)
        .expect("open");
    let writer = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&input)
        .expect("open");
    task.create(&io).expect("create");
    task.start("").expect("start");
    task.resize("", 77, 33).expect("resize");
    std::io::Write::write_all(&mut &writer, b"9\n").expect("write");
    assert_eq!(task.wait("").expect("wait"), 9);
    drop((reader, writer));
    task.delete("").expect("delete");
    driver.finish();
}
