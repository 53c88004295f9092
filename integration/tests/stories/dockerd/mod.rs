//! Debian's dockerd 20.10, unchanged, on our daemon and our shim: what its users do all day.
//!
//! Each story has a dockerd, a network and a firewall of its own.

mod images;
mod limits;
mod managed;
mod networks;
mod processes;
mod restarts;
mod restore;
mod streams;

use integration::{Docker, Host, alone};

/// A dockerd with the test image on one of our daemons; nothing of all that remains.
fn story(name: &'static str, work: fn(&Docker, &Host)) {
    alone(move || {
        let host = Host::new(name);
        let docker = Docker::on(&host, &[]);
        docker.image();
        work(&docker, &host);
        docker.finish();
        host.finish();
    });
}

/// What a command printed, and its code.
#[track_caller]
fn prints(docker: &Docker, args: &[&str], stdout: &str, code: i32) {
    let out = docker.run(args);
    assert_eq!((&*out.stdout, out.code), (stdout, code), "{out:?}");
}

/// `docker run --rm FLAGS busybox sh -c SCRIPT`: what it printed, and its code.
#[track_caller]
fn runs(docker: &Docker, flags: &str, script: &str, stdout: &str, code: i32) {
    let mut args = vec!["run", "--rm"];
    args.extend(flags.split_whitespace());
    args.extend(["busybox", "sh", "-c", script]);
    prints(docker, &args, stdout, code);
}
