//! The power fails under containers: while they are started or removed, and right after an answer. What
//! was answered stands, what containers have synced is there, and the same can be done again.

use std::time::{Duration, Instant};

use integration::{Disk, FileSystem, Host, IMAGE, Program, apart, bin_dir, until};

use crate::power_cut::{Point, REACH, share};

/// Cuts per file system and kind of work.
const CUTS: u64 = 5;
/// Rounds of a cut right after an answer.
const ROUNDS: usize = 3;

#[test]
fn containers_on_ext4_survive_power_cuts() {
    apart(|| cuts(FileSystem::Ext4, "containers-ext4"));
}

#[test]
fn containers_on_xfs_survive_power_cuts() {
    apart(|| cuts(FileSystem::Xfs, "containers-xfs"));
}

#[test]
fn what_was_answered_about_a_container_on_ext4_survives_a_power_cut() {
    apart(|| answers(FileSystem::Ext4, "created-ext4"));
}

#[test]
fn what_was_answered_about_a_container_on_xfs_survives_a_power_cut() {
    apart(|| answers(FileSystem::Xfs, "created-xfs"));
}

/// A cut, and the machine comes up again.
fn reboot(disk: &Disk, host: &mut Host) {
    host.power_off();
    disk.remount();
    host.start();
}

/// Nothing is wrong but garbage, and snapshots that are nobody's any more.
fn sound(host: &Host) {
    let found = host.ctr(["fsck"]).stdout;
    let is_fault = |line: &&str| match line.split(' ').next() {
        Some("damaged" | "dangling") => true,
        Some("missing") => !line.ends_with("[to repair]"),
        _ => false,
    };
    let faults: Vec<&str> = found.lines().filter(is_fault).collect();
    assert!(faults.is_empty(), "{found}\n{}", host.log());
}

fn is_there(host: &Host) -> bool {
    host.ctr(["containers", "ls", "-q"]).ok().trim() == "c"
}

/// The container can be started, and runs commands.
fn restart(host: &Host) {
    drop(host.ctr(["tasks", "start", "-d", "--null-io", "c"]).ok());
    until("the task runs", || host.task("c", "RUNNING").is_some());
    assert_eq!(exec(host, "echo alive"), "alive\n");
}

fn exec(host: &Host, line: &str) -> String {
    let args = ["tasks", "exec", "--exec-id", "e", "c", "sh", "-c", line];
    host.ctr(args).ok()
}

/// Lets go of what a client that is gone had in hand, and of what it left for the collector.
fn let_go(host: &Host) {
    drop(host.ctr(["leases", "create", "--id", "none"]).ok());
    let leases = host.ctr(["leases", "ls", "-q"]).ok();
    for lease in leases.lines() {
        drop(host.ctr(["leases", "rm", "--sync", lease]).ok());
    }
}

/// The host's `ctr`, twice.
fn removal(host: &Host) -> Program {
    let ctr = format!(
        "{} --address {} -n {}",
        bin_dir().join("ctr").display(),
        host.address().display(),
        host.namespace()
    );
    let line = format!("{ctr} tasks rm -f c >/dev/null; {ctr} containers rm c");
    Program::new("sh").args(["-c", &line])
}

/// Cuts the power `at` this time after `work` has begun; true when it had been answered.
fn cut(disk: &Disk, host: &mut Host, at: Duration, work: Program) -> bool {
    let work = std::thread::spawn(move || work.run());
    // Not a condition: any instant will do, and these are taken at random.
    std::thread::sleep(at);
    disk.cut();
    host.power_off();
    let answered = work.join().expect("a client").code == 0;
    disk.remount();
    host.start();
    sound(host);
    answered
}

fn cuts(kind: FileSystem, name: &str) {
    let disk = Disk::new(kind);
    let mut host = Host::rooted(name, &disk.path().join("root"));
    host.image();
    let begin = Instant::now();
    host.sleeper("c");
    let start = begin.elapsed();
    let begin = Instant::now();
    assert_eq!(removal(&host).run().code, 0);
    let end = begin.elapsed();
    for number in 0..CUTS {
        let at = start.mul_f64(share(number) * REACH);
        let point = Point(format!("cut {number}, {at:?} into a start of {start:?}"));
        let run = host.ctr_program().args(["run", "-d", "--null-io", IMAGE]);
        let run = run.args(["c", "sleep", "1000"]);
        let answered = cut(&disk, &mut host, at, run);
        if is_there(&host) {
            restart(&host);
            host.remove("c");
        } else {
            assert!(!answered, "what was answered is gone");
        }
        let_go(&host);
        host.sleeper("c");
        drop(point);

        let at = end.mul_f64(share(CUTS + number) * REACH);
        let point = Point(format!("cut {number}, {at:?} into a removal of {end:?}"));
        let work = removal(&host);
        let answered = cut(&disk, &mut host, at, work);
        if is_there(&host) {
            assert!(!answered, "what was removed is back");
            restart(&host);
            host.remove("c");
        }
        let_go(&host);
        drop(host.run(&["--rm"], "c", &["true"]).ok());
        drop(point);
    }
    host.finish();
    disk.finish();
}

fn answers(kind: FileSystem, name: &str) {
    let disk = Disk::new(kind);
    let mut host = Host::rooted(name, &disk.path().join("root"));
    host.image();
    for round in 0..ROUNDS {
        // Nothing of it was flushed but its records.
        let point = Point(format!("round {round}: made"));
        let create = ["containers", "create", IMAGE, "c", "sleep", "1000"];
        drop(host.ctr(create).ok());
        disk.cut();
        reboot(&disk, &mut host);
        sound(&host);
        assert!(is_there(&host));
        restart(&host);
        drop(point);

        // It has run for no time at all, and has synced a file.
        let point = Point(format!("round {round}: synced"));
        host.remove("c");
        host.sleeper("c");
        exec(
            &host,
            &format!("echo round {round} | dd of=/data conv=fsync"),
        );
        disk.cut();
        reboot(&disk, &mut host);
        sound(&host);
        restart(&host);
        assert_eq!(exec(&host, "cat /data"), format!("round {round}\n"));
        host.remove("c");
        let_go(&host);
        drop(point);
    }
    host.finish();
    disk.finish();
}
