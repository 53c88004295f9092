//! The daemon is killed at any moment of what it does, again and again, with containers that live through
//! all of it: none is lost, no process ends with another code than its own, and in the end there is
//! nothing that belongs to nobody.
//!
//! ```text
//! ten containers -> an operation, a kill in the middle of it -> start -> look -> tidy -> fsck
//!                      ^----------------------------------------------------'
//! ```
//! `KILLS=500` makes it a long one, `SEED` another one.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use client::Client;
use integration::{Host, IMAGE, Output, Program, archive, figure, until};
use types::ContainerId;

/// Kills, unless `KILLS` says how many.
const KILLS: usize = 25;
/// Containers that live all the time.
const ALIVE: usize = 10;
/// The code of the container that ends by itself, and that of the exec.
const CODE: u32 = 7;
const EXEC_CODE: i32 = 5;
/// The one that is made and removed, and the one that ends by itself.
const MADE: &str = "made";
const ENDS: &str = "ends";
const LIMIT: Duration = integration::PATIENCE;

fn number(name: &str, default: usize) -> usize {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// Numbers that come again with the seed.
struct Dice(u64);

impl Dice {
    /// A number below `end`.
    fn roll(&mut self, end: u128) -> u128 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u128::from(self.0 >> 33) % end.max(1)
    }
}

/// What the daemon does when it is killed.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// The image is removed and comes again.
    Image,
    /// A container is made, started, gets a process more, is killed and removed.
    Life,
    /// A container is made that ends by itself.
    End,
}

const OPERATIONS: [Operation; 3] = [Operation::Image, Operation::Life, Operation::End];

/// Where a container's process leaves word that it has run.
fn notes(host: &Host) -> PathBuf {
    host.path("notes")
}

/// The commands of an operation, one after the other; each with whether its own code is that of the
/// process that it runs.
fn commands(host: &Host, operation: Operation) -> Vec<(Program, Option<i32>)> {
    let ctr = |args: &[&str]| (host.ctr_program().args(args), None);
    let run = |id: &str, script: &str| {
        let run = host.ctr_program().args(["run", "-d", "--null-io"]);
        let run = run.args(host.runtime_flags());
        let notes = notes(host).display().to_string();
        let mount = format!("type=bind,src={notes},dst=/notes,options=rbind:rw");
        let run = run.args(["--mount", &mount]);
        (run.args([IMAGE, id, "sh", "-c", script]), None)
    };
    match operation {
        Operation::Image => {
            let archive = archive().display().to_string();
            vec![
                ctr(&["images", "rm", "--sync", IMAGE]),
                ctr(&["images", "import", &archive]),
            ]
        }
        Operation::Life => {
            let exec = host
                .ctr_program()
                .args(["tasks", "exec", "--exec-id", "x", MADE]);
            let exec = exec.args(["sh", "-c", &format!("exit {EXEC_CODE}")]);
            vec![
                run(MADE, "sleep 100000"),
                (exec, Some(EXEC_CODE)),
                ctr(&["tasks", "kill", "-s", "KILL", MADE]),
                ctr(&["tasks", "rm", MADE]),
                ctr(&["containers", "rm", MADE]),
            ]
        }
        Operation::End => vec![run(ENDS, &format!("touch /notes/{ENDS}; exit {CODE}"))],
    }
}

/// Runs them until one fails: all but the answer of a process are answers of the daemon.
fn go(commands: Vec<(Program, Option<i32>)>) {
    for (program, code) in commands {
        let told: Output = program.run();
        match code {
            // The client says why when it does not know the code.
            Some(code) if told.code != code => {
                assert!(told.code != 0 && !told.stderr.is_empty(), "{told:?}");
                return;
            }
            // The end may be a moment behind the kill: then what is to go is not gone yet.
            None if told.code != 0 && !told.line.contains("\"rm\"") => return,
            Some(_) | None => {}
        }
    }
}

/// The sweep, with what it knows of its daemon.
struct Sweep {
    host: Host,
    runtime: tokio::runtime::Runtime,
    /// The containers that live, with their processes.
    alive: Vec<(String, u32)>,
}

impl Sweep {
    fn new() -> Self {
        let host = Host::new("kill-sweep");
        fs::create_dir(notes(&host)).expect("mkdir");
        host.image();
        let alive = (0..ALIVE).map(|number| {
            let id = format!("alive-{number}");
            host.sleeper(&id);
            let pid = host.task(&id, "RUNNING").expect("runs");
            (id, pid)
        });
        let alive = alive.collect();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("start a runtime");
        Self {
            host,
            runtime,
            alive,
        }
    }

    /// The exit code that the daemon has of a container.
    fn code(&self, id: &str) -> u32 {
        let address = self.host.address().display().to_string();
        let namespace = self.host.namespace().parse().expect("a namespace");
        let id: ContainerId = id.parse().expect("an id");
        let ask = async {
            let client = Client::connect(&address, namespace, LIMIT).await?;
            client.tasks().wait(&id, None).await
        };
        self.runtime.block_on(ask).expect("an exit").status
    }

    /// Those that live are listed with their processes, and those run.
    fn nobody_is_lost(&self) {
        let table = self.host.ctr(["tasks", "ls"]).ok();
        for (id, pid) in &self.alive {
            let row = table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .find(|words| words.first() == Some(&id.as_str()));
            let want = [id.clone(), pid.to_string(), "RUNNING".to_owned()];
            assert_eq!(row.expect("it is listed"), want, "{table}");
            let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
            assert!(!text.contains("State:\tZ"), "{text}");
        }
    }

    /// Ends and removes what the operation has left, with a look at how it ended.
    fn tidy(&self) {
        let is = |id: &str, status: &str| self.host.task(id, status).is_some();
        let names = self.host.ctr(["tasks", "ls", "-q"]).ok();
        for id in [MADE, ENDS]
            .into_iter()
            .filter(|id| names.lines().any(|l| l == *id))
        {
            until("it is known what it does", || !is(id, "UNKNOWN"));
            // One that was never started ends by no code of its own; its shim may still be making it.
            let mut is_killed = false;
            until("it ends", || {
                if is(id, "CREATED") || (id == MADE && !is(id, "STOPPED")) {
                    is_killed = true;
                    drop(self.host.ctr(["tasks", "kill", "-s", "KILL", id]));
                }
                is(id, "STOPPED")
            });
            let has_run = fs::remove_file(notes(&self.host).join(id)).is_ok();
            let (code, killed) = (self.code(id), 128 + 9);
            let want = if has_run { CODE } else { killed };
            // It may be started after all, and be killed between its word and its end.
            let is_ours = is_killed && code == killed;
            assert!(is_ours || code == want, "{id}: {code}, not {want}");
            drop(self.host.ctr(["tasks", "rm", id]));
        }
        let names = self.host.ctr(["containers", "ls", "-q"]).ok();
        for id in [MADE, ENDS]
            .into_iter()
            .filter(|id| names.lines().any(|l| l == *id))
        {
            drop(self.host.ctr(["containers", "rm", id]).ok());
        }
        let leases = self.host.ctr(["leases", "ls", "-q"]).ok();
        for lease in leases.lines() {
            drop(self.host.ctr(["leases", "rm", "--sync", lease]).ok());
        }
        // One whose client was killed between the two was neither removed nor given up.
        let snapshots = self.host.ctr(["snapshots", "ls"]).ok();
        for id in [MADE, ENDS] {
            let of = |line: &str| line.split_whitespace().next() == Some(id);
            if snapshots.lines().any(of) {
                drop(self.host.ctr(["snapshots", "rm", id]).ok());
            }
        }
        if !self.host.ctr(["images", "ls", "-q"]).ok().contains(IMAGE) {
            self.host.image();
        }
    }

    /// The operation, and a kill `after` a while; how long the operation has taken, when it was left alone.
    fn round(&mut self, operation: Operation, after: Option<Duration>) -> Duration {
        let commands = commands(&self.host, operation);
        let begun = Instant::now();
        let going = std::thread::spawn(move || go(commands));
        if let Some(after) = after {
            while begun.elapsed() < after {
                std::thread::sleep(Duration::from_micros(200));
            }
            self.host.kill();
            going.join().expect("no wrong code");
            self.host.start();
        } else {
            going.join().expect("no wrong code");
        }
        let took = begun.elapsed();
        self.nobody_is_lost();
        self.tidy();
        took
    }

    fn finish(mut self) {
        // What a client left behind is gone; what the daemon left behind, it finds by itself.
        self.host.kill();
        self.host.start();
        self.nobody_is_lost();
        let mut found = String::new();
        until("nothing is wrong", || {
            found = self.host.ctr(["fsck"]).stdout;
            figure(format_args!("{found}"));
            found.ends_with("nothing is wrong\n")
        });
        for (id, _) in std::mem::take(&mut self.alive) {
            self.host.remove(&id);
        }
        self.host.finish();
    }
}

#[test]
fn kills_at_any_moment_lose_no_container_and_leave_nothing() {
    let (kills, seed) = (number("KILLS", KILLS), number("SEED", 20_261_130));
    let mut dice = Dice(u64::try_from(seed).expect("a number"));
    let mut sweep = Sweep::new();
    let took = OPERATIONS.map(|operation| sweep.round(operation, None));
    for kill in 0..kills {
        let which = usize::try_from(dice.roll(OPERATIONS.len() as u128)).expect("small");
        let (operation, took) = (OPERATIONS[which], took[which]);
        let after = u64::try_from(dice.roll(took.as_micros())).expect("short");
        let after = Duration::from_micros(after);
        let point = Point(format!(
            "kill {kill} of {kills}, {operation:?} after {after:?} of {took:?}"
        ));
        sweep.round(operation, Some(after));
        drop(point);
    }
    figure(format_args!(
        "{kills} kills with seed {seed}, {ALIVE} containers alive"
    ));
    sweep.finish();
}

/// Says where a sweep failed.
struct Point(String);

impl Drop for Point {
    fn drop(&mut self) {
        if std::thread::panicking() {
            figure(format_args!("at {}", self.0));
        }
    }
}
