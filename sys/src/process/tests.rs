//! Tests of spawning: descriptors, environment, failures, deadlines.

use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use super::*;
use crate::pipe;

const SOON: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Spawn {
    Spawn::new("sh").arg("-c").arg(script)
}

fn text(spawn: Spawn) -> String {
    let output = spawn.output(b"", 1 << 16, SOON).unwrap();
    assert!(output.status.is_success(), "{output:?}");
    String::from_utf8(output.text).unwrap()
}

#[test]
fn exit_codes_and_signals_are_told_apart() {
    assert_eq!(
        shell("exit 42").spawn().unwrap().wait().unwrap(),
        Status::Exited(42)
    );
    let killed = shell("kill -9 $$").spawn().unwrap().wait().unwrap();
    assert_eq!((killed, killed.code()), (Status::Signaled(9), 137));
}

#[test]
fn only_the_given_descriptors_arrive_also_when_numbers_cross() {
    let (read, write) = pipe::new().unwrap();
    // A descriptor that is not close-on-exec must not get through either.
    let leak = File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let other = File::create("/dev/null").unwrap();
    let child = Spawn::new("/bin/sh")
        .args(["-c", "ls /proc/self/fd >&7"])
        .fd(write, 7)
        .fd(other.into(), 5)
        .spawn()
        .unwrap();
    let mut said = String::new();
    File::from(read).read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().is_success());
    // 3 is the directory that ls itself reads.
    assert_eq!(
        said.split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3", "5", "7"]
    );
}

#[test]
fn a_child_that_runs_has_nothing_more_of_ours() {
    // Those of other tests would have it.
    let name = "process::tests::a_child_that_runs_has_nothing_more_of_ours";
    crate::testing::alone(name, || {
        // So many that to close them takes a while.
        let most = crate::limits::raise_open_files().unwrap() / 2;
        let some = null().unwrap();
        let many: Vec<_> = { 0..most.min(10_000) }
            .map(|_| some.try_clone().unwrap())
            .collect();
        for _ in 0..20 {
            let (read, write) = pipe::new().unwrap();
            let child = Spawn::new("true").spawn().unwrap();
            drop(write);
            assert!(!pipe::has_writer(&read));
            assert!(child.wait().unwrap().is_success());
        }
        drop(many);
    });
}

#[test]
fn environment_and_directory_are_as_asked() {
    let said = text(
        Spawn::new("/bin/sh")
            .args(["-c", "echo $A-$B-${C-unset}; pwd"])
            .env_clear()
            .env("A", "1")
            .env("A", "2")
            .env("B", "x y")
            .env("C", "gone")
            .env_remove("C")
            .cwd("/usr"),
    );
    assert_eq!(said, "2-x y-unset\n/usr\n");
}

#[test]
fn what_a_service_manager_has_told_stays_with_whom_it_told() {
    let script = "echo $NOTIFY_SOCKET-$WATCHDOG_USEC-$WATCHDOG_PID-$OTHER";
    let given = shell(script)
        .env("NOTIFY_SOCKET", "/run/notify")
        .env("WATCHDOG_USEC", "1")
        .env("WATCHDOG_PID", "2")
        .env("OTHER", "kept");
    assert_eq!(text(given.unmanaged()), "---kept\n");
}

#[test]
fn signal_state_of_the_child_is_clean() {
    let said = text(Spawn::new("cat").arg("/proc/self/status"));
    for field in ["SigBlk", "SigIgn"] {
        let line = said.lines().find(|l| l.starts_with(field)).unwrap();
        let bits = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        // The C library keeps 32 and 33 for itself and refuses to touch them.
        assert_eq!(bits & !(0b11 << 31), 0, "{line}");
    }
}

#[test]
fn a_group_of_its_own_has_its_pid() {
    let child = Spawn::new("sleep").arg("60").new_group().spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.pid().cast_signed());
    assert_eq!(rustix::process::getpgid(pid).ok(), pid);
    child.kill(libc::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap(), Status::Signaled(9));
    child.kill(libc::SIGKILL).unwrap();
}

#[test]
fn failures_before_exec_are_told_and_leave_no_child() {
    let missing = Spawn::new("no-such-program-here").spawn().unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    let missing = Spawn::new("/no/such/program").spawn().unwrap_err();
    assert_eq!(
        missing.to_string(),
        "exec /no/such/program: no such file or directory"
    );
    let directory = Spawn::new("/bin/true").cwd("/no/such").spawn().unwrap_err();
    assert_eq!(
        directory.to_string(),
        "chdir /no/such: no such file or directory"
    );
}

#[test]
fn input_is_fed_and_both_streams_are_collected() {
    let big = vec![b'x'; 300_000];
    let output = shell("wc -c; echo problem >&2")
        .output(&big, 1 << 16, SOON)
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.text), "300000\nproblem\n");
}

#[test]
fn a_grandchild_that_keeps_the_pipe_does_not_delay_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &gate,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let script = format!("(read line < {0}) & echo done", gate.display());
    assert_eq!(text(shell(&script)), "done\n");
    // Lets the grandchild go.
    std::fs::write(&gate, "x\n").unwrap();
}

#[test]
fn deadline_and_limit_end_the_helper() {
    let late = shell("sleep 60")
        .output(b"", 10, Duration::from_millis(50))
        .unwrap_err();
    assert!(late.is(types::Code::DeadlineExceeded), "{late}");
    let chatty = shell("while :; do echo x; done")
        .output(b"", 100, SOON)
        .unwrap_err();
    assert!(chatty.is(types::Code::ResourceExhausted), "{chatty}");
}

#[test]
fn a_process_on_its_way_out_is_known_before_it_can_be_waited_for() {
    let (ready, theirs) = pipe::new().unwrap();
    let child = Spawn::new("true").fd(theirs, 3).spawn().unwrap();
    let mut end = Vec::new();
    // It never closes the descriptor itself: the end of the pipe is the beginning of its own.
    std::io::Read::read_to_end(&mut File::from(ready), &mut end).unwrap();
    assert!(is_exiting(child.pid()));
    child.wait().unwrap();
    assert!(!is_exiting(std::process::id()));
}

#[test]
fn a_tree_is_killed_with_those_that_left_its_group() {
    let (read, write) = pipe::new().unwrap();
    // Everybody in the tree holds the pipe: its end is theirs.
    let child = shell("sleep 60 & setsid sh -c 'sleep 60 & echo up; wait' & wait")
        .stdout(write)
        .new_group()
        .spawn()
        .unwrap();
    let mut pipe = File::from(read);
    let mut line = [0; 3];
    pipe.read_exact(&mut line).unwrap();
    assert_eq!(children(child.pid()).unwrap().len(), 2);
    kill_tree(child.pid()).unwrap();
    assert_eq!(child.wait().unwrap(), Status::Signaled(9));
    let mut rest = String::new();
    pipe.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_command_line_has_a_nul_behind_every_argument() {
    let spawn = Spawn::new("sleep").arg("60");
    let expected = spawn.command_line();
    let child = spawn.spawn().unwrap();
    assert_eq!(expected, b"sleep\x0060\0");
    // The kernel shows it a moment after the new program has begun.
    let until = std::time::Instant::now() + SOON;
    while command_line(child.pid()).is_empty() && std::time::Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(command_line(child.pid()), expected);
    child.kill(libc::SIGKILL).unwrap();
    child.wait().unwrap();
    assert_eq!(command_line(child.pid()), b"");
}

#[test]
fn a_start_time_tells_processes_of_one_pid_apart() {
    let mine = start_time(std::process::id()).unwrap();
    assert!(mine > 0);
    assert_eq!(start_time(std::process::id()), Some(mine));
    let child = Spawn::new("sleep").arg("60").spawn().unwrap();
    assert!(start_time(child.pid()).unwrap() >= mine);
    child.kill(libc::SIGKILL).unwrap();
    child.wait().unwrap();
    assert_eq!(start_time(child.pid()), None);
}

#[test]
fn an_answer_is_cut_and_its_errors_are_apart() {
    let script = "echo no >&2; cat; head -c 300000 /dev/zero; exit 3";
    let said = shell(script).answer(b"in", 1000, SOON).unwrap();
    assert_eq!(said.status, Status::Exited(3));
    assert_eq!(said.errors, b"no\n");
    assert!(said.text.starts_with(b"in\0\0") && said.text.len() == 1000 && said.is_cut);
    let said = shell("printf x").answer(b"", 1, SOON).unwrap();
    assert_eq!((said.text.as_slice(), said.is_cut), (&b"x"[..], false));
}

#[test]
fn who_answers_too_late_is_killed_with_its_children() {
    let (hold, released) = pipe::new().unwrap();
    let script = shell("sleep 1000 & yes").fd(released, 9);
    let error = script
        .answer(b"", 10, Duration::from_millis(50))
        .unwrap_err();
    assert!(error.is(types::Code::DeadlineExceeded), "{error}");
    // The end of the pipe comes when nobody has it open: all of them are gone.
    let mut rest = Vec::new();
    File::from(hold).read_to_end(&mut rest).unwrap();
}

#[test]
fn whatever_way_a_program_fails_nothing_of_it_is_left_at_work() {
    for end in ["kill -9 $$", "exit 3"] {
        let (hold, released) = pipe::new().unwrap();
        let script = format!("sleep 1000 >/dev/null 2>&1 & echo $!; {end}");
        let said = shell(&script)
            .fd(released, 9)
            .answer(b"", 10, SOON)
            .unwrap();
        assert!(!said.status.is_success(), "{end}");
        // Already: nobody waits for it.
        let sleeper = String::from_utf8(said.text).unwrap();
        assert!(is_exiting(sleeper.trim().parse().unwrap()), "{end}");
        // And it lets go of what it had. A child of another test may have that a moment longer.
        assert!(pipe::is_readable_within(&hold, SOON), "{end}");
        let read = File::from(hold).read(&mut [0]);
        assert_eq!(read.unwrap(), 0, "{end}");
    }
    // Whoever ends well may leave somebody behind.
    let (hold, released) = pipe::new().unwrap();
    let script = shell("sleep 1000 >/dev/null 2>&1 & echo $!").fd(released, 9);
    let said = script.answer(b"", 10, SOON).unwrap();
    let pid = String::from_utf8(said.text)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    crate::fs::set_nonblocking(&hold, true).unwrap();
    let mut hold = File::from(hold);
    let error = hold.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    pidfd::send_signal(pidfd::open(pid).unwrap(), libc::SIGKILL).unwrap();
}

#[test]
fn a_file_that_grows_too_long_ends_its_writer() {
    let temp = tempfile::tempdir().unwrap();
    for (length, status) in [("4096", Status::Exited(0)), ("4097", Status::Signaled(25))] {
        let child = Spawn::new("/bin/sh")
            .args(["-c", "exec head -c $0 /dev/zero >f", length])
            .cwd(temp.path())
            .longest_file(4096)
            .spawn()
            .unwrap();
        assert_eq!(child.wait().unwrap(), status);
    }
}
