//! A daemon under measurement, driven over gRPC by the same client whichever it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use protos::services::version;
use protos::well_known::Empty;
use tonic::Request;
use tonic::transport::Channel;

use crate::calls::{Calls, NAMESPACE};
use crate::group::Group;

/// Whose daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Debian,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Debian => "debian",
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Peer {
    kind: Kind,
    home: PathBuf,
    child: Child,
    /// What is asked of it.
    pub(crate) calls: Calls,
    /// Everything that it starts runs in here.
    pub(crate) group: Group,
}

impl Peer {
    /// Starts a daemon and imports the test image.
    pub(crate) fn start(runtime: &tokio::runtime::Runtime, kind: Kind, home: &Path) -> Self {
        let mut peer = Self::start_bare(runtime, kind, home);
        peer.ctr(&[
            "images",
            "import",
            &integration::archive().to_string_lossy(),
        ]);
        let table = peer.ctr(&["snapshots", "ls"]);
        let row = table
            .lines()
            .find(|l| l.contains("Committed"))
            .expect("a layer");
        peer.calls.parent = row.split_whitespace().next().expect("a key").to_owned();
        peer
    }

    /// Starts a daemon and waits for its first answer.
    pub(crate) fn start_bare(runtime: &tokio::runtime::Runtime, kind: Kind, home: &Path) -> Self {
        fs::create_dir_all(home).expect("make the directory");
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = Group::make(&format!("{}-{number}", kind.name()));
        let child = spawn(kind, home);
        group.join("daemon", child.id());
        let channel = runtime.block_on(first_answer(&home.join("c.sock")));
        Self {
            kind,
            home: home.to_owned(),
            child,
            calls: Calls {
                channel,
                parent: String::new(),
                group: group.name().to_owned(),
                root: home.join("runtime"),
            },
            group,
        }
    }

    /// Ends the daemon and starts it again; when the new one was started. It had its first answer.
    pub(crate) fn restart(&mut self, runtime: &tokio::runtime::Runtime) -> Instant {
        self.terminate();
        let begin = Instant::now();
        self.child = spawn(self.kind, &self.home);
        self.group.join("daemon", self.child.id());
        self.calls.channel = runtime.block_on(first_answer(&self.home.join("c.sock")));
        begin
    }

    /// Debian's client, for what the bench does not do over gRPC.
    fn ctr(&self, args: &[&str]) -> String {
        let mut command = Command::new(integration::need("ctr"));
        command
            .arg("--address")
            .arg(self.home.join("c.sock"))
            .args(["-n", NAMESPACE])
            .args(args);
        let out = command.output().expect("run ctr");
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).expect("text")
    }

    pub(crate) fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Its root, state and sockets.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("c.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the daemon.
    pub(crate) fn stop(mut self) {
        self.terminate();
    }

    fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
        self.child.wait().expect("wait");
    }
}

impl Drop for Peer {
    /// A bench that fails must not leave its daemon behind. (`stop` has ended it otherwise.)
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn spawn(kind: Kind, home: &Path) -> Child {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = match kind {
        Kind::Ours => {
            let bin = integration::bin_dir();
            let mut command = Command::new(bin.join("containerd"));
            command.env("PATH", format!("{}:{path}", bin.display()));
            let config = home.join("config.toml");
            if config.exists() {
                command.arg("--config").arg(config);
            }
            command
        }
        Kind::Debian => {
            let config = home.join("config.toml");
            let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
            fs::write(&config, text).expect("write the config");
            let mut command = Command::new("/usr/bin/containerd");
            command
                .arg("--config")
                .arg(config)
                .env("PATH", format!("/usr/bin:{path}"));
            command
        }
    };
    let log = fs::File::create(home.join("log")).expect("open the log");
    command
        .arg("--root")
        .arg(home.join("root"))
        .arg("--state")
        .arg(home.join("state"))
        .arg("--address")
        .arg(home.join("c.sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("dup"))
        .stderr(log)
        .spawn()
        .expect("start the daemon")
}

/// Connects as soon as the socket is there and asks for the version until it is told.
pub(crate) async fn first_answer(socket: &Path) -> Channel {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(
            Instant::now() < deadline,
            "no answer on {}",
            socket.display()
        );
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            let mut client = grpc::version::VersionClient::new(channel.clone());
            let answer: Result<tonic::Response<version::VersionResponse>, _> =
                client.version(Request::new(Empty::new())).await;
            if answer.is_ok() {
                return channel;
            }
        }
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
}
