//! How a host's daemon starts: to the end, or into a trap.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{Daemon, Host, NOTIFY, SIGKILL};
use crate::daemon::Parts;
use crate::{Oci, Trap, Whose, until};

/// Stops before it becomes what it is told to run.
const STOPPED: [&str; 3] = ["-c", "kill -STOP $$; exec \"$@\"", "sh"];

impl Host {
    /// Starts a daemon with more in its environment.
    ///
    /// # Panics
    /// When the daemon does not serve within the limit.
    #[must_use]
    pub fn with_env(name: &str, env: &[(&str, &str)]) -> Self {
        let mut host = Self::made(name, Parts::ours(Oci::Runc), "", None);
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        host.env = env.iter().map(own).collect();
        host.start();
        host
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer in time.
    pub fn start(&mut self) {
        self.begin();
        self.serves();
    }

    /// Starts the daemon.
    ///
    /// # Panics
    /// When there is none.
    pub fn begin(&mut self) {
        self.daemon = Some(Daemon::Child(self.spawn(self.command())));
    }

    /// Waits until the daemon that was begun answers.
    ///
    /// # Panics
    /// When it ends or does not answer in time.
    pub fn serves(&mut self) {
        let Some(Daemon::Child(mut child)) = self.daemon.take() else {
            panic!("no daemon was begun");
        };
        until("the daemon answers", || {
            if let Some(status) = child.try_wait().expect("wait") {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            self.ctr(["version"]).code == 0
        });
        self.daemon = Some(Daemon::Child(child));
        // The connection of the question that it answered may still be on its way out.
        self.descriptors = self.descriptors();
    }

    /// Starts the daemon, which dies at the `nth` of these calls, and tells at which; `None` when it has
    /// made less of them until it answers and `is_ready`, and runs.
    ///
    /// # Panics
    /// When it ends otherwise, or is not ready in time.
    pub fn start_into(
        &mut self,
        calls: &[&str],
        nth: usize,
        is_ready: impl Fn(&Self) -> bool,
    ) -> Option<String> {
        let whole = self.command();
        let mut stopped = Command::new("sh");
        stopped.args(STOPPED).arg(whole.get_program());
        stopped.args(whole.get_args());
        for (name, value) in whole.get_envs() {
            stopped.env(name, value.unwrap_or_default());
        }
        let mut child = self.spawn(stopped);
        let pid = child.id();
        until("the daemon is about to start", || is_stopped(pid));
        let trap = Trap::set(pid, calls, None, nth);
        let process = sys::pidfd::open(pid).expect("the daemon waits");
        sys::pidfd::send_signal(&process, SIGCONT).expect("let it go on");
        let mut ended = None;
        until("the daemon is ready", || {
            ended = child.try_wait().expect("wait");
            ended.is_some() || (self.ctr(["version"]).code == 0 && is_ready(self))
        });
        let call = trap.end();
        if call.is_some() {
            let status = child.wait().expect("wait");
            assert_eq!(status.signal(), Some(SIGKILL), "{status}:\n{}", self.log());
            return call;
        }
        assert!(
            ended.is_none(),
            "the daemon ended with {ended:?}:\n{}",
            self.log()
        );
        self.daemon = Some(Daemon::Child(child));
        self.descriptors = self.descriptors();
        None
    }

    /// Starts a daemon of this origin in the place of one that was stopped: over its state, with a root of its
    /// own.
    ///
    /// # Panics
    /// When it does not serve within the limit.
    pub fn replace(&mut self, whose: Whose) {
        self.parts.daemon = whose;
        self.root = self.path("other-root");
        let config = self.parts.config(self.dir());
        fs::write(self.path("config.toml"), config).expect("write the config");
        self.start();
    }

    fn command(&self) -> Command {
        let mut command = self.parts.command(self.dir(), &self.root);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if self.notified.is_some() {
            command.env("NOTIFY_SOCKET", self.path(NOTIFY));
        }
        command
    }

    fn spawn(&self, mut command: Command) -> Child {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir().join("daemon.log"))
            .expect("open the log");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("start the daemon")
    }
}

const SIGCONT: i32 = 18;

/// True for a process that waits to be told to go on.
fn is_stopped(pid: u32) -> bool {
    let stat = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = fs::read_to_string(stat).expect("it is there");
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('T'))
}
