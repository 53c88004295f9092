//! Terminals with the test as client, as runtime and as process.

use super::*;
use crate::options::Options;
use crate::reap::Reap;
use crate::testing::{block_on, soon};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::Duration;

fn fifo(dir: &Path, name: &str) -> (String, OwnedFd) {
    let path = dir.join(name);
    let hold = Fifo::make(&path, 0o600)
        .unwrap()
        .open_nonblocking(End::Both)
        .unwrap();
    (path.display().to_string(), hold)
}

async fn prepare(paths: &Paths) -> Result<Prepared> {
    let reap = Arc::new(Reap::default());
    let options = Options::default();
    let owner = Owner {
        reap: &reap,
        options: &options,
        namespace: "ns",
        id: "c1",
    };
    Prepared::open(paths, owner).await
}

#[test]
fn both_directions_flow_and_the_last_bytes_arrive() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (stdin, client_in) = fifo(dir.path(), "in");
        let (stdout, _hold) = fifo(dir.path(), "out");
        let paths = Paths {
            stdin,
            stdout: stdout.clone(),
            terminal: true,
            ..Paths::default()
        };
        let prepared = prepare(&paths).await.unwrap();
        let (master, peer) = sys::pty::open().unwrap();
        let _modes = sys::pty::make_raw(&peer).unwrap();
        let console = Console::attach(master, prepared).unwrap();
        console.resize(100, 30).unwrap();
        assert_eq!(sys::pty::size(&peer).unwrap(), (100, 30));
        let mut client_in = File::from(client_in);
        client_in.write_all(b"typed").unwrap();
        let peer_watch = watch(peer.try_clone().unwrap()).unwrap();
        drop(peer_watch.readable().await.unwrap());
        let mut typed = [0; 5];
        let mut process = File::from(peer);
        process.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"typed");
        drop(peer_watch);
        let reader = Fifo::find(Path::new(&stdout)).unwrap();
        let reader = reader.open_nonblocking(End::Read).unwrap();
        process.write_all(&[b'x'; 3000]).unwrap();
        drop(process);
        console.drain(soon()).await;
        let mut got = [0; 4096];
        assert_eq!(sys::pipe::read(&reader, &mut got).unwrap(), 3000);
    });
}

/// The next byte follows so closely that some come while the pump finds out that there is none.
#[test]
fn bytes_one_at_a_time_all_arrive() {
    const BYTES: usize = 50_000;
    let limit = Duration::from_secs(60);
    block_on(async {
        let ((from, process), (reader, to)) =
            (sys::pipe::new().unwrap(), sys::pipe::new().unwrap());
        let talk = tokio::task::spawn_blocking(move || {
            let mut got = [0];
            sys::fs::set_nonblocking(&reader, true).unwrap();
            for byte in (0..=u8::MAX).cycle().take(BYTES) {
                let begin = std::time::Instant::now();
                sys::pipe::write(&process, &[byte]).unwrap();
                // Not with poll: that takes too long.
                while sys::pipe::read(&reader, &mut got).is_err() {
                    assert!(begin.elapsed() < limit, "stalled");
                    std::hint::spin_loop();
                }
                assert_eq!(got[0], byte);
            }
        });
        let (from, to) = (watch(from).unwrap(), watch(to).unwrap());
        pump(&from, &to, to.get_ref()).await;
        talk.await.unwrap();
    });
}

#[test]
fn a_file_takes_the_output_of_a_terminal() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let stdout = format!("file://{}", file.display());
        let prepared = prepare(&Paths {
            stdout,
            ..Paths::default()
        })
        .await
        .unwrap();
        let (master, peer) = sys::pty::open().unwrap();
        let console = Console::attach(master, prepared).unwrap();
        File::from(peer).write_all(b"line\n").unwrap();
        console.drain(soon()).await;
        assert_eq!(std::fs::read(file).unwrap(), b"line\r\n");
    });
}

#[test]
fn a_runtime_that_sends_nothing_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = ConsoleSocket::bind(dir.path(), "c1").unwrap();
    assert!(dir.path().join(socket.name()).exists());
    let error = socket.receive().unwrap_err();
    assert!(error.is(types::Code::FailedPrecondition), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_master_is_received() {
    let dir = tempfile::tempdir().unwrap();
    let socket = ConsoleSocket::bind(dir.path(), "c1").unwrap();
    let path = dir.path().join(socket.name());
    let (master, peer) = sys::pty::open().unwrap();
    let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    sys::socket::send_fds(&stream, b"/dev/pts/1", &[master.as_fd()]).unwrap();
    drop((stream, master));
    let master = socket.receive().unwrap();
    sys::pty::resize(&master, 10, 20).unwrap();
    assert_eq!(sys::pty::size(&peer).unwrap(), (10, 20));
}
