//! What a worker does, and how it must end.
//!
//! Invariant: an operation that ends well has left nothing but what was there; one in whose middle the
//! daemon went away, or whose client was killed, is tidied up by its worker, as a client would, before
//! anybody looks.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use integration::{IMAGE, Output, Program};

use crate::dice::Dice;
use crate::figures::parent;
use crate::gate::{Gate, Turn};
use crate::images::Image;
use crate::killed;
use crate::kinds::{OPERATIONS, Operation};
use crate::listener::Listener;
use crate::talker::{ECHO, ECHO_CODE, Talker};
use crate::tally::Tally;

/// Until what was asked for is so.
const PATIENCE: Duration = Duration::from_secs(20);
const SIGKILL_CODE: &str = "exit with non-zero exit code 137";
/// What is heard about a container that lives, gets a process more, is killed and removed.
const LIFE: [&str; 9] = [
    "/containers/create",
    "/tasks/create",
    "/tasks/start",
    "/tasks/exec-added",
    "/tasks/exec-started",
    "/tasks/exit",
    "/tasks/exit",
    "/tasks/delete",
    "/containers/delete",
];

/// Our `ctr` on the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Ctr {
    pub(crate) base: Vec<String>,
    /// Where it makes its pipes.
    pub(crate) fifos: String,
}

impl Ctr {
    pub(crate) fn program<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Program {
        let (program, base) = self.base.split_first().expect("a program");
        Program::new(program).args(base).args(args)
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.program(args).run()
    }

    /// Lines of a list.
    pub(crate) fn list(&self, args: &[&str]) -> Result<Vec<String>, String> {
        let told = self.run(args);
        let text = right(told, 0, None)?.stdout;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ctr: Ctr,
    pub(crate) gate: Gate,
    pub(crate) tally: Tally,
    pub(crate) listener: Listener,
    pub(crate) images: Vec<Image>,
    /// Where the daemon tells about itself.
    pub(crate) debug: PathBuf,
    /// A client was killed since somebody looked last: what it held is held yet.
    pub(crate) is_bereft: AtomicBool,
    /// The containers that live all the time, with their processes.
    pub(crate) alive: Vec<(String, u32)>,
    pub(crate) talker: Mutex<Talker>,
    pub(crate) interrupted: AtomicU64,
    /// The first thing that went wrong.
    pub(crate) failure: Mutex<Option<String>>,
}

impl Shared {
    fn fail(&self, what: String) {
        let mut failure = self.failure.lock().expect("no panic");
        failure.get_or_insert(what);
        drop(failure);
        self.gate.close();
    }
}

/// Longest life of a client that is to be killed, ms: it may have done what it wanted by then.
const LONGEST_LIFE: u64 = 400;

/// One of those that work side by side.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    shared: &'a Shared,
    number: usize,
    done: u64,
    dice: Dice,
    /// The period in which a pull was interrupted or killed: until its end the lease of that keeps what it
    /// had.
    kept: Option<u64>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(shared: &'a Shared, number: usize, seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_add(number as u64));
        dice.roll(1);
        Self {
            shared,
            number,
            done: 0,
            dice,
            kept: None,
        }
    }

    /// Works until it is over.
    pub(crate) fn work(mut self) {
        while let Some(mut turn) = self.shared.gate.enter() {
            self.done += 1;
            let at = self.dice.roll(OPERATIONS.len() as u64);
            let operation = OPERATIONS[usize::try_from(at).expect("small")];
            let id = format!("w{}-{}", self.number, self.done);
            let alive = self.dice.roll(self.shared.alive.len() as u64);
            let alive = usize::try_from(alive).expect("small");
            let life = Duration::from_millis(self.dice.roll(LONGEST_LIFE));
            let mut told = self.perform(operation, &id, alive, life, &turn);
            let is_disturbed = turn.is_disturbed();
            if is_disturbed && told.is_err() {
                self.shared.interrupted.fetch_add(1, Ordering::Relaxed);
            }
            if operation.is_killed() {
                self.shared.is_bereft.store(true, Ordering::Relaxed);
            }
            let mut is_untidy = is_disturbed || (operation.is_killed() && told.is_ok());
            if is_untidy && operation.is_of_image() {
                self.kept = Some(turn.period());
            }
            // Again when the daemon goes away in the middle of that, too.
            while is_untidy && turn.again() {
                told = self.tidy(operation, &id, alive);
                is_untidy = turn.is_disturbed();
            }
            self.shared.listener.forget(&id);
            if let Err(what) = told
                && !self.shared.gate.is_closed()
            {
                return self.shared.fail(format!("{operation:?} {id}: {what}"));
            }
        }
    }

    fn perform(
        &self,
        operation: Operation,
        id: &str,
        alive: usize,
        life: Duration,
        turn: &Turn<'_>,
    ) -> Result<(), String> {
        match operation {
            Operation::KilledShim => self.kill_shim(id),
            operation if operation.is_killed() => {
                self.kill_client(operation, id, &self.shared.alive[alive].0, life)
            }
            Operation::Run => self.run(IMAGE, id),
            Operation::Life => self.life(id, turn),
            Operation::Exec => self.exec(&self.shared.alive[alive].0, id),
            Operation::Attach => self.attach(id),
            Operation::Talk => {
                let mut talker = self.shared.talker.lock().expect("no panic");
                self.timed("talk", || talker.say(id))
            }
            Operation::Image => self.image(id, turn),
            _ => self.look(),
        }
    }

    /// Where the pipes of an operation are.
    fn fifos(&self, id: &str) -> String {
        format!("{}/{id}", self.shared.ctr.fifos)
    }

    /// Its client has removed its pipes, and nothing else is there.
    fn has_no_pipes(&self, id: &str) -> Result<(), String> {
        let dir = self.fifos(id);
        fs::remove_dir(&dir).map_err(|e| format!("pipes are left in {dir}: {e}"))
    }

    fn timed<T>(&self, kind: &'static str, work: impl FnOnce() -> T) -> T {
        self.shared.tally.timed(kind, work)
    }

    /// Does it with `ctr`, which must end with 0.
    fn ctr(&self, kind: &'static str, args: &[&str]) -> Result<Output, String> {
        let told = self.timed(kind, || self.shared.ctr.run(args));
        right(told, 0, None)
    }

    fn run(&self, image: &str, id: &str) -> Result<(), String> {
        let code = i32::try_from(self.done % 200).expect("small");
        let script = format!("echo I am {id}; exit {code}");
        let fifos = &self.fifos(id);
        let args = ["run", "--rm", "--fifo-dir", fifos, image, id, "sh", "-c"];
        let program = self.shared.ctr.program(args).args([&script]);
        let told = self.timed("run", || program.run());
        let told = right(told, code, Some(&format!("I am {id}\n")))?;
        quiet(&told)?;
        self.has_no_pipes(id)
    }

    fn exec(&self, container: &str, id: &str) -> Result<(), String> {
        let code = i32::try_from(self.done % 200).expect("small");
        let script = format!("echo {id} is in; exit {code}");
        let args = ["tasks", "exec", "--exec-id", id, "--fifo-dir"];
        let program = self.shared.ctr.program(args);
        let program = program.args([&self.fifos(id), container, "sh", "-c", &script]);
        let told = self.timed("exec", || program.run());
        let told = right(told, code, Some(&format!("{id} is in\n")))?;
        quiet(&told)?;
        self.has_no_pipes(id)
    }

    fn life(&self, id: &str, turn: &Turn<'_>) -> Result<(), String> {
        let run = ["run", "-d", "--null-io", IMAGE, id, "sleep", "100000"];
        self.ctr("start", &run)?;
        self.exec(id, &format!("{id}-x"))?;
        let begin = Instant::now();
        self.ctr("kill", &["tasks", "kill", "-s", "KILL", id])?;
        while self.status(id)?.as_deref() != Some("STOPPED") {
            if begin.elapsed() > PATIENCE {
                return Err("it does not stop".to_owned());
            }
        }
        let told = self.ctr("delete", &["tasks", "rm", id])?;
        if !told.stderr.trim_end().ends_with(SIGKILL_CODE) {
            return Err(format!("killed, but: {}", told.stderr));
        }
        self.ctr("remove", &["containers", "rm", id])?;
        self.shared.listener.expect(id, &LIFE, turn)
    }

    fn attach(&self, id: &str) -> Result<(), String> {
        let run = ["run", "-d", "--log-uri", "attach://", IMAGE, id];
        let program = self.shared.ctr.program(run).args(["sh", "-c", ECHO]);
        right(self.timed("start", || program.run()), 0, None)?;
        let program = self.shared.ctr.program(["tasks", "attach", id]);
        let program = program.input(format!("{id}\nend\n").as_bytes());
        let told = self.timed("attach", || program.run());
        let said = format!("heard {id}\nheard end\n");
        right(told, ECHO_CODE, Some(&said))?;
        quiet(&self.ctr("remove", &["containers", "rm", id])?)
    }

    fn image(&self, id: &str, turn: &Turn<'_>) -> Result<(), String> {
        let image = &self.shared.images[self.number];
        let name = image.reference.as_str();
        self.ctr("pull", &["images", "pull", "--plain-http", name])?;
        self.has(image, true)?;
        let fifos = &self.fifos(id);
        let args = ["run", "--rm", "--fifo-dir", fifos, name, id, "cat", "/who"];
        let told = self.timed("run", || self.shared.ctr.run(args));
        quiet(&right(told, 0, Some(&image.who))?)?;
        self.has_no_pipes(id)?;
        self.ctr("image rm", &["images", "rm", "--sync", name])?;
        if self.kept == Some(turn.period()) {
            return Ok(());
        }
        self.has(image, false)
    }

    /// Whether the image's blobs are there.
    fn has(&self, image: &Image, wanted: bool) -> Result<(), String> {
        let all = self.ctr("list", &["content", "ls", "-q"])?.stdout;
        let is_there = |blob: &String| all.lines().any(|line| line == blob);
        match image.blobs.iter().find(|blob| is_there(blob) != wanted) {
            None => Ok(()),
            Some(blob) => Err(format!("{blob} is there: {}, want {wanted}", !wanted)),
        }
    }

    fn look(&self) -> Result<(), String> {
        let table = self.ctr("list", &["tasks", "ls"])?.stdout;
        for (id, pid) in &self.shared.alive {
            let want = [id.as_str(), &pid.to_string(), "RUNNING"];
            let mut rows = table.lines().map(str::split_whitespace);
            if !rows.any(|row| row.eq(want)) {
                return Err(format!("{id} {pid} does not run:\n{table}"));
            }
        }
        Ok(())
    }

    /// Kills a client in the middle of what it asks for.
    fn kill_client(
        &self,
        operation: Operation,
        id: &str,
        container: &str,
        life: Duration,
    ) -> Result<(), String> {
        let (ctr, fifos) = (&self.shared.ctr, &self.fifos(id));
        let script = "echo said; usleep 50000";
        let run = [
            "run",
            "--rm",
            "--fifo-dir",
            fifos,
            IMAGE,
            id,
            "sh",
            "-c",
            script,
        ];
        let exec = [
            "tasks",
            "exec",
            "--exec-id",
            id,
            "--fifo-dir",
            fifos,
            container,
            "sh",
            "-c",
            script,
        ];
        let name = &self.shared.images[self.number].reference;
        match operation {
            Operation::KilledExec => killed::after(ctr, &exec, life),
            Operation::KilledPull => {
                killed::after(ctr, &["images", "pull", "--plain-http", name], life);
            }
            Operation::KilledAttach => {
                let run = ["run", "-d", "--log-uri", "attach://", IMAGE, id];
                let program = ctr.program(run).args(["sh", "-c", ECHO]);
                right(self.timed("start", || program.run()), 0, None)?;
                killed::after(ctr, &["tasks", "attach", id], life);
                // Others may have what that one had.
                let program = ctr.program(["tasks", "attach", id]);
                let told = program.input(b"end\n").run();
                right(told, ECHO_CODE, Some("heard end\n"))?;
            }
            _ => killed::after(ctr, &run, life),
        }
        Ok(())
    }

    /// A container whose shim is killed is told to have been killed, and goes like others.
    fn kill_shim(&self, id: &str) -> Result<(), String> {
        let run = ["run", "-d", "--null-io", IMAGE, id, "sleep", "100000"];
        self.ctr("start", &run)?;
        let table = self.ctr("list", &["tasks", "ls"])?.stdout;
        let mut rows = table.lines().map(str::split_whitespace);
        let row = rows.find(|row| row.clone().next() == Some(id));
        let pid = row.and_then(|mut row| row.nth(1)?.parse().ok());
        let shim = pid.and_then(parent).map(|(shim, _)| shim);
        let shim = shim.ok_or_else(|| format!("{id} does not run:\n{table}"))?;
        let process = sys::pidfd::open(shim).map_err(|e| e.to_string())?;
        sys::pidfd::send_signal(process, 9).map_err(|e| e.to_string())?;
        let begin = Instant::now();
        while self.status(id)?.as_deref() != Some("STOPPED") {
            if begin.elapsed() > PATIENCE {
                return Err("it is not noticed that its shim is gone".to_owned());
            }
        }
        let told = self.ctr("delete", &["tasks", "rm", id])?;
        if !told.stderr.trim_end().ends_with(SIGKILL_CODE) {
            return Err(format!("its shim was killed, but: {}", told.stderr));
        }
        self.ctr("remove", &["containers", "rm", id])?;
        Ok(())
    }

    /// What a task does; `None` when there is none.
    fn status(&self, id: &str) -> Result<Option<String>, String> {
        let table = self.ctr("list", &["tasks", "ls"])?.stdout;
        let mut rows = table.lines().map(str::split_whitespace);
        let row = rows.find(|row| row.clone().next() == Some(id));
        Ok(row.and_then(|mut row| row.nth(2).map(str::to_owned)))
    }

    /// Removes what an operation has left, whatever it is.
    fn tidy(&self, operation: Operation, id: &str, alive: usize) -> Result<(), String> {
        match operation {
            Operation::Talk | Operation::Look => {}
            Operation::Exec | Operation::KilledExec => {
                self.end_exec(&self.shared.alive[alive].0, id)?;
            }
            Operation::Image | Operation::KilledPull => {
                self.end(id)?;
                let name = self.shared.images[self.number].reference.as_str();
                // What was fetched of it is taken up by the next pull.
                self.ctr("pull", &["images", "pull", "--plain-http", name])?;
                self.ctr("image rm", &["images", "rm", "--sync", name])?;
            }
            _ => self.end(id)?,
        }
        // Those of a client that was killed, or that does not know what became of its process.
        for dir in [self.fifos(id), self.fifos(&format!("{id}-x"))] {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("remove {dir}: {e}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Until the exec is not there.
    fn end_exec(&self, container: &str, id: &str) -> Result<(), String> {
        killed::is_over(&self.shared.ctr, container)?;
        let begin = Instant::now();
        loop {
            let args = ["tasks", "rm", "--force", "--exec-id", id, container];
            let told = self.shared.ctr.run(args);
            if told.code != 0 && told.stderr.contains("not found") {
                return Ok(());
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("the exec stays: {told:?}"));
            }
        }
    }

    /// Until the container is not there, nor its task, nor its snapshot.
    fn end(&self, id: &str) -> Result<(), String> {
        killed::is_over(&self.shared.ctr, id)?;
        let begin = Instant::now();
        while let Some(status) = self.status(id)? {
            let args: &[&str] = match status.as_str() {
                "UNKNOWN" => &["tasks", "ls"],
                "STOPPED" => &["tasks", "rm", id],
                _ => &["tasks", "kill", "-s", "KILL", id],
            };
            // The end may be a moment behind the kill, or before it.
            let told = self.shared.ctr.run(args);
            if begin.elapsed() > PATIENCE {
                return Err(format!("{status} for {PATIENCE:?}: {told:?}"));
            }
        }
        for (list, remove) in [
            (&["containers", "ls", "-q"][..], ["containers", "rm", id]),
            // That of a client that had no container yet.
            (&["snapshots", "ls"][..], ["snapshots", "rm", id]),
        ] {
            let lines = self.shared.ctr.list(list)?;
            let of = |line: &String| line.split_whitespace().next() == Some(id);
            if lines.iter().any(of) {
                let told = self.shared.ctr.run(remove);
                // The collector may be faster.
                if told.code == 0 || !told.stderr.contains("not found") {
                    right(told, 0, None)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Worker<'_> {
    /// What a panic ends ends for all.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.gate.close();
        }
    }
}

/// The output, if it is as wanted.
fn right(told: Output, code: i32, stdout: Option<&str>) -> Result<Output, String> {
    let is_right = told.code == code && stdout.is_none_or(|text| told.stdout == text);
    if is_right {
        return Ok(told);
    }
    Err(format!("want code {code} and {stdout:?}: {told:?}"))
}

/// Nobody complained.
fn quiet(told: &Output) -> Result<(), String> {
    if told.stderr.is_empty() {
        return Ok(());
    }
    Err(format!("complaints: {told:?}"))
}
