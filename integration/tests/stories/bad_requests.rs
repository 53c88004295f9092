//! Requests that cannot be fulfilled: a clear error in time, another container of the same shim goes
//! on, and nothing is left of what was half made.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::shim::{Bundle, Driver, Io, Task, Usage};
use integration::until;
use protos::shim::task as api;
use protos::task::Status;
use protos::well_known::{Any, Empty};
use types::{Code, Error, Result};

/// Longer than an error may take on a busy machine, shorter than any deadline of the shim.
pub(crate) const SOON: Duration = Duration::from_secs(25);
const GROUP: &str = "pod";

/// A shim with a container that must not notice.
pub(crate) struct Shared {
    pub(crate) driver: Driver,
    pub(crate) good: Task,
    before: Usage,
}

impl Shared {
    pub(crate) fn new(name: &str) -> Self {
        let driver = Driver::new(name);
        let good = driver.task("good", &Bundle::new("sleep 100000").group(GROUP));
        good.create(&Io::null()).expect("create");
        good.start("").expect("start");
        // What others must not leave is where it is looked for.
        assert!(!driver.groups("good").is_empty());
        assert_eq!(good.run("first", "exit 7", &Io::null()).expect("exec"), 7);
        let before = good.shim().usage();
        Self {
            driver,
            good,
            before,
        }
    }

    /// Another container of the same shim, not created yet.
    pub(crate) fn other(&self, id: &str, script: &str) -> Task {
        let task = self.driver.task(id, &Bundle::new(script).group(GROUP));
        assert_eq!(task.shim(), self.good.shim());
        task
    }

    /// The good container answers and runs processes, and no descriptor is left.
    pub(crate) fn unharmed(&self) {
        assert_eq!(self.good.status().expect("state"), Status::RUNNING);
        let got = self.good.run("e", "exit 7", &Io::null());
        assert_eq!(got.expect("exec"), 7);
        let shim = self.good.shim();
        until("the descriptors are closed", || {
            shim.usage().descriptors <= self.before.descriptors
        });
    }

    pub(crate) fn finish(self) {
        self.unharmed();
        assert_eq!(self.good.end(), 137);
        self.driver.finish();
    }
}

/// The error of a call that began at `begin`.
pub(crate) fn refused<T: std::fmt::Debug>(what: &str, begin: Instant, result: Result<T>) -> Error {
    assert!(begin.elapsed() < SOON, "{what} took {:?}", begin.elapsed());
    match result {
        Ok(value) => panic!("{what}: {value:?}"),
        Err(error) => error,
    }
}

/// Nothing of a container: neither a process nor the runtime's record.
pub(crate) fn nothing_of(shared: &Shared, id: &str) {
    assert!(!shared.driver.runtime_state(id).exists(), "{id}");
    let groups = shared.driver.groups(id);
    assert!(groups.is_empty(), "{groups:?}");
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("list")
        .flatten()
        .map(|e| e.path())
        .collect();
    names.sort();
    names
}

#[test]
fn a_bundle_without_a_usable_spec() {
    let shared = Shared::new("bad-bundle");
    let driver = &shared.driver;
    let cases = [
        ("missing", None),
        ("empty", Some("")),
        ("cut", Some("{\"ociVersion\": \"1.0.2\", \"process\": {")),
        ("text", Some("\"a spec\"")),
        ("types", Some("{\"annotations\": 7}")),
    ];
    for (id, config) in cases {
        let task = shared.other(id, "exit 0");
        let file = task.bundle.join("config.json");
        match config {
            Some(text) => fs::write(&file, text).expect("write"),
            None => fs::remove_file(&file).expect("remove"),
        }
        let output = driver.action(id, "start", &[]);
        let text = String::from_utf8_lossy(&output.text);
        assert!(
            !output.status.is_success() && text.contains("config.json"),
            "{id}: {text}"
        );
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        let error = refused(id, Instant::now(), task.create(&Io::null()));
        assert!(error.to_string().contains("config.json"), "{id}: {error}");
        assert!(task.status().expect_err("not created").is_not_found());
        assert!(driver.action(id, "delete", &[]).status.is_success(), "{id}");
        nothing_of(&shared, id);
    }
    // JSON that the shim can read and the runtime cannot use.
    let task = shared.other("hollow", "exit 0");
    fs::write(task.bundle.join("config.json"), "{}").expect("write");
    let error = refused("hollow", Instant::now(), task.create(&Io::null()));
    assert!(
        error.to_string().contains("OCI runtime create failed"),
        "{error}"
    );
    for path in ["", "relative/bundle", "/no/such/bundle"] {
        let mut request = task.create_request(&Io::null());
        path.clone_into(&mut request.bundle);
        let got: Result<api::CreateTaskResponse> = task.call("Create", &request);
        refused(path, Instant::now(), got);
    }
    nothing_of(&shared, "hollow");
    shared.finish();
}

#[test]
fn ids_that_cannot_be() {
    let shared = Shared::new("bad-ids");
    let good = &shared.good;
    let before = listing(&good.bundle);
    let long = "x".repeat(200);
    let ids = [
        "/",
        "..",
        ".",
        "a/b",
        "../x",
        "a\0b",
        "a b",
        "-a",
        "a..b",
        "\u{e9}",
        long.as_str(),
    ];
    for id in ids {
        let exec = refused(id, Instant::now(), good.exec(id, "exit 0", &Io::null()));
        assert!(exec.is(Code::InvalidArgument), "{id:?}: {exec}");
        assert!(!exec.to_string().contains('\n'), "{exec}");
        for error in [
            good.start(id).err(),
            good.wait(id).err(),
            good.kill(id, 9).err(),
        ] {
            let error = error.expect("there is no such process");
            assert!(
                error.is_not_found() || error.is(Code::InvalidArgument),
                "{id:?}: {error}"
            );
        }
        let mut request = good.create_request(&Io::null());
        id.clone_into(&mut request.id);
        let begin = Instant::now();
        let made: Result<api::CreateTaskResponse> = good.call("Create", &request);
        let error = refused(id, begin, made);
        assert!(error.is(Code::InvalidArgument), "{id:?}: {error}");
    }
    let empty = refused(
        "no id",
        Instant::now(),
        good.exec("", "exit 0", &Io::null()),
    );
    assert!(empty.is(Code::InvalidArgument), "{empty}");
    assert_eq!(listing(&good.bundle), before);
    shared.finish();
}

#[test]
fn requests_without_their_parts() {
    let shared = Shared::new("bad-parts");
    let good = &shared.good;
    let id = || good.id.clone();
    let exec = |spec: Option<Any>| -> Result<Empty> {
        let request = api::ExecProcessRequest {
            id: id(),
            exec_id: "x".into(),
            spec: spec.into(),
            ..Default::default()
        };
        good.call("Exec", &request)
    };
    let any = |text: &[u8]| {
        Some(Any {
            value: text.to_vec(),
            ..Default::default()
        })
    };
    for spec in [None, any(b""), any(b"{"), any(b"[]"), any(b"null")] {
        let error = refused("exec", Instant::now(), exec(spec.clone()));
        assert!(error.is(Code::InvalidArgument), "{spec:?}: {error}");
    }
    // Readable, but no process: the runtime refuses, and its record can be removed.
    exec(any(b"{}")).expect("exec");
    refused("start", Instant::now(), good.start("x"));
    good.delete("x").expect("delete");
    for resources in [None, any(b"{"), any(b"7")] {
        let request = api::UpdateTaskRequest {
            id: id(),
            resources: resources.clone().into(),
            ..Default::default()
        };
        let got: Result<Empty> = good.call("Update", &request);
        refused(&format!("{resources:?}"), Instant::now(), got);
    }
    for signal in [65, 9999, u32::MAX] {
        let error = refused("kill", Instant::now(), good.kill("", signal));
        assert!(error.is(Code::InvalidArgument), "{signal}: {error}");
    }
    let other = shared.other("other", "exit 0");
    let mut request = other.create_request(&Io::null());
    request.options = any(b"\xff")
        .map(|mut any| {
            any.type_url = "no.such.Options".into();
            any
        })
        .into();
    let made: Result<api::CreateTaskResponse> = other.call("Create", &request);
    let error = refused("options", Instant::now(), made);
    assert!(error.is(Code::InvalidArgument), "{error}");
    // Everything absent: there is no container without a name.
    for method in [
        "State",
        "Start",
        "Delete",
        "Pids",
        "Pause",
        "Resume",
        "Kill",
        "Exec",
        "ResizePty",
        "CloseIO",
        "Update",
        "Wait",
        "Stats",
        "Checkpoint",
    ] {
        let got: Result<Empty> = good.call(method, &Empty::new());
        let error = refused(method, Instant::now(), got);
        assert!(error.is_not_found(), "{method}: {error}");
    }
    let got: Result<Empty> = good.call("Create", &Empty::new());
    assert!(refused("Create", Instant::now(), got).is(Code::InvalidArgument));
    shared.finish();
}

#[test]
fn streams_that_are_no_fifos() {
    let shared = Shared::new("bad-fifos");
    let driver = &shared.driver;
    let (dir, socket) = (driver.path("a-directory"), driver.path("a-socket"));
    fs::create_dir(&dir).expect("mkdir");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
    let absent = driver.path("absent");
    let mut targets: Vec<String> = [&dir, &socket, &absent]
        .map(|p| p.display().to_string())
        .into();
    targets.extend(
        [
            "relative/fifo",
            "fifo://",
            "file:///",
            "npipe:///x",
            "binary://relative",
            "\u{1}",
        ]
        .map(String::from),
    );
    targets.push(format!("/{}", "x/".repeat(3000)));
    for (n, target) in targets.iter().enumerate() {
        let stdin = Io {
            stdin: target.clone(),
            ..Io::default()
        };
        let stdout = Io {
            stdout: target.clone(),
            ..Io::default()
        };
        let stderr = Io {
            stderr: target.clone(),
            ..Io::default()
        };
        let terminal = Io {
            terminal: true,
            ..stdout.clone()
        };
        let task = shared.other(&format!("c{n}"), "exit 0");
        for io in [&stdin, &stdout, &stderr, &terminal] {
            if io.stdin.contains("://") && !io.stdin.starts_with("fifo") {
                // What is no stream to read from is no input.
                continue;
            }
            let what = format!("{io:?}").chars().take(80).collect::<String>();
            let error = refused(&what, Instant::now(), task.create(io));
            assert!(!error.to_string().is_empty());
            nothing_of(&shared, &task.id);
            shared.good.exec("bad", "exit 0", io).expect("exec");
            refused(&what, Instant::now(), shared.good.start("bad"));
            shared.good.delete("bad").expect("delete");
        }
        // The id is free: with good streams it works.
        task.create(&Io::null()).expect("create");
        task.start("").expect("start");
        assert_eq!(task.wait("").expect("wait"), 0);
        task.delete("").expect("delete");
        shared.unharmed();
    }
    drop(listener);
    shared.finish();
}
