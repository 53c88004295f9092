//! Network namespaces for unit tests, and the programs that look at them from outside.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sys::netns::{self, NetNs};
use sys::process::Spawn;
use types::Result;

/// Longer than anything here takes on the slowest machine.
const SOON: Duration = Duration::from_secs(60);

/// A network namespace that goes with its test.
pub(crate) struct Net {
    pub(crate) path: PathBuf,
    pub(crate) netns: NetNs,
    _dir: tempfile::TempDir,
}

impl Net {
    /// A new one, its loopback up.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        let netns = netns::create(&path, || Ok(())).unwrap();
        let made = Self {
            path,
            netns,
            _dir: dir,
        };
        made.run("ip link set lo up");
        made
    }

    /// Runs code inside, on a thread of its own.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || -> Result<T> { Ok(work()) };
        self.netns.within(inside).unwrap()
    }

    /// Runs asynchronous code inside; what it does on threads is inside as well.
    pub(crate) fn block_on<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        self.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(work)
        })
    }

    /// What a shell command says inside, which must work.
    pub(crate) fn run(&self, command: &str) -> String {
        let (is_fine, text) = self.try_run(command);
        assert!(is_fine, "{command}: {text}");
        text
    }

    /// Whether a shell command works inside, and what it says.
    pub(crate) fn try_run(&self, command: &str) -> (bool, String) {
        let spawn = Spawn::new("/bin/sh").arg("-c").arg(command);
        let done = self.within(|| spawn.output(b"", 1 << 20, SOON));
        let done = done.unwrap();
        let text = String::from_utf8_lossy(&done.text).into_owned();
        (done.status.is_success(), text)
    }

    /// The packet filters as the program `nft` shows them.
    pub(crate) fn rules(&self) -> String {
        self.run("nft list ruleset")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        netns::unpin(&self.path).unwrap();
    }
}

/// The directory of Debian's CNI plugins.
pub(crate) fn debian_plugins() -> &'static Path {
    Path::new("/usr/lib/cni")
}

/// A server inside; it stays there, whichever thread uses it.
pub(crate) fn server(net: &Net, at: &str) -> TcpListener {
    net.within(|| TcpListener::bind(at)).unwrap()
}

/// Connects from inside `net`, says something, and returns whom the server saw.
pub(crate) fn reach(net: &Net, to: &str, server: &TcpListener) -> SocketAddr {
    let to: SocketAddr = to.parse().unwrap();
    let connected = net.within(|| TcpStream::connect_timeout(&to, SOON));
    let mut client = connected.unwrap_or_else(|e| panic!("{to}: {e}"));
    assert!(sys::pipe::is_readable_within(server, SOON), "{to}: nobody");
    let (mut accepted, peer) = server.accept().unwrap();
    for end in [&client, &accepted] {
        end.set_read_timeout(Some(SOON)).unwrap();
    }
    client.write_all(b"hello").unwrap();
    let mut said = [0; 5];
    accepted.read_exact(&mut said).unwrap();
    accepted.write_all(&said).unwrap();
    client.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    peer
}

/// Waits until something has happened in another process, or in the kernel.
pub(crate) fn until(what: &str, mut has_happened: impl FnMut() -> bool) {
    let give_up = Instant::now() + SOON;
    while !has_happened() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::yield_now();
    }
}
