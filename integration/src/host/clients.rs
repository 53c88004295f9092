//! What a host's clients do: ours and Debian's `ctr`, and the images that they use.

use std::path::PathBuf;

use super::Host;
use crate::{IMAGE, Output, Program, bin_dir, need, until};

impl Host {
    fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Program {
        Program::new(program)
            .args(["--address"])
            .args([self.address().as_os_str()])
            .args(["-n", &self.namespace])
            // Not that of whoever runs the tests.
            .env("DOCKER_CONFIG", self.dir())
    }

    /// Runs the `ctr` that came with the daemon.
    #[must_use]
    pub fn ctr<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.ctr_program().args(args).run()
    }

    /// That `ctr`, to be given arguments.
    #[must_use]
    pub fn ctr_program(&self) -> Program {
        self.client(self.parts.client())
    }

    /// Runs that `ctr` in a terminal.
    #[must_use]
    pub fn ctr_in_terminal(&self, prepare: &str, args: &str) -> Output {
        let line = format!(
            "{prepare} exec {} --address {} -n {} {args}",
            self.parts.client().display(),
            self.address().display(),
            self.namespace
        );
        Program::new("script")
            .args(["-qec", &line, "/dev/null"])
            .run()
    }

    /// Runs Debian's `ctr`.
    #[must_use]
    pub fn go_ctr<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.go_ctr_program().args(args).run()
    }

    /// Debian's `ctr`, to be given arguments.
    #[must_use]
    pub fn go_ctr_program(&self) -> Program {
        self.client(need("ctr"))
    }

    /// Flags of `ctr run` that select this host's shim and OCI runtime.
    #[must_use]
    pub fn runtime_flags(&self) -> Vec<String> {
        self.parts.flags()
    }

    /// Runs `ctr run FLAGS IMAGE ID COMMAND` with this host's runtime.
    #[must_use]
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Output {
        self.ctr_program()
            .args(["run"])
            .args(self.runtime_flags())
            .args(flags)
            .args([IMAGE, id])
            .args(command)
            .run()
    }

    /// Starts a detached container that sleeps.
    pub fn sleeper(&self, id: &str) {
        drop(self.run(&["-d", "--null-io"], id, &["sleep", "1000"]).ok());
    }

    /// Pid of a task, from `ctr tasks ls`; `None` when it is not listed with `status`.
    #[must_use]
    pub fn task(&self, id: &str, status: &str) -> Option<u32> {
        let table = self.ctr(["tasks", "ls"]).ok();
        let row = table
            .lines()
            .find(|l| l.split_whitespace().next() == Some(id))?;
        let words: Vec<&str> = row.split_whitespace().collect();
        (words.get(2) == Some(&status))
            .then(|| words.get(1)?.parse().ok())
            .flatten()
    }

    /// Kills the task, waits for its end, and removes task and container.
    pub fn remove(&self, id: &str) {
        drop(self.ctr(["tasks", "kill", "-s", "KILL", id]));
        until("the task stops", || self.task(id, "STOPPED").is_some());
        // Debian's client ends with the task's own code.
        let told = self.ctr(["tasks", "rm", id]);
        assert!([0, 137].contains(&told.code), "{}", told.stderr);
        drop(self.ctr(["containers", "rm", id]).ok());
    }

    /// Imports the test image.
    pub fn image(&self) {
        drop(
            self.ctr(["images", "import", &archive().to_string_lossy()])
                .ok(),
        );
    }
}

/// The test image's archive, which `make` made beside the binaries.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn archive() -> PathBuf {
    let path = bin_dir().join("../image.tar");
    assert!(
        path.exists(),
        "no {}: run this through make",
        path.display()
    );
    path
}

/// The realistic image: OCI layouts `gzip` and `zstd` below it, tag `latest`.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn layers() -> PathBuf {
    let path = bin_dir().join("../layers");
    assert!(
        path.exists(),
        "no {}: run this through make",
        path.display()
    );
    path
}
