//! Streams of a process at the shim alone: loggers, rotation, fifos by their scheme, the end of input,
//! and whose they are.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::shim::{Bundle, Driver, Io, Task};
use integration::until;
use protos::Message as _;
use protos::runc::Options;
use protos::task::Status;
use protos::well_known::Any;

fn script(path: &Path, text: &str) -> String {
    integration::script(path, &format!("#!/bin/sh\n{text}\n"))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The end of a container that ends by itself.
fn ends(task: &Task, status: u32) {
    assert_eq!(task.wait("").expect("wait"), status);
    task.delete("").expect("delete");
}

#[test]
fn a_logger_that_says_it_is_ready_gets_all_output_of_both_streams() {
    let driver = Driver::new("logger");
    let (out, err) = (driver.path("logged-out"), driver.path("logged-err"));
    let logger = script(
        &driver.path("logger"),
        &format!(
            "test \"$1$2\" = namewith\\ space || exit 1\n\
             test \"$CONTAINER_ID$CONTAINER_NAMESPACE\" = c{} || exit 1\n\
             echo >&5; exec 5>&-\ncat <&4 >{} & exec 4<&-\ncat <&3 >{}\nwait",
            driver.namespace(),
            err.display(),
            out.display()
        ),
    );
    let task = driver.task("c", &Bundle::new("seq 1 20000; echo oops >&2; exit 3"));
    let uri = format!("binary-v2://{logger}?name=with+space");
    task.create(&Io::log(&uri)).expect("create");
    task.start("").expect("start");
    ends(&task, 3);
    // It has written everything before the end is told.
    assert_eq!(text(&out).lines().last(), Some("20000"));
    assert_eq!(
        (text(&out).lines().count(), &*text(&err)),
        (20000, "oops\n")
    );
    driver.finish();
}

#[test]
fn a_logger_that_does_not_end_is_asked_to_and_then_killed() {
    let driver = Driver::new("logger-stays");
    let (pid, asked) = (driver.path("pid"), driver.path("asked"));
    let logger = script(
        &driver.path("logger"),
        &format!(
            "trap 'echo >{}' TERM\necho $$ >{}\nexec 5>&-\nwhile :; do sleep 0.1; done",
            asked.display(),
            pid.display()
        ),
    );
    let task = driver.task("c", &Bundle::new("exit 3"));
    let uri = format!("binary://{logger}");
    task.create(&Io::log(&uri)).expect("create");
    task.start("").expect("start");
    let pid: u32 = text(&pid).trim().parse().expect("a pid");
    let logger = sys::pidfd::open(pid).expect("it runs");
    let alive = || sys::pidfd::is_alive(&logger).unwrap_or(false);
    ends(&task, 3);
    until("it is asked to end", || asked.exists());
    let begin = Instant::now();
    until("it is killed", || !alive());
    let grace = begin.elapsed();
    assert!(grace > Duration::from_secs(5), "killed after {grace:?}");
    driver.finish();
}

#[test]
fn a_log_is_reopened_when_a_client_says_so() {
    let driver = Driver::new("reopen");
    let (log, old, gate) = (
        driver.path("c.out"),
        driver.path("old"),
        driver.path("gate"),
    );
    fs::create_dir(&gate).expect("mkdir");
    let script = "echo first; until test -e /mnt/open; do usleep 5000; done; echo last";
    let task = driver.task("c", &Bundle::new(script).bind(&gate, "/mnt"));
    task.create(&Io::log(&driver.log("c"))).expect("create");
    task.start("").expect("start");
    until("the first line", || text(&log) == "first\n");
    task.exec("quiet", "sleep 1000", &Io::null()).expect("exec");
    task.start("quiet").expect("start");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let namespace = driver.namespace().parse().expect("a namespace");
    let reopen = |id: &str, exec: Option<&str>| {
        let exec = exec.map(|exec| exec.parse().expect("an id"));
        let (address, id) = (task.shim().address, id.parse().expect("an id"));
        let asked = client::attach::reopen_logs(&address, &namespace, &id, exec.as_ref());
        runtime.block_on(asked)
    };
    fs::rename(&log, &old).expect("rotate");
    // With the answer, before any more output: who rotates may compress the old one now.
    reopen("c", None).expect("reopen");
    assert_eq!(text(&log), "");
    assert!(log.exists());
    fs::write(gate.join("open"), "").expect("open the gate");
    until("the last line", || text(&log) == "last\n");
    assert_eq!(text(&old), "first\n");
    let none = reopen("c", Some("quiet")).expect_err("it has no log");
    assert!(none.is(types::Code::FailedPrecondition), "{none}");
    let absent = reopen("x", None).expect_err("there is no such container");
    assert!(absent.is_not_found(), "{absent}");
    assert_eq!(task.wait("").expect("wait"), 0);
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn fifos_may_be_named_with_their_scheme() {
    let driver = Driver::new("fifo-scheme");
    let [input, output, errors] = ["in", "out", "err"].map(|name| driver.fifo(name));
    let uri = |path: &PathBuf| format!("fifo://{}", path.display());
    let io = Io {
        stdin: uri(&input),
        stdout: uri(&output),
        stderr: uri(&errors),
        terminal: false,
    };
    let task = driver.task(
        "c",
        &Bundle::new("read x; echo \"got $x\"; echo no >&2; exit 4"),
    );
    let readers = [&output, &errors].map(|path| {
        let path = path.clone();
        std::thread::spawn(move || fs::read_to_string(path).expect("read"))
    });
    let writer = {
        let input = input.clone();
        std::thread::spawn(move || fs::write(input, "words\n").expect("write"))
    };
    task.create(&io).expect("create");
    task.start("").expect("start");
    assert_eq!(task.wait("").expect("wait"), 4);
    writer.join().expect("writer");
    let told = readers.map(|reader| reader.join().expect("reader"));
    assert_eq!(told, ["got words\n", "no\n"]);
    task.delete("").expect("delete");
    driver.finish();
}

/// A process that reads to the end of its input: the end is what CloseIO says.
fn input_ends(task: &Task, exec: &str, input: &Path, out: &Path) {
    let mut writer = File::options().write(true).open(input).expect("open");
    writer.write_all(b"words\n").expect("write");
    drop(writer);
    // A client that goes is not the end: another one may come.
    until("it has read the words", || text(out) == "words\n");
    let state = task.state(exec).expect("state").status;
    assert_eq!(state.enum_value_or_default(), Status::RUNNING);
    task.close_stdin(exec).expect("close");
    assert_eq!(task.wait(exec).expect("wait"), 6);
}

#[test]
fn the_end_of_input_is_told_by_closing_it() {
    let driver = Driver::new("close-io");
    let script = "cat; exit 6";
    let task = driver.task("c", &Bundle::new(script));
    let io = |name: &str| Io {
        stdin: driver.fifo(&format!("{name}.in")).display().to_string(),
        stdout: driver.log(name),
        ..Io::default()
    };
    task.create(&io("c")).expect("create");
    task.start("").expect("start");
    task.exec("e", script, &io("e")).expect("exec");
    let absent = task.close_stdin("x").expect_err("there is no such exec");
    assert!(absent.is_not_found(), "{absent}");
    // The init's input stays while the exec's ends.
    task.start("e").expect("start");
    for (exec, name) in [("e", "e"), ("", "c")] {
        let path = |end: &str| driver.path(&format!("{name}.{end}"));
        input_ends(&task, exec, &path("in"), &path("out"));
    }
    task.delete("e").expect("delete");
    task.delete("").expect("delete");
    driver.finish();
}

#[test]
fn pipes_belong_to_whom_the_options_say() {
    let driver = Driver::new("io-owner");
    let seen = driver.path("seen");
    let runtime = script(
        &driver.path("runtime"),
        &format!(
            "for word; do case $word in create|exec)\n\
             told=$(stat -L -c %u:%g /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)\n\
             echo \"$told\" >>{}\nesac; done\n\
             exec {} \"$@\"",
            seen.display(),
            driver.binary().display()
        ),
    );
    let options = Options {
        binary_name: runtime,
        io_uid: 1234,
        io_gid: 2345,
        ..Options::default()
    };
    let options = Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value: options.write_to_bytes().expect("encode"),
        ..Any::default()
    };
    let task = driver.task("c", &Bundle::new("sleep 1000"));
    let task = task.runtime(options);
    let (input, output) = (driver.fifo("in"), driver.fifo("out"));
    // A client's fifo, a log's pipe and one that is kept for clients: all are the process's own.
    let io = Io {
        stdin: input.display().to_string(),
        stdout: output.display().to_string(),
        stderr: driver.log("c"),
        terminal: false,
    };
    task.create(&io).expect("create");
    task.start("").expect("start");
    let held = Io {
        stdin: "attach://".to_owned(),
        stdout: "attach://".to_owned(),
        stderr: "attach://".to_owned(),
        terminal: false,
    };
    assert_eq!(task.run("e", "exit 3", &held).expect("exec"), 3);
    assert_eq!(text(&seen), "1234:2345\n".repeat(6));
    assert_eq!(task.end(), 137);
    driver.finish();
}
