//! Events while no daemon listens: they wait in the shim and come when one does, in order, none lost
//! and each once.

use integration::Oci;
use integration::shim::{Bundle, Driver, Io, Task};

/// Containers with a shim of their own, and as many that share one.
const EACH: usize = 3;
/// So many of [`LIFE`] are told before the daemon goes.
const BEFORE: usize = 4;
/// What one container has to tell, with the process that each exit is about.
const LIFE: [(&str, Option<(&str, u32)>); 10] = [
    ("create", None),
    ("start", None),
    ("exec-added", None),
    ("exec-started", None),
    // Here the daemon goes.
    ("exit", Some(("before", 137))),
    ("exec-added", None),
    ("exec-started", None),
    ("exit", Some(("after", 5))),
    ("exit", Some(("", 137))),
    ("delete", None),
];

fn begin(driver: &Driver, id: &str, bundle: &Bundle) -> Task {
    let task = driver.task(id, bundle);
    task.create(&Io::null()).expect("create");
    task.start("").expect("start");
    let exec = task.exec("before", "exec sleep 1000", &Io::null());
    exec.expect("exec");
    task.start("before").expect("start");
    // Quiet: what the daemon has taken and not answered when it goes comes again, and has to.
    driver.until_event(id, "/tasks/exec-started");
    task
}

fn end(task: &Task) {
    task.kill("before", 9).expect("kill");
    assert_eq!(task.wait("before").expect("wait"), 137);
    task.delete("before").expect("delete");
    assert_eq!(task.run("after", "exit 5", &Io::null()).expect("exec"), 5);
    assert_eq!(task.end(), 137);
}

/// What was heard of a container.
fn life(driver: &Driver, id: &str) -> Vec<(String, Option<(String, u32)>)> {
    let events = driver.events_of(id).into_iter();
    let told = events.map(|event| {
        let topic = event.topic.trim_start_matches("/tasks/").to_owned();
        (topic, event.exit.map(|exit| (exit.id, exit.exit_status)))
    });
    let mut told: Vec<_> = told.collect();
    // Its answer may have been cut off.
    if told.get(BEFORE) == told.get(BEFORE - 1) {
        told.remove(BEFORE);
    }
    told
}

/// What is to be heard of it.
fn whole_life(id: &str) -> Vec<(String, Option<(String, u32)>)> {
    let told = LIFE.iter().map(|(topic, exit)| {
        let exit = exit.map(|(process, status)| {
            let process = if process.is_empty() { id } else { process };
            (process.to_owned(), status)
        });
        ((*topic).to_owned(), exit)
    });
    told.collect()
}

#[test]
fn events_wait_for_the_next_daemon_in_order_and_come_once() {
    let driver = Driver::with("deaf", Oci::Crun);
    let tasks: Vec<Task> = (0..2 * EACH)
        .map(|n| {
            let bundle = Bundle::new("exec sleep 1000");
            let bundle = match n < EACH {
                true => bundle,
                false => bundle.group("pod"),
            };
            begin(&driver, &format!("c{n}"), &bundle)
        })
        .collect();
    driver.deafen();
    let heard = driver.events().len();
    std::thread::scope(|scope| {
        for task in &tasks {
            scope.spawn(|| end(task));
        }
    });
    assert_eq!(driver.events().len(), heard, "a deaf daemon hears nothing");
    driver.listen();
    for task in &tasks {
        driver.until_event(&task.id, "/tasks/delete");
        assert_eq!(life(&driver, &task.id), whole_life(&task.id));
    }
    // Each shim ends with an empty queue: nothing comes after it.
    for task in &tasks {
        drop(task.shutdown(false));
        task.shim().ends();
    }
    for task in &tasks {
        assert_eq!(life(&driver, &task.id), whole_life(&task.id));
    }
    let of_others = |id: &str| tasks.iter().all(|task| task.id != id);
    assert!(
        !driver
            .events()
            .iter()
            .any(|event| of_others(&event.container))
    );
    driver.finish();
}
