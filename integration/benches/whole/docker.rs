//! `docker run --rm` of `/bin/true`: Debian's dockerd on our daemon and on Debian's, each in a network of
//! its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::bars::Table;
use crate::peer::Peer;
use crate::{Bench, median, undisturbed};

/// Rounds of each subject and kind of network; two more warm the caches.
const ROUNDS: usize = 30;
const WARM: usize = 2;

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let peers = [&bench.ours, &bench.debian];
    let engines = peers.map(|peer| Engine::start(peer, &bench.dir));
    for (network, what) in [
        ("bridge", "docker run --rm"),
        ("none", "  without a network"),
    ] {
        let mut all: [Vec<f64>; 2] = Default::default();
        for n in 0..ROUNDS + WARM {
            for step in 0..2 {
                let which = (n + step) % 2;
                let took = engines[which].run(network);
                if n >= WARM {
                    all[which].push(took);
                }
            }
        }
        let [ours, debian] = all.clone().map(median);
        let line = table.add(format!("{what}, ms"), ours).debian(debian);
        if network == "bridge" {
            line.of_debian_at_most(0.8);
        }
        let [ours, debian] = all.map(undisturbed);
        let line = table.add("  undisturbed (first decile), ms", ours);
        line.debian(debian);
    }
}

/// A dockerd.
struct Engine {
    home: PathBuf,
    child: Child,
}

impl Engine {
    /// Starts one on a daemon, with the test image.
    fn start(peer: &Peer, dir: &Path) -> Self {
        let home = dir.join(format!("docker-{}", peer.name()));
        fs::create_dir(&home).expect("make the directory");
        let file = |name: &str| home.join(name).display().to_string();
        let config = format!("{{\"deprecated-key-path\": \"{}\"}}", file("key.json"));
        fs::write(home.join("daemon.json"), config).expect("write the configuration");
        let log = fs::File::create(home.join("log")).expect("open the log");
        let path = std::env::var("PATH").unwrap_or_default();
        let alone = "ip link set lo up && exec \"$@\"";
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", alone, "sh", "dockerd"])
            .args(["--containerd", &peer.socket().display().to_string()])
            .args(["--config-file", &file("daemon.json")])
            .args(["--data-root", &file("data"), "--exec-root", &file("exec")])
            .args(["--pidfile", &file("pid"), "--host", &socket(&home)])
            // What it runs is counted as the daemon's, and removed with its group.
            .args(["--cgroup-parent", &format!("/{}", peer.calls.group)])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--storage-driver", "overlay2"])
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("start dockerd");
        let engine = Self { home, child };
        integration::until("dockerd answers", || {
            let asked = engine.docker(&["version"]).output();
            asked.is_ok_and(|out| out.status.success())
        });
        let layout = engine.home.join("layout");
        let layer = integration::layer(&layout).display().to_string();
        let import = engine.docker(&["import", &layer, "busybox"]).status();
        assert!(import.expect("run docker").success(), "import");
        engine
    }

    fn docker(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/docker");
        command
            .args(["-H", &socket(&self.home)])
            .args(args)
            .env("DOCKER_CONFIG", &self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Wall ms of a container's life.
    fn run(&self, network: &str) -> f64 {
        let args = ["run", "--rm", "--network", network, "busybox", "/bin/true"];
        let begin = Instant::now();
        let status = self.docker(&args).status().expect("run docker");
        let took = begin.elapsed().as_secs_f64() * 1e3;
        assert!(status.success(), "{}: {status}", self.home.display());
        took
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have failed by itself.
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        drop(self.child.wait());
        // Kept by dockerd for its next life.
        for kept in ["data", "exec/netns/default"] {
            let mut umount = Command::new("umount");
            let umount = umount.arg(self.home.join(kept)).stderr(Stdio::null());
            drop(umount.status());
        }
    }
}

fn socket(home: &Path) -> String {
    format!("unix://{}", home.join("d.sock").display())
}
