//! dockerd starts our daemon itself, with a configuration of its own making, and ends it.

use std::fs;
use std::path::Path;

use integration::{Docker, alone, bin_dir, until};

use super::{prints, runs};

#[test]
fn dockerd_starts_and_ends_our_daemon() {
    alone(|| {
        let dir = tempfile::Builder::new().prefix("ctd-managed-").tempdir();
        let dir = dir.expect("make a directory");
        let mut docker = Docker::managing(dir.path(), "docker-managed");
        docker.image();
        let first = daemon(&docker);
        runs(&docker, "", "echo managed; exit 3", "managed\n", 3);
        // It is started again when it dies.
        docker.script("", "live", "exec sleep 1000");
        let process = sys::pidfd::open(first).expect("the daemon runs");
        sys::pidfd::send_signal(&process, 9).expect("kill");
        let exec = ["exec", "live", "echo", "still here"];
        until("another one serves", || docker.run(exec).code == 0);
        let second = daemon(&docker);
        assert_ne!(second, first);
        prints(&docker, &["rm", "-f", "live"], "live\n", 0);
        runs(&docker, "", "echo again", "again\n", 0);
        docker.stop();
        assert!(!Path::new(&format!("/proc/{second}")).exists());
        docker.start();
        runs(&docker, "", "echo once more", "once more\n", 0);
        docker.finish();
    });
}

/// Pid of the daemon that it started: ours.
fn daemon(docker: &Docker) -> u32 {
    let dir = docker.home().join("exec/containerd");
    let pid = fs::read_to_string(dir.join("containerd.pid")).expect("a pid");
    let pid: u32 = pid.trim().parse().expect("a pid");
    let binary = fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    assert_eq!(binary, bin_dir().join("containerd"));
    pid
}
