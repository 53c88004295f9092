//! Takers that come, go, share, and do not take.

use super::*;
use crate::stdio::logfile::Format;
use std::fs::File;
use std::io::{Read as _, Write as _};

fn runtime(paused: bool) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(paused)
        .build()
        .unwrap()
}

/// A process's end and the hub.
fn piped(base: Base) -> (File, Arc<Hub>) {
    let (read, write) = sys::pipe::new().unwrap();
    sys::fs::set_nonblocking(&read, true).unwrap();
    (write.into(), Hub::new(read, Tag::Stdout, false, base))
}

/// A client that attached.
struct Client {
    line: AsyncFd<OwnedFd>,
    end: AsyncFd<OwnedFd>,
}

impl Client {
    async fn join(hub: &Arc<Hub>) -> Result<Self> {
        let (session, line) = Session::open().unwrap();
        let end = hub.join(&session).await?;
        let hub = Arc::clone(hub);
        drop(tokio::spawn(async move {
            session.follow().await;
            hub.leave(&session);
        }));
        sys::fs::set_nonblocking(&end, true).unwrap();
        Ok(Self {
            line: watch(line).unwrap(),
            end: watch(end).unwrap(),
        })
    }

    /// Reads until so many bytes are there, or the end.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        let mut chunk = vec![0; length];
        while got.len() < length {
            let mut ready = self.end.readable().await.unwrap();
            let want = length - got.len();
            match ready.try_io(|fd| sys::pipe::read(fd.get_ref(), &mut chunk[..want])) {
                Ok(Ok(0)) => break,
                Ok(read) => got.extend_from_slice(&chunk[..read.unwrap()]),
                Err(_not_yet) => {}
            }
        }
        got
    }

    /// Obeys the next message of the shim. Returns what it was.
    async fn obey(&mut self) -> u8 {
        let mut message = [0; 16];
        loop {
            let mut ready = self.line.readable().await.unwrap();
            let got = ready.try_io(|fd| sys::socket::receive(fd, &mut message));
            let Ok(got) = got else { continue };
            let (length, fds) = got.unwrap();
            assert_eq!((length, message[1]), (2, 2));
            if let Some(next) = fds.into_iter().next() {
                sys::fs::set_nonblocking(&next, true).unwrap();
                self.end = watch(next).unwrap();
                sys::socket::send(&self.line, &[b'R', 2], &[]).unwrap();
            }
            return message[0];
        }
    }
}

#[test]
fn one_client_has_the_pipe_itself_and_can_come_again() {
    runtime(false).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        process.write_all(b"before ").unwrap();
        let mut client = Client::join(&hub).await.unwrap();
        assert!(!hub.state().pumping);
        process.write_all(b"after").unwrap();
        assert_eq!(client.read(12).await, b"before after");
        drop(client);
        process.write_all(b"again").unwrap();
        // Its place is free as soon as its line is seen to be closed.
        let mut client = Client::join(&hub).await.unwrap();
        assert_eq!(client.read(5).await, b"again");
        drop(process);
        assert_eq!(client.read(1).await, b"");
    });
}

#[test]
fn several_clients_get_everything_from_when_they_came() {
    runtime(false).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        let mut first = Client::join(&hub).await.unwrap();
        let (second, told) = tokio::join!(Client::join(&hub), first.obey());
        let mut second = second.unwrap();
        assert_eq!(told, b'S');
        let mut third = Client::join(&hub).await.unwrap();
        process.write_all(b"to all").unwrap();
        for client in [&mut first, &mut second, &mut third] {
            assert_eq!(client.read(6).await, b"to all");
        }
        drop((first, third));
        process.write_all(b"to one").unwrap();
        drop(process);
        assert_eq!(second.read(100).await, b"to one");
        let mut late = Client::join(&hub).await.unwrap();
        assert_eq!(late.read(1).await, b"");
    });
}

#[test]
fn a_client_that_does_not_share_keeps_its_place() {
    runtime(true).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        let mut first = Client::join(&hub).await.unwrap();
        let refused = Client::join(&hub).await.map(drop).unwrap_err();
        assert!(refused.is(types::Code::Unavailable), "{refused}");
        process.write_all(b"mine").unwrap();
        assert_eq!(first.read(4).await, b"mine");
        // It answers after all: it goes on with what it was given, and others can come.
        assert_eq!(first.obey().await, b'S');
        let mut second = Client::join(&hub).await.unwrap();
        process.write_all(b"ours").unwrap();
        assert_eq!(first.read(4).await, b"ours");
        assert_eq!(second.read(4).await, b"ours");
    });
}

#[test]
fn a_client_that_gives_up_asking_does_no_harm() {
    runtime(false).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        let mut first = Client::join(&hub).await.unwrap();
        let asking = timeout(Duration::from_millis(1), Client::join(&hub));
        assert!(asking.await.is_err());
        assert_eq!(first.obey().await, b'S');
        process.write_all(b"all of it").unwrap();
        assert_eq!(first.read(9).await, b"all of it");
    });
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    runtime(true).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        let mut first = Client::join(&hub).await.unwrap();
        let (second, _) = tokio::join!(Client::join(&hub), first.obey());
        let mut second = second.unwrap();
        let piece = vec![b'x'; 32 * 1024];
        for _ in 0..8 {
            process.write_all(&piece).unwrap();
            assert_eq!(second.read(piece.len()).await, piece);
        }
        assert_eq!(first.obey().await, b'C');
        assert_eq!(hub.state().readers.len(), 1);
    });
}

#[test]
fn a_log_gets_everything_and_clients_beside_it_too() {
    runtime(false).block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = LogFile::open(&path, Format::Bare).unwrap();
        let (mut process, hub) = piped(Base::Log(Arc::new(Mutex::new(file))));
        process.write_all(b"one ").unwrap();
        hub.flush();
        assert_eq!(std::fs::read(&path).unwrap(), b"one ");
        let mut client = Client::join(&hub).await.unwrap();
        process.write_all(b"two ").unwrap();
        assert_eq!(client.read(4).await, b"two ");
        process.write_all(b"three").unwrap();
        // Somebody keeps the pipe open: what is there is taken all the same.
        hub.finish(Duration::from_secs(20)).await;
        assert_eq!(client.read(100).await, b"three");
        assert_eq!(std::fs::read(&path).unwrap(), b"one two three");
        assert!(!hub.reopen().unwrap());
    });
}

#[test]
fn what_nobody_wants_does_not_stop_the_process() {
    runtime(false).block_on(async {
        let (process, hub) = piped(Base::Discard);
        let written = tokio::task::spawn_blocking(move || {
            let mut process = process;
            process.write_all(&vec![0; 1 << 20]).unwrap();
        });
        written.await.unwrap();
        hub.finish(Duration::from_secs(20)).await;
    });
}

#[test]
fn a_terminal_is_shared_too() {
    runtime(false).block_on(async {
        let (master, peer) = sys::pty::open().unwrap();
        let modes = sys::pty::make_raw(&peer).unwrap();
        sys::fs::set_nonblocking(&master, true).unwrap();
        let hub = Hub::new(master, Tag::Stdout, true, Base::Wait);
        let mut first = Client::join(&hub).await.unwrap();
        let mut process = File::from(peer);
        process.write_all(b"direct").unwrap();
        assert_eq!(first.read(6).await, b"direct");
        let mut answer = [0; 2];
        sys::pipe::write(first.end.get_ref(), b"hi").unwrap();
        process.read_exact(&mut answer).unwrap();
        let (second, _) = tokio::join!(Client::join(&hub), first.obey());
        let mut second = second.unwrap();
        process.write_all(b"shared").unwrap();
        drop((process, modes));
        assert_eq!(first.read(100).await, b"shared");
        assert_eq!(second.read(100).await, b"shared");
    });
}
