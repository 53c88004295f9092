//! Out of memory: told as such, before the exit that it causes, and never otherwise.

use integration::shim::{Bundle, Driver, Event, Io, Task};
use integration::{Oci, until};
use protos::task::Status;

/// Enough for the runtime to start the process in.
const LIMIT: u64 = 24 << 20;
/// Keeps what it reads until the kernel ends it.
const GREEDY: &str = "exec tail /dev/zero";

fn rounds() -> usize {
    let given = std::env::var("OOM_ROUNDS").ok();
    given.map_or(12, |text| text.parse().expect("OOM_ROUNDS is a number"))
}

fn started(driver: &Driver, id: &str, script: &str) -> Task {
    let task = driver.task(id, &Bundle::new(script).memory(LIMIT));
    task.create(&Io::null()).expect("create");
    task.start("").expect("start");
    task
}

/// Position of the first event of this kind.
fn position(events: &[Event], what: impl Fn(&Event) -> bool) -> usize {
    let at = events.iter().position(what);
    at.unwrap_or_else(|| panic!("no such event in {events:#?}"))
}

fn every_init(driver: &Driver) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if n >= rounds() {
                        return;
                    }
                    let id = format!("c{n}");
                    let task = started(driver, &id, GREEDY);
                    assert_eq!(task.wait("").expect("wait"), 137, "{id}");
                    let record = std::fs::read_to_string(task.bundle.join("exit"));
                    assert!(record.expect("a record").contains("\"oom\":true"), "{id}");
                    assert_eq!(task.delete("").expect("delete").exit_status, 137);
                    let topics = driver.topics_of(&id);
                    // The kernel may tell of one killing more than once.
                    let mut single = topics.clone();
                    single.dedup();
                    let want = ["create", "start", "oom", "exit", "delete"];
                    assert_eq!(single, want, "{id}: {topics:?}");
                }
            });
        }
    });
}

#[test]
fn an_init_that_ran_out_of_memory_is_told_before_its_exit_with_runc() {
    let driver = Driver::new("oom-runc");
    every_init(&driver);
    driver.finish();
}

#[test]
fn an_init_that_ran_out_of_memory_is_told_before_its_exit_with_crun() {
    let driver = Driver::with("oom-crun", Oci::Crun);
    every_init(&driver);
    driver.finish();
}

#[test]
fn a_killed_process_did_not_run_out_of_memory() {
    let driver = Driver::new("oom-none");
    for n in 0..rounds() / 4 {
        let id = format!("c{n}");
        let task = started(&driver, &id, "sleep 1000");
        assert_eq!(task.run("e", "kill -9 $$", &Io::null()).expect("exec"), 137);
        assert_eq!(task.end(), 137);
        assert!(!driver.topics_of(&id).contains(&"oom".to_owned()));
    }
    driver.finish();
}

#[test]
fn an_exec_that_ran_out_of_memory_is_told_before_its_exit() {
    let driver = Driver::new("oom-exec");
    let task = started(&driver, "c", "sleep 1000");
    for n in 0..rounds() {
        let exec = format!("e{n}");
        let told = |event: &&Event| event.topic == "/tasks/oom";
        let before = driver.events_of("c").iter().filter(told).count();
        task.exec(&exec, GREEDY, &Io::null()).expect("exec");
        task.start(&exec).expect("start");
        assert_eq!(task.wait(&exec).expect("wait"), 137);
        until("the exit comes", || {
            let events = driver.events_of("c");
            events
                .iter()
                .any(|e| e.exit.as_ref().is_some_and(|x| x.id == exec))
        });
        let events = driver.events_of("c");
        let exit = position(&events, |e| e.exit.as_ref().is_some_and(|x| x.id == exec));
        let oom = events[..exit].iter().filter(told).count();
        assert!(
            oom > before,
            "no new event of {exec} before its exit: {events:#?}"
        );
        assert_eq!(task.status().expect("state"), Status::RUNNING);
        task.delete(&exec).expect("delete");
    }
    assert_eq!(task.end(), 137);
    driver.finish();
}

#[test]
fn a_child_that_ran_out_of_memory_is_told_while_the_init_lives() {
    let driver = Driver::new("oom-child");
    let task = started(
        &driver,
        "c",
        "tail /dev/zero; test $? = 137 && exec sleep 1000",
    );
    driver.until_event("c", "/tasks/oom");
    assert_eq!(task.status().expect("state"), Status::RUNNING);
    assert_eq!(task.end(), 137);
    let mut topics = driver.topics_of("c");
    topics.dedup();
    assert_eq!(topics, ["create", "start", "oom", "exit", "delete"]);
    driver.finish();
}
