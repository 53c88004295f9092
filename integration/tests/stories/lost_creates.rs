//! The daemon is killed while a runtime makes a container: what becomes of it decides, not how long it takes.

use std::fs;
use std::path::PathBuf;

use integration::{Host, IMAGE, Output, need, script, until};

/// A runtime whose creations wait until they are told how to go on.
struct Slow {
    dir: PathBuf,
}

impl Slow {
    fn new(host: &Host) -> Self {
        let dir = host.path("runtime");
        fs::create_dir(&dir).expect("make a directory");
        let text = format!(
            "#!/bin/sh\ncd {dir}\nfor arg; do test \"$arg\" = create || continue\n\
             touch begun; until test -e go; do sleep 0.02; done; test \"$(cat go)\" = fail && exit 1\n\
             break; done\nexec {runc} \"$@\"\n",
            dir = dir.display(),
            runc = need("runc").display(),
        );
        let slow = Self { dir };
        drop(script(&slow.program(), &text));
        slow
    }

    fn program(&self) -> PathBuf {
        self.dir.join("slow-runc")
    }

    fn go_on(&self, how: &str) {
        // At once: who waits for the file reads it.
        let fresh = self.dir.join("fresh");
        fs::write(&fresh, how).expect("write");
        fs::rename(fresh, self.dir.join("go")).expect("rename");
    }
}

/// Loses the daemon over a creation, has the next one see that it is under way, and lets it go on so; what
/// the client says.
fn lose(host: &mut Host, how: &str) -> Output {
    host.image();
    let slow = Slow::new(host);
    let fifos = host.path("fifos");
    let client = host.ctr_program().args(["run"]).args(host.runtime_flags());
    let client = client.args(["--runc-binary"]);
    let client = client.args([slow.program(), "--fifo-dir".into(), fifos.clone()]);
    let client = client.args([IMAGE, "c", "sleep", "1000"]);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| client.run());
        until("the creation begins", || slow.dir.join("begun").exists());
        assert_eq!(fs::read_dir(&fifos).expect("pipes").count(), 1);
        host.kill();
        host.start();
        until("it is seen to be under way", || {
            host.log().contains("container is being made")
        });
        slow.go_on(how);
        client.join().expect("join")
    })
}

#[test]
fn a_creation_that_fails_behind_a_killed_daemon_leaves_no_pipes() {
    let mut host = Host::new("lost-create");
    let told = lose(&mut host, "fail");
    assert_ne!(told.code, 0, "{told:?}");
    let left = fs::read_dir(host.path("fifos")).expect("the directory");
    assert_eq!(left.count(), 0);
    assert_eq!(host.ctr(["tasks", "ls", "-q"]).ok(), "");
    drop(host.ctr(["containers", "rm", "c"]).ok());
    host.finish();
}

#[test]
fn a_creation_that_outlives_its_daemon_is_a_task_of_the_next() {
    let mut host = Host::new("kept-create");
    let told = lose(&mut host, "make it");
    assert_ne!(told.code, 0, "{told:?}");
    assert!(host.task("c", "CREATED").is_some_and(|pid| pid > 0));
    drop(host.ctr(["tasks", "rm", "-f", "c"]).ok());
    let left = fs::read_dir(host.path("fifos")).expect("the directory");
    assert_eq!(left.count(), 0);
    drop(host.ctr(["containers", "rm", "c"]).ok());
    host.finish();
}
