//! How often a life cycle executes the shim and the runtime, and how often it waits for the disk:
//! counted by strace, apart from everything that is timed.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::bars::Table;
use crate::peer::Peer;
use crate::{Bench, usage};

const LIVES: usize = 10;

/// Calls in all life cycles together.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    shim: usize,
    runtime: usize,
    syncs: usize,
}

/// Counts for each peer.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let [ours, debian] = [&bench.ours, &bench.debian].map(|peer| count(bench, peer));
    let mut add = |what: &str, pick: fn(&Counts) -> usize, limit: Option<f64>| {
        let each = |counts: &Counts| pick(counts) as f64 / LIVES as f64;
        let line = table.add(format!("crun: {what} per life cycle"), each(&ours));
        let line = line.debian(each(&debian));
        if let Some(limit) = limit {
            line.at_most(limit);
        }
    };
    add("execs of the shim", |c| c.shim, Some(1.0));
    add("execs of the runtime", |c| c.runtime, Some(3.0));
    add("fsync and fdatasync", |c| c.syncs, Some(6.0));
}

fn count(bench: &Bench, peer: &Peer) -> Counts {
    let crun = integration::need("crun");
    let log = bench.dir.join(format!("strace-{}", peer.name()));
    // A daemon asks a shim that it does not know yet for its version.
    bench.runtime.block_on(peer.calls.life(&crun, "first"));
    let mut strace = attach(peer.pid(), &log);
    for n in 0..LIVES {
        let id = format!("counted-{n}");
        bench.runtime.block_on(peer.calls.life(&crun, &id));
    }
    let pid = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
    strace.wait().expect("wait");
    let text = fs::read(&log).expect("read the trace");
    let mut counts = Counts::default();
    for line in String::from_utf8_lossy(&text).lines() {
        counts.add(line);
    }
    counts
}

/// Follows a daemon and everything that it starts from now on.
fn attach(daemon: u32, log: &Path) -> Child {
    let strace = Command::new(integration::need("strace"))
        .args(["-f", "-qq", "-e", "trace=execve,fsync,fdatasync,syncfs"])
        .args(["-e", "signal=none", "-o"])
        .arg(log)
        .args(["-p", &daemon.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("start strace");
    integration::until("every thread is followed", || {
        usage::tracers(daemon).iter().all(|by| *by == strace.id())
    });
    strace
}

impl Counts {
    /// Takes a line of the trace: `PID execve("/usr/bin/crun", ["crun", ...], ...) = 0`.
    fn add(&mut self, line: &str) {
        let call = line
            .split_once(' ')
            .map_or("", |(_, call)| call.trim_start());
        let begins = |name: &str| call.starts_with(name);
        if begins("fsync(") || begins("fdatasync(") || begins("syncfs(") {
            self.syncs += 1;
        }
        // Attempts to find a program in PATH are no executions.
        let Some(rest) = call
            .strip_prefix("execve(\"")
            .filter(|c| !c.contains(" = -1 "))
        else {
            return;
        };
        let path = rest.split('"').next().unwrap_or_default();
        match path.rsplit('/').next().unwrap_or_default() {
            "containerd-shim-runc-v2" => self.shim += 1,
            "crun" | "runc" => self.runtime += 1,
            // The container's program, and what a runtime executes of itself by another name.
            _ => {}
        }
    }
}
