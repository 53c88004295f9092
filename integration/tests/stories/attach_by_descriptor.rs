//! Clients that hold a process's streams themselves: alone, several at once, over a restart of the
//! daemon, with a terminal.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use integration::{Host, Program, bin_dir, need, until};

/// Says what it hears, until it hears the end.
const ECHO: &str = "while read x; do echo \"heard $x\"; test \"$x\" = end && exit 9; done; exit 8";

fn attach(host: &Host, id: &str) -> Command {
    let mut command = Command::new(bin_dir().join("ctr"));
    command
        .arg("--address")
        .arg(host.address())
        .args(["-n", host.namespace(), "tasks", "attach", id])
        .stdin(Stdio::piped());
    command
}

/// An attached client that the test talks through.
struct Talker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Talker {
    fn new(host: &Host, id: &str) -> Self {
        let mut child = attach(host, id)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start ctr");
        Self {
            stdin: child.stdin.take().expect("piped"),
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            child,
        }
    }

    /// Says a word and waits until it is heard.
    fn say(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").expect("say");
        let mut line = String::new();
        while self.stdout.read_line(&mut line).expect("listen") > 0 {
            if line == format!("heard {word}\n") {
                return;
            }
            line.clear();
        }
        panic!("the stream ended before {word:?} was heard");
    }
}

/// An attached client whose output goes to a file.
struct Listener {
    child: Child,
    /// Keeps its input open: its end would be the end of the process's input.
    stdin: ChildStdin,
    out: PathBuf,
}

impl Listener {
    fn new(host: &Host, id: &str, out: &Path) -> Self {
        let mut child = attach(host, id)
            .stdout(File::create(out).expect("output"))
            .spawn()
            .expect("start ctr");
        Self {
            stdin: child.stdin.take().expect("piped"),
            child,
            out: out.to_owned(),
        }
    }

    fn heard(&self) -> String {
        fs::read_to_string(&self.out).expect("output")
    }
}

fn code(child: &mut Child) -> Option<i32> {
    child.wait().expect("wait").code()
}

#[test]
fn several_clients_share_the_streams_over_a_restart_of_the_daemon() {
    let mut host = Host::new("attach-many");
    host.image();
    let flags = ["-d", "--log-uri", "attach://"];
    drop(host.run(&flags, "c", &["sh", "-c", ECHO]).ok());
    let mut first = Talker::new(&host, "c");
    first.say("alone");
    let mut second = Listener::new(&host, "c", &host.path("second"));
    let mut n = 0;
    until("the second client hears something", || {
        n += 1;
        first.say(&format!("ping {n}"));
        !second.heard().is_empty()
    });
    // From its first line on it hears everything.
    let from = second
        .heard()
        .lines()
        .next()
        .map(str::to_owned)
        .expect("a line");
    host.kill();
    first.say("without a daemon");
    host.start();
    first.say("with another daemon");
    until("the second client has heard it, too", || {
        second
            .heard()
            .ends_with("heard without a daemon\nheard with another daemon\n")
    });
    let all: Vec<String> = (1..=n).map(|n| format!("heard ping {n}")).collect();
    let at = all.iter().position(|line| *line == from).expect("a ping");
    let mut want = all[at..].join("\n");
    want.push_str("\nheard without a daemon\nheard with another daemon\n");
    assert_eq!(second.heard(), want);
    // A client that vanishes is detached, and another one takes its place.
    first.child.kill().expect("kill");
    assert_eq!(code(&mut first.child), None);
    writeln!(second.stdin, "from the second").expect("say");
    until("the second client is heard", || {
        second.heard().ends_with("heard from the second\n")
    });
    let mut third = Talker::new(&host, "c");
    third.say("again");
    third.say("end");
    // One of them removes the task; the other may be too late to ask for the code.
    let codes = [code(&mut second.child), code(&mut third.child)];
    let right = codes.contains(&Some(9)) && codes.iter().all(|c| matches!(c, Some(1 | 9)));
    assert!(right, "{codes:?}");
    assert!(
        second.heard().ends_with("heard end\n"),
        "{}",
        second.heard()
    );
    drop(host.ctr(["containers", "rm", "c"]).ok());
    host.finish();
}

#[test]
fn a_process_can_run_without_fifos() {
    let host = Host::new("attach-run");
    host.image();
    let out = host
        .ctr_program()
        .args([
            "run",
            "--rm",
            "--log-uri",
            "attach://",
            integration::IMAGE,
            "c",
        ])
        .args(["sh", "-c", "cat; echo err >&2; exit 3"])
        .input(b"from the client\n")
        .run();
    assert_eq!(
        (out.code, out.stdout.as_str()),
        (3, "from the client\n"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("err\n"), "{}", out.stderr);
    host.sleeper("s");
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "--log-uri",
        "attach://",
        "s",
    ];
    let out = host.ctr(exec.into_iter().chain(["sh", "-c", "echo out; exit 4"]));
    assert_eq!(
        (out.code, out.stdout.as_str()),
        (4, "out\n"),
        "{}",
        out.stderr
    );
    host.remove("s");
    host.finish();
}

#[test]
fn a_terminal_is_handed_over() {
    let host = Host::new("attach-tty");
    host.image();
    let flags = ["-d", "-t", "--log-uri", "attach://"];
    let script = "until test \"$(stty size)\" = \"33 77\"; do usleep 10000; done; \
                  tty; echo both >&2; read x; echo \"heard $x\"; exit 3";
    drop(host.run(&flags, "c", &["sh", "-c", script]).ok());
    let line = format!(
        "stty rows 33 cols 77; exec {} --address {} -n {} tasks attach c",
        bin_dir().join("ctr").display(),
        host.address().display(),
        host.namespace()
    );
    let out = Program::new("script")
        .args(["-qec", &line, "/dev/null"])
        .input(b"typed\r")
        .run();
    assert_eq!(out.code, 3, "{}{}", out.stdout, out.stderr);
    let want = ["/dev/pts/0\r\n", "both\r\n", "heard typed\r\n"];
    assert!(
        want.iter().all(|text| out.stdout.contains(text)),
        "{:?}",
        out.stdout
    );
    drop(host.ctr(["containers", "rm", "c"]).ok());
    host.finish();
}

#[test]
fn fifos_and_logs_can_be_attached_to() {
    let host = Host::new("attach-others");
    host.image();
    // The fifos of a client that has gone: with it went the process's input.
    let fifos = host.path("fifo").display().to_string();
    let flags = ["-d", "--fifo-dir", &fifos];
    let script = "echo begun; until test -e /tmp/go; do usleep 5000; done; echo done; exit 9";
    drop(host.run(&flags, "f", &["sh", "-c", script]).ok());
    let mut listener = Listener::new(&host, "f", &host.path("fifo-listener"));
    until("it is heard", || listener.heard() == "begun\n");
    let go = ["tasks", "exec", "--exec-id", "go", "f", "touch", "/tmp/go"];
    drop(host.ctr(go).ok());
    assert_eq!(code(&mut listener.child), Some(9));
    assert_eq!(listener.heard(), "begun\ndone\n");
    // Beside a log.
    let log = host.path("log");
    let uri = format!("file://{}", log.display());
    let script = "i=0; while true; do echo line $i; i=$((i + 1)); usleep 2000; done";
    drop(
        host.run(&["-d", "--log-uri", &uri], "l", &["sh", "-c", script])
            .ok(),
    );
    let mut listener = Listener::new(&host, "l", &host.path("listener"));
    until("lines are heard", || listener.heard().lines().count() > 5);
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "l"]).ok());
    assert_eq!(code(&mut listener.child), Some(137));
    let (heard, logged) = (listener.heard(), fs::read_to_string(&log).expect("log"));
    assert!(logged.ends_with(&heard), "heard {heard:?}");
    for id in ["f", "l"] {
        drop(host.ctr(["containers", "rm", id]).ok());
    }
    host.finish();
}

#[test]
fn a_shim_that_hands_out_nothing_is_attached_to_by_its_fifos() {
    let host = Host::new("attach-go");
    host.image();
    let shim = need("containerd-shim-runc-v2").display().to_string();
    let fifos = host.path("fifo").display().to_string();
    let flags = ["-d", "--runtime", &shim, "--fifo-dir", &fifos];
    drop(host.run(&flags, "g", &["sh", "-c", ECHO]).ok());
    let mut talker = Talker::new(&host, "g");
    talker.say("through a fifo");
    talker.say("end");
    assert_eq!(code(&mut talker.child), Some(9));
    drop(host.ctr(["containers", "rm", "g"]).ok());
    host.finish();
}
