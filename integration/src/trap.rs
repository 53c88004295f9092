//! A trap in the system calls of a process: it dies at the nth of them, just before it is made.
//!
//! Invariant: calls are counted over all threads of that process and none of its children, in the order
//! in which they are made. `strace` holds every one of them back for a moment, which is when the process
//! is killed: the nth call has not happened then, and the one before has.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::need;

/// How long a call is held back, in microseconds: longer than it takes to read of it and to kill.
const HOLD: u32 = 4000;

/// How long `strace` may take until it has all threads.
const ATTACH: Duration = crate::PATIENCE;

/// The trap.
#[derive(Debug)]
pub struct Trap {
    strace: Child,
    watch: JoinHandle<Option<String>>,
}

impl Trap {
    /// Lets process `pid` run into the `nth` call, from 1, of those named in `calls`; with a path, only
    /// calls on that file count. Returns when the trap is set.
    ///
    /// # Panics
    /// When `strace` cannot be attached.
    #[must_use]
    pub fn set(pid: u32, calls: &[&str], path: Option<&Path>, nth: usize) -> Self {
        // An architecture may lack the older ones.
        let calls: Vec<String> = calls.iter().map(|call| format!("?{call}")).collect();
        let calls = calls.join(",");
        let mut command = Command::new(need("strace"));
        command
            .args(["-f", "-y", "-s", "0", "-o", "/dev/stdout"])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:delay_enter={HOLD}")]);
        if let Some(path) = path {
            command.arg("-P").arg(path);
        }
        let mut strace = command
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start strace");
        let trace = strace.stdout.take().expect("piped");
        let told = BufReader::new(strace.stderr.take().expect("piped"));
        let (attached, wait) = channel();
        let _reader = std::thread::spawn(move || {
            for line in told.lines().map_while(Result::ok) {
                // Nobody waits for the second one: a child of the process.
                drop(attached.send(line));
            }
        });
        let line = wait.recv_timeout(ATTACH).expect("strace says something");
        assert!(line.contains("attached"), "strace: {line}");
        let watch = std::thread::spawn(move || watch(trace, pid, nth));
        Self { strace, watch }
    }

    /// Takes the trap away; tells at which call the process died, if it did.
    ///
    /// # Panics
    /// When `strace` cannot be ended.
    #[must_use]
    pub fn end(mut self) -> Option<String> {
        // It stays with the children of a process that is gone. Asked to end, it waits for the threads
        // of a killed process in an order in which they do not end; killed, it lets go of all.
        let _gone = kill_process(Pid::from_child(&self.strace), Signal::KILL);
        let _ended = self.strace.wait().expect("wait for strace");
        self.watch.join().expect("watcher")
    }
}

/// Reads the trace and kills at the nth call. Lines grow while a call is held back, so bytes are read.
fn watch(mut trace: impl Read, pid: u32, nth: usize) -> Option<String> {
    let (mut line, mut seen, mut count) = (String::new(), false, 0);
    let mut piece = [0; 4096];
    loop {
        let len = trace.read(&mut piece).expect("read the trace");
        if len == 0 {
            return None;
        }
        for letter in String::from_utf8_lossy(&piece[..len]).chars() {
            if letter == '\n' {
                (seen, line) = (false, String::new());
                continue;
            }
            line.push(letter);
            if letter == '(' && !seen {
                seen = true;
                count += usize::from(is_call(&line, pid));
                if count == nth {
                    let process = Pid::from_raw(pid.cast_signed()).expect("a pid");
                    let _gone = kill_process(process, Signal::KILL);
                    return Some(told(line, trace));
                }
            }
        }
    }
}

/// True for the beginning of a call, `1234 fsync(`, by a thread of `pid`.
fn is_call(line: &str, pid: u32) -> bool {
    let Some((thread, call)) = line.split_once(' ') else {
        return false;
    };
    let is_name = call
        .trim_start()
        .starts_with(|letter: char| letter.is_ascii_lowercase());
    is_name && Path::new(&format!("/proc/{pid}/task/{thread}")).exists()
}

/// The rest of the line, for messages; what follows has to be read, lest `strace` waits for a reader.
fn told(mut line: String, mut trace: impl Read) -> String {
    let mut rest = String::new();
    drop(trace.read_to_string(&mut rest));
    line.push_str(rest.lines().next().unwrap_or_default());
    line
}
