//! Running programs, and waiting for conditions.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a program printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + signal when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The command line, for messages.
    pub line: String,
}

impl Output {
    /// Standard output of a program that must have succeeded.
    ///
    /// # Panics
    /// When it did not exit with 0.
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "{}\nstdout: {}\nstderr: {}",
            self.line, self.stdout, self.stderr
        );
        self.stdout
    }

    /// Standard error of a program that must have failed.
    ///
    /// # Panics
    /// When it exited with 0.
    #[must_use]
    pub fn err(self) -> String {
        assert_ne!(
            self.code, 0,
            "{} should have failed\nstdout: {}",
            self.line, self.stdout
        );
        self.stderr
    }
}

/// A command under construction, with a deadline.
#[derive(Debug)]
pub struct Program {
    command: Command,
    input: Vec<u8>,
    limit: Duration,
}

impl Program {
    /// A command by name or path; it may take 60 seconds.
    #[must_use]
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(name),
            input: Vec::new(),
            limit: Duration::from_secs(60),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes an environment variable away that the test may have.
    #[must_use]
    pub fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Gives it standard input.
    #[must_use]
    pub fn input(mut self, input: &[u8]) -> Self {
        self.input = input.to_vec();
        self
    }

    /// Changes its deadline.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end in time.
    #[must_use]
    pub fn run(mut self) -> Output {
        use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
        let line = format!("{:?}", self.command);
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let until = Instant::now() + PATIENCE;
        let mut child = loop {
            match self.command.spawn() {
                Ok(child) => break child,
                // A binary that was just copied: a child that another thread forked meanwhile holds
                // the copy's descriptor until its own exec.
                Err(e)
                    if e.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => panic!("start {line}: {e}"),
            }
        };
        let mut stdin = child.stdin.take().expect("piped");
        let input = std::mem::take(&mut self.input);
        let feed = std::thread::spawn(move || {
            // A program that ends without reading its input is no failure of the feeder.
            drop(stdin.write_all(&input));
        });
        let read = |mut from: Box<dyn std::io::Read + Send>| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                from.read_to_end(&mut text).expect("read a pipe");
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let stdout = read(Box::new(child.stdout.take().expect("piped")));
        let stderr = read(Box::new(child.stderr.take().expect("piped")));
        let deadline = Instant::now() + self.limit;
        let status = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break status;
            }
            if Instant::now() > deadline {
                let group = rustix::process::Pid::from_child(&child);
                let _gone =
                    rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                drop(child.wait());
                let (out, err) = (stdout.join(), stderr.join());
                panic!("{line} took longer than {:?}\n{out:?}\n{err:?}", self.limit);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        feed.join().expect("feeder");
        Output {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: stdout.join().expect("reader"),
            stderr: stderr.join().expect("reader"),
            line,
        }
    }
}

/// How long what must happen is waited for. It bounds a failure and measures nothing: behind a build of
/// gigabytes a single fsync may take tens of seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; polls, because what it looks at is in another process.
///
/// # Panics
/// When it does not hold within [`PATIENCE`]; `what` says what was awaited.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    until_told(what, condition, || "");
}

/// As [`until`], and `found` says in its panic what was there instead.
///
/// # Panics
/// As [`until`].
pub fn until_told<T: std::fmt::Display>(
    what: &str,
    mut condition: impl FnMut() -> bool,
    found: impl Fn() -> T,
) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        let is_over = Instant::now() >= deadline;
        assert!(!is_over, "waited {PATIENCE:?} in vain: {what} {}", found());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes a program of this text, interpreter and all; its path, as others are told it.
///
/// # Panics
/// When it cannot be written.
#[must_use]
pub fn script(path: &Path, text: &str) -> String {
    // By another process: whatever is forked here meanwhile would hold our descriptor for a moment, and
    // what is open for writing cannot be run.
    let write = ["-c", "cat >\"$0\" && chmod 755 \"$0\""];
    let write = Program::new("/bin/sh").args(write).args([path]);
    drop(write.input(text.as_bytes()).run().ok());
    path.display().to_string()
}

/// Copies a program; by another process, as [`script`] writes one.
///
/// # Panics
/// When it cannot be copied.
pub fn copy(from: &Path, to: &Path) {
    drop(Program::new(need("cp")).args([from, to]).run().ok());
}

/// Directory of the binaries under test: `BIN_DIR`, which `make` sets.
///
/// # Panics
/// When there are none.
#[must_use]
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("BIN_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../out/dev"),
        PathBuf::from,
    );
    let dir = dir.canonicalize().unwrap_or(dir);
    assert!(
        dir.join("containerd").exists(),
        "no binaries in {dir:?}: run this through make"
    );
    dir
}

/// Path of a program that Debian packages provide.
///
/// # Panics
/// When it is not installed: `make deps` installs it.
#[must_use]
pub fn need(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run make deps"))
}
