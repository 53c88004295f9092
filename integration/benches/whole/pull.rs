//! Pulls of the realistic image from a registry on loopback, each into a new daemon on tmpfs: once, ten
//! at a time, and what `skopeo copy` takes to fetch the same bytes and unpack nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use integration::Registry;

use crate::bars::Table;
use crate::group::Group;
use crate::peer::{Kind, Peer};
use crate::{Bench, median, usage};

/// Pulls of each subject, by kind of layers.
const ROUNDS: usize = 5;
/// Rounds of ten at a time, ours and Debian's, which takes minutes.
const CROWD_ROUNDS: [usize; 2] = [3, 1];
const CROWD: usize = 10;
const KINDS: [Kind; 2] = [Kind::Ours, Kind::Debian];

/// What one pull took.
#[derive(Clone, Copy, Debug)]
struct Pulled {
    wall: f64,
    /// CPU ms of the daemon and its clients.
    cpu: f64,
    /// The daemon's peak, in MiB.
    peak: f64,
}

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let registry = Registry::start();
    let layouts = integration::layers();
    for (kind, wall, cpu) in [("gzip", 0.5, 0.6), ("zstd", 0.5, 0.6)] {
        let from = format!("oci:{}:latest", layouts.join(kind).display());
        let reference = registry.add(&from, &format!("bench/{kind}"));
        let one = rounds(bench, &reference, 1, [ROUNDS; 2]);
        let copied = median((0..ROUNDS).map(|_| copy(bench, &reference)).collect());
        let of = |all: &[Vec<Pulled>; 2], what: fn(&Pulled) -> f64| {
            [0, 1].map(|which| median(all[which].iter().map(what).collect::<Vec<_>>()))
        };
        let [ours, debian] = of(&one, |pulled| pulled.wall);
        let line = table.add(format!("pull {kind} with unpack, ms (floor: skopeo)"), ours);
        line.debian(debian).floor(copied).of_debian_at_most(wall);
        let single = [ours, debian];
        let [ours, debian] = of(&one, |pulled| pulled.cpu);
        let line = table.add(format!("pull {kind}, CPU ms of daemon and client"), ours);
        line.debian(debian).of_debian_at_most(cpu);
        let [ours, debian] = of(&one, |pulled| pulled.peak);
        let line = table.add(format!("pull {kind}, the daemon's peak, MiB"), ours);
        line.debian(debian).at_most(64.0);
        if kind == "gzip" {
            let ten = rounds(bench, &reference, CROWD, CROWD_ROUNDS);
            let [ours, debian] = of(&ten, |pulled| pulled.wall);
            let line = table.add("ten pulls of it at once, of one", ours / single[0]);
            line.debian(debian / single[1]).at_most(1.2);
            let [ours, debian] = of(&ten, |pulled| pulled.peak);
            let line = table.add("ten pulls of it, the daemon's peak, MiB", ours);
            line.debian(debian).at_most(64.0);
        }
    }
}

/// Ours and Debian's, alternating.
fn rounds(bench: &Bench, reference: &str, clients: usize, count: [usize; 2]) -> [Vec<Pulled>; 2] {
    let mut all: [Vec<Pulled>; 2] = Default::default();
    for round in 0..count[0].max(count[1]) {
        for step in 0..2 {
            let which = (round + step) % 2;
            if round >= count[which] {
                continue;
            }
            all[which].push(pull(bench, KINDS[which], reference, clients));
        }
    }
    all
}

/// A daemon that has nothing yet, and so many clients that pull at the same time.
fn pull(bench: &Bench, kind: Kind, reference: &str, clients: usize) -> Pulled {
    let home = bench.dir.join(format!("pull-{}", kind.name()));
    let peer = Peer::start_bare(&bench.runtime, kind, &home);
    let before = peer.group.cpu_ms();
    let begin = Instant::now();
    let children: Vec<Child> = (0..clients)
        .map(|_| client(kind, &peer, &home, reference))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("wait").success(), "{}", kind.name());
    }
    let pulled = Pulled {
        wall: begin.elapsed().as_secs_f64() * 1e3,
        cpu: peer.group.cpu_ms() - before,
        peak: usage::peak(peer.pid()) as f64 / 1024.0,
    };
    peer.stop();
    fs::remove_dir_all(&home).expect("remove the root");
    pulled
}

fn client(kind: Kind, peer: &Peer, home: &Path, reference: &str) -> Child {
    let ctr = match kind {
        Kind::Ours => integration::bin_dir().join("ctr"),
        Kind::Debian => PathBuf::from("/usr/bin/ctr"),
    };
    let mut args = vec!["--address".to_owned(), peer.socket().display().to_string()];
    args.extend(["images", "pull", "--plain-http", reference].map(str::to_owned));
    counted(&peer.group, &ctr, &args, &home.join("client"))
}

/// Starts a program whose CPU time, from its very start, is the group's.
fn counted(group: &Group, program: &Path, args: &[String], log: &Path) -> Child {
    let log = fs::File::create(log).expect("open the log");
    let enter = format!("echo $$ >{} && exec \"$@\"", group.leaf("client").display());
    Command::new("/bin/sh")
        .args(["-c", &enter, "sh"])
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("dup"))
        .stderr(log)
        .spawn()
        .expect("start the client")
}

/// Wall ms of a copy into a directory.
fn copy(bench: &Bench, reference: &str) -> f64 {
    let to = bench.dir.join("skopeo");
    let begin = Instant::now();
    let status = Command::new(integration::need("skopeo"))
        .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
        .arg(format!("docker://{reference}"))
        .arg(format!("dir:{}", to.display()))
        .stdin(Stdio::null())
        .status();
    assert!(status.expect("run skopeo").success(), "skopeo");
    let took = begin.elapsed().as_secs_f64() * 1e3;
    fs::remove_dir_all(&to).expect("remove the copy");
    took
}
