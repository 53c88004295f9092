//! Live restore: dockerd or our daemon is killed, or both; containers live on, what they write is kept,
//! and how they end is told.

use std::fs;
use std::path::{Path, PathBuf};

use integration::{Docker, Host, alone, until};

use super::prints;

/// Counts, and stops for nobody.
const COUNT: &str = "n=0; while :; do n=$((n+1)); echo $n; usleep 20000; done";

/// Containers of which one counts, one waits, and one ends with 42 when it is told to.
struct Live {
    host: Host,
    docker: Docker,
    /// The file that tells it.
    gate: PathBuf,
    pids: [u32; 3],
}

impl Live {
    fn new(name: &str) -> Self {
        let host = Host::new(name);
        let docker = Docker::on(&host, &["--live-restore"]);
        docker.image();
        let dir = docker.home().join("gate");
        fs::create_dir(&dir).expect("make the gate");
        docker.script("", "counts", COUNT);
        docker.script("-t", "waits", "exec sleep 1000");
        let script = "until test -e /gate/open; do usleep 10000; done; echo ends; exit 42";
        docker.script(&format!("-v {}:/gate", dir.display()), "ends", script);
        let pids = ["counts", "waits", "ends"].map(|name| docker.pid(name));
        Self {
            host,
            docker,
            gate: dir.join("open"),
            pids,
        }
    }

    /// The third one ends, whoever is there to see it.
    fn end_one(&self) {
        fs::write(&self.gate, "").expect("open the gate");
        let process = format!("/proc/{}", self.pids[2]);
        until("it ends", || !Path::new(&process).exists());
    }

    /// The last number that is in the log.
    fn count(&self) -> u64 {
        let last = self.docker.ok("logs --tail 1 counts");
        last.trim().parse().expect("a number")
    }

    fn counts_on(&self) {
        let before = self.count();
        until("it counts on", || self.count() > before);
    }

    /// Everything can be done with the containers, which are the same as before.
    fn goes_on(&self) {
        let docker = &self.docker;
        let exec = ["exec", "waits", "sh", "-c", "echo still here; exit 6"];
        until("it is known again", || docker.run(exec).code == 6);
        prints(docker, &exec, "still here\n", 6);
        let now = ["counts", "waits"].map(|name| docker.pid(name));
        assert_eq!(now, self.pids[..2]);
        let out = docker.in_terminal(24, 80, "exec -it waits sh -c 'tty; exit 8'");
        assert_eq!(out.code, 8, "{out:?}");
        self.counts_on();
        let log = docker.ok("logs counts");
        let numbers: Vec<u64> = log.lines().map(|l| l.parse().expect("a number")).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        prints(docker, &["wait", "ends"], "42\n", 0);
        prints(docker, &["logs", "ends"], "ends\n", 0);
        prints(docker, &["kill", "waits"], "waits\n", 0);
        prints(docker, &["wait", "waits"], "137\n", 0);
        prints(docker, &["restart", "-t", "0", "counts"], "counts\n", 0);
        self.counts_on();
    }

    fn finish(self) {
        let told = self.docker.ok("rm -f counts waits ends");
        assert_eq!(told, "counts\nwaits\nends\n");
        self.docker.finish();
        self.host.finish();
    }
}

#[test]
fn containers_live_on_when_dockerd_is_killed() {
    alone(|| {
        let mut live = Live::new("docker-killed");
        live.docker.kill();
        live.end_one();
        live.docker.start();
        live.goes_on();
        live.finish();
    });
}

#[test]
fn containers_live_on_when_our_daemon_is_killed_under_dockerd() {
    alone(|| {
        let mut live = Live::new("docker-under");
        live.host.kill();
        // The daemon is not in the way of what they write.
        live.counts_on();
        live.end_one();
        live.host.start();
        live.goes_on();
        live.finish();
    });
}

#[test]
fn containers_live_on_when_both_are_killed() {
    alone(|| {
        let mut live = Live::new("docker-both");
        live.docker.kill();
        live.host.kill();
        live.end_one();
        live.host.start();
        live.docker.start();
        live.goes_on();
        live.finish();
    });
}
