//! Streams between a process and whoever reads them: readers that stop, logs that rotate, disks that
//! are full, children that keep a pipe, and last words.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use integration::{Host, IMAGE, bin_dir, until};
use rustix::process::{Pid, Signal, kill_process};

/// Last words in all, and how many processes speak them at a time.
const LAST_WORDS: usize = 1000;
const AT_A_TIME: usize = 8;

/// A directory that the container sees as `/gate`, and the flag that mounts it.
fn gate(host: &Host) -> (PathBuf, String) {
    let gate = host.path("gate");
    fs::create_dir(&gate).expect("make the gate");
    let mount = format!(
        "type=bind,src={},dst=/gate,options=rbind:rw",
        gate.display()
    );
    (gate, mount)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("signal");
}

/// `ctr run` in the background, with its output in a file.
fn background(host: &Host, out: &Path, flags: &[&str], id: &str, script: &str) -> Child {
    Command::new(bin_dir().join("ctr"))
        .arg("--address")
        .arg(host.address())
        .args(["-n", host.namespace(), "run", "--rm"])
        .args(flags)
        .args([IMAGE, id, "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(File::create(out).expect("output"))
        .spawn()
        .expect("start ctr run")
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_stopped_reader_holds_up_its_process_and_nobody_else() {
    let host = Host::new("stdio-stopped");
    host.image();
    let (gate, mount) = gate(&host);
    let out = host.path("out");
    let script = "echo first; until test -e /gate/open; do usleep 5000; done; \
                  seq 1 100000; echo last > /gate/done; exit 6";
    let mut reader = background(&host, &out, &["--mount", &mount], "w", script);
    until("the reader reads", || text(&out).starts_with("first"));
    signal(&reader, Signal::STOP);
    fs::write(gate.join("open"), "").expect("open the gate");
    // Half a megabyte does not fit into a pipe: the process waits, everything else answers.
    let exec = ["tasks", "exec", "--exec-id", "e", "w", "echo", "other"];
    assert_eq!(host.ctr(exec).ok(), "other\n");
    assert!(host.task("w", "RUNNING").is_some());
    assert!(!gate.join("done").exists());
    signal(&reader, Signal::CONT);
    let status = reader.wait().expect("wait");
    assert_eq!(status.code(), Some(6));
    let got = text(&out);
    assert_eq!(got.lines().count(), 100_001);
    assert!(got.ends_with("\n100000\n"), "{}", &got[got.len() - 40..]);
    host.finish();
}

#[test]
fn a_late_writer_is_heard() {
    let host = Host::new("stdio-late");
    host.image();
    let (gate, mount) = gate(&host);
    let out = host.path("out");
    let script = "until test -e /gate/open; do usleep 5000; done; printf late";
    let mut reader = background(&host, &out, &["--mount", &mount], "w", script);
    until("it runs", || host.task("w", "RUNNING").is_some());
    assert_eq!(text(&out), "");
    fs::write(gate.join("open"), "").expect("open the gate");
    assert!(reader.wait().expect("wait").success());
    assert_eq!(text(&out), "late");
    host.finish();
}

#[test]
fn last_words_without_a_newline_arrive() {
    let host = Host::new("stdio-last");
    host.image();
    host.sleeper("s");
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= LAST_WORDS {
                        return;
                    }
                    let (id, script) = (format!("e{n}"), format!("printf 'last {n}'"));
                    let exec = ["tasks", "exec", "--exec-id", &id, "s", "sh", "-c", &script];
                    assert_eq!(host.ctr(exec).ok(), format!("last {n}"));
                }
            });
        }
    });
    host.remove("s");
    host.finish();
}

#[test]
fn a_log_has_the_last_word_when_the_end_is_told() {
    let host = Host::new("stdio-log");
    host.image();
    for n in 0..20 {
        let log = host.path(&format!("log{n}"));
        let uri = format!("file://{}", log.display());
        let script = format!("echo out; echo err >&2; printf 'last {n}'; exit 4");
        let flags = ["--rm", "--log-uri", &uri];
        let out = host.run(&flags, &format!("c{n}"), &["sh", "-c", &script]);
        assert_eq!((out.code, out.stdout.as_str()), (4, ""), "{}", out.stderr);
        assert_eq!(text(&log), format!("out\nerr\nlast {n}"));
    }
    host.finish();
}

#[test]
fn a_child_that_keeps_the_pipe_delays_neither_the_end_nor_the_log() {
    let host = Host::new("stdio-child");
    host.image();
    host.sleeper("s");
    let log = host.path("log");
    let uri = format!("cri://{}", log.display());
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "--log-uri",
        &uri,
        "s",
        "sh",
        "-c",
    ];
    let script = "sleep 1000 & echo said; printf unsaid; exit 5";
    let out = host.ctr(exec.into_iter().chain([script]));
    assert_eq!(out.code, 5, "{}", out.stderr);
    let got = text(&log);
    let ends: Vec<_> = got
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    let ends: Vec<_> = ends.iter().map(|(_, rest)| *rest).collect();
    assert_eq!(ends, ["stdout F said", "stdout P unsaid"], "{got}");
    host.remove("s");
    host.finish();
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file_and_loses_nothing() {
    let host = Host::new("stdio-rotate");
    host.image();
    let (gate, mount) = gate(&host);
    let log = host.path("log");
    let uri = format!("file://{}", log.display());
    let script =
        "i=0; until test -e /gate/stop; do echo $i; i=$((i + 1)); done; echo $i > /gate/count";
    let flags = ["-d", "--log-uri", &uri, "--mount", &mount];
    drop(host.run(&flags, "w", &["sh", "-c", script]).ok());
    let mut parts = Vec::new();
    for n in 0..5 {
        until("the log grows", || {
            log.metadata().is_ok_and(|m| m.len() > 2000)
        });
        let part = host.path(&format!("log.{n}"));
        fs::rename(&log, &part).expect("rotate");
        parts.push(part);
        until("a new log", || log.exists());
    }
    fs::write(gate.join("stop"), "").expect("stop it");
    until("it stops", || host.task("w", "STOPPED").is_some());
    let count: usize = text(&gate.join("count")).trim().parse().expect("a count");
    parts.push(log);
    let all: String = parts.iter().map(|part| text(part)).collect();
    let want: String = (0..count).map(|n| format!("{n}\n")).collect();
    assert!(all == want, "{} lines of {count}", all.lines().count());
    drop(host.ctr(["tasks", "rm", "w"]).ok());
    drop(host.ctr(["containers", "rm", "w"]).ok());
    host.finish();
}

/// A small file system that goes with the test.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("mkdir");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "small"])
            .arg(&path)
            .status();
        assert!(mounted.expect("run mount").success());
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        // A test that has failed already says why.
        if !std::thread::panicking() {
            assert!(unmounted.is_ok_and(|status| status.success()), "umount");
        }
    }
}

#[test]
fn a_full_disk_stops_nobody_and_the_loss_is_told() {
    let host = Host::new("stdio-full");
    host.image();
    let (gate, mount) = gate(&host);
    let small = Small::mount(host.path("small"));
    let log = small.0.join("log");
    let filler = small.0.join("filler");
    // The disk ends at some byte: whatever fits is written.
    drop(fs::write(&filler, vec![0; 512 * 1024]));
    let uri = format!("file://{}", log.display());
    let script = "yes a line of output | head -c 2000000; echo > /gate/wrote; \
                  until test -e /gate/open; do usleep 5000; done; echo after; exit 7";
    let flags = ["-d", "--log-uri", &uri, "--mount", &mount];
    drop(host.run(&flags, "w", &["sh", "-c", script]).ok());
    // Two megabytes do not fit anywhere: the process gets through all the same.
    until("it has written", || gate.join("wrote").exists());
    fs::remove_file(&filler).expect("make room");
    until("the loss is told", || {
        text(&log).contains(" bytes of output are missing here: No space left on device")
    });
    fs::write(gate.join("open"), "").expect("open the gate");
    until("it stops", || host.task("w", "STOPPED").is_some());
    let got = text(&log);
    assert!(got.ends_with("\nafter\n"), "{got}");
    let told = host.ctr(["tasks", "rm", "w"]);
    assert!(told.stderr.contains("exit code 7"), "{}", told.stderr);
    drop(host.ctr(["containers", "rm", "w"]).ok());
    drop(small);
    host.finish();
}
