//! Containers that come from a checkpoint, at the shim alone, with a runtime that restores by running
//! the command.

use std::fs;
use std::path::PathBuf;

use integration::shim::{Bundle, Driver, Io, Task};
use protos::Message as _;
use protos::runc::CheckpointOptions;
use protos::shim::task as api;
use protos::task::Status;
use protos::well_known::{Any, Empty};
use types::{Code, Error, Result};

/// Refuses while `<itself>.refuse` is there, saying why where CRIU and runc would.
const RUNTIME: &str = r#"#!/bin/sh
for word; do
    case $before in
    --work-path) work=$word ;; --root) root=$word ;; --log) log=$word ;;
    --bundle) bundle=$word ;; --pid-file) pid=$word ;;
    esac
    case $word in checkpoint|restore) verb=$word ;; esac
    before=$word id=$word
done
[ -n "$verb" ] || exec runc "$@"
if [ -e "$0.refuse" ]; then
    echo "(00.1) 1: Error (criu/stand-in.c:1): not today" | tee "$work/dump.log" >"$work/restore.log"
    printf '{"level":"error","msg":"criu failed\\nlog file: %s/x"}\n' "$work" >>"$log"
    exit 1
fi
[ "$verb" = checkpoint ] && { cat "$CRIU_CONFIG_FILE" >"$0.dumped"; exit 0; }
[ -z "$CRIU_CONFIG_FILE" ] || cat "$CRIU_CONFIG_FILE" >"$0.restored"
runc --root "$root" --log "$log" --log-format json create --bundle "$bundle" --pid-file "$pid" "$id" &&
    exec runc --root "$root" --log "$log" --log-format json start "$id"
"#;

struct Place {
    driver: Driver,
    runtime: PathBuf,
    image: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let driver = Driver::new(name);
        let runtime = driver.path("runc");
        drop(integration::script(&runtime, RUNTIME));
        let image = driver.path("image");
        fs::create_dir(&image).expect("mkdir");
        Self {
            driver,
            runtime,
            image,
        }
    }

    fn refuse(&self, on: bool) {
        let file = self.runtime.with_extension("refuse");
        if on {
            fs::write(file, "").expect("refuse");
        } else {
            fs::remove_file(file).expect("refuse no more");
        }
    }

    /// A shim with a task of the image that is not started.
    fn create(&self, id: &str, script: &str, io: &Io) -> Task {
        let options = self.driver.options_with(&self.runtime.to_string_lossy());
        let task = self.driver.task(id, &Bundle::new(script)).runtime(options);
        let request = api::CreateTaskRequest {
            checkpoint: self.image.display().to_string(),
            ..task.create_request(io)
        };
        let answer: api::CreateTaskResponse = task.call("Create", &request).expect("create");
        assert_eq!(answer.pid, 0);
        task
    }
}

fn checkpoint(task: &Task, path: &str) -> Result<()> {
    let options = Any {
        type_url: "containerd.runc.v1.CheckpointOptions".to_owned(),
        value: CheckpointOptions::default()
            .write_to_bytes()
            .map_err(Error::internal)?,
        ..Default::default()
    };
    let request = api::CheckpointTaskRequest {
        id: task.id.clone(),
        path: path.to_owned(),
        options: Some(options).into(),
        ..Default::default()
    };
    task.call::<_, Empty>("Checkpoint", &request).map(drop)
}

fn is_untouched(task: &Task) -> bool {
    let state = task.state("").expect("state");
    (state.status.enum_value(), state.pid) == (Ok(Status::CREATED), 0)
}

#[test]
fn a_container_of_a_checkpoint_has_no_process_before_its_start() {
    let place = Place::new("restore-start");
    let log = Io::log(&place.driver.log("c"));
    let task = place.create("c", "echo back; exit 7", &log);
    assert!(is_untouched(&task));
    let killed = task.kill("", 9).expect_err("nothing to kill");
    assert!(killed.is_not_found(), "{killed}");
    let exec = task.exec("e", "exit 0", &Io::null());
    for refused in [exec, checkpoint(&task, "/nowhere")] {
        let refused = refused.expect_err("no process yet");
        assert!(refused.is(Code::FailedPrecondition), "{refused}");
    }
    // Who waits before the start learns of the end.
    let waiting = task.clone();
    let waiting = std::thread::spawn(move || waiting.wait(""));
    let pid = task.start("").expect("start");
    assert!(pid > 0);
    assert_eq!(waiting.join().expect("join").expect("wait"), 7);
    let again = task.start("").expect_err("it has ended");
    assert!(again.is(Code::Unknown), "{again}");
    let gone = task.delete("").expect("delete");
    assert_eq!((gone.pid, gone.exit_status), (pid, 7));
    let want = ["create", "start", "exit", "delete"];
    place.driver.until_event("c", "/tasks/delete");
    assert_eq!(place.driver.topics_of("c"), want);
    assert_eq!(place.driver.output("c"), "back\n");
    task.shutdown(false).expect("shutdown");
    place.driver.finish();
}

#[test]
fn a_failed_restore_says_why_and_may_be_tried_again() {
    let place = Place::new("restore-again");
    place.refuse(true);
    let task = place.create("c", "exit 3", &Io::null());
    let refused = task.start("").expect_err("refused").to_string();
    assert!(refused.contains("criu failed: not today"), "{refused}");
    for file in ["init.pid", "work/criu-work"] {
        assert!(!task.bundle.join(file).exists(), "{file}");
    }
    assert!(is_untouched(&task));
    place.refuse(false);
    task.start("").expect("start");
    assert_eq!(task.wait("").expect("wait"), 3);
    task.delete("").expect("delete");
    task.shutdown(false).expect("shutdown");
    place.driver.finish();
}

#[test]
fn a_container_that_was_never_restored_goes_without_the_runtime() {
    let place = Place::new("restore-never");
    let task = place.create("c", "exit 0", &Io::null());
    fs::remove_file(&place.runtime).expect("remove the runtime");
    assert_eq!(task.delete("").expect("delete").pid, 0);
    place.driver.until_event("c", "/tasks/delete");
    let want = ["create", "delete"];
    assert_eq!(place.driver.topics_of("c"), want);
    task.shutdown(false).expect("shutdown");
    place.driver.finish();
}

#[test]
fn streams_of_the_host_are_named_at_the_dump_and_found_at_the_restore() {
    let place = Place::new("restore-streams");
    let fifo = place.driver.fifo("fifo");
    let reader = sys::fifo::Fifo::find(&fifo).expect("fifo");
    let _reader = reader
        .open_nonblocking(sys::fifo::End::Read)
        .expect("open the fifo");
    let io = Io::stdout(&fifo);
    let task = place.create("c", "while :; do sleep 1; done", &io);
    task.start("").expect("start");
    let image = place.image.display().to_string();
    checkpoint(&task, &image).expect("checkpoint");
    let read = |what| fs::read_to_string(place.runtime.with_extension(what)).expect("a record");
    let dumped = read("dumped");
    let file = dumped.strip_prefix("external ").expect("a stream");
    let file = file.trim_end();
    let one = file.starts_with("file[") && !file.contains('\n');
    assert!(one, "{dumped}");
    place.refuse(true);
    let refused = checkpoint(&task, &image).expect_err("refused").to_string();
    let why = "criu failed: not today (log: ";
    assert!(refused.contains(why), "{refused}");
    place.refuse(false);
    assert_eq!(task.status().expect("state"), Status::RUNNING);
    let other = place.create("d", "exit 0", &io);
    other.start("").expect("start");
    assert_eq!(read("restored"), format!("inherit-fd fd[1]:{file}\n"));
    assert_eq!(other.wait("").expect("wait"), 0);
    task.kill("", 9).expect("kill");
    task.wait("").expect("wait");
    for task in [task, other] {
        task.delete("").expect("delete");
        task.shutdown(false).expect("shutdown");
    }
    let want = ["create", "start", "checkpointed"];
    assert_eq!(place.driver.topics_of("c")[..3], want);
    place.driver.finish();
}
