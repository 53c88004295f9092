//! Takers that come, go, share, and do not take.

use super::*;
use crate::stdio::logfile::Format;
use crate::testing::soon;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::{sleep, timeout};

/// Longer than any patience with clients.
const SLOW_FOR_SURE: Duration = Duration::from_secs(60);

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
fn who_is_alone_after_another_was_cut_off_may_take_its_time() {
    runtime(true).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        let mut first = Client::join(&hub).await.unwrap();
        let (second, _) = tokio::join!(Client::join(&hub), first.obey());
        let mut second = second.unwrap();
        let text: Vec<u8> = (0..3 * PIPE).map(|n| n.to_le_bytes()[1]).collect();
        for piece in text.chunks(PIPE) {
            // Neither takes anything: the pump has the second piece in hand, the third waits.
            process.write_all(piece).unwrap();
            sleep(Duration::from_millis(1)).await;
        }
        let cut = tokio::select! {
            cut = first.obey() => (cut, &mut second),
            cut = second.obey() => (cut, &mut first),
        };
        assert_eq!(cut.0, b'C');
        sleep(SLOW_FOR_SURE).await;
        assert_eq!(hub.state().readers.len(), 1);
        assert_eq!(cut.1.read(text.len()).await, text);
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
        hub.finish(soon()).await;
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
        hub.finish(soon()).await;
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

#[test]
fn a_process_that_never_stops_writing_leaves_time_for_everything_else() {
    let stop = Arc::new(AtomicBool::new(false));
    let (mut process, read) = {
        let (read, write) = sys::pipe::new().unwrap();
        sys::fs::set_nonblocking(&read, true).unwrap();
        (File::from(write), read)
    };
    let writer = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            // Without time for others nobody tells: an end all the same.
            let started = std::time::Instant::now();
            let piece = vec![b'y'; PIPE];
            while !stop.load(Ordering::Relaxed) && started.elapsed() < Duration::from_secs(20) {
                // When nobody reads any more it is over.
                if process.write_all(&piece).is_err() {
                    break;
                }
            }
            started.elapsed()
        }
    });
    runtime(false).block_on(async {
        let hub = Hub::new(read, Tag::Stdout, false, Base::Discard);
        let ticks = tokio::spawn(async move {
            for _ in 0..20 {
                sleep(Duration::from_millis(1)).await;
            }
            stop.store(true, Ordering::Relaxed);
        });
        ticks.await.unwrap();
        hub.finish(soon()).await;
    });
    assert!(writer.join().unwrap() < Duration::from_secs(20));
}

#[test]
fn what_the_last_client_did_not_take_waits_for_the_next() {
    runtime(false).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        let mut first = Client::join(&hub).await.unwrap();
        let (second, _) = tokio::join!(Client::join(&hub), first.obey());
        drop(second.unwrap());
        let text: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let all = text.clone();
        let written = tokio::task::spawn_blocking(move || {
            process.write_all(&all).unwrap();
            process
        });
        assert_eq!(first.read(50_000).await, text[..50_000]);
        // It goes while it holds up the pump, which has a piece in hand.
        drop(first);
        let seen = async {
            while !hub.state().readers.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), seen).await.unwrap();
        let mut next = Client::join(&hub).await.unwrap();
        assert_eq!(next.read(150_000).await, text[50_000..]);
        drop(written.await.unwrap());
        assert_eq!(next.read(1).await, b"");
    });
}

#[test]
fn slow_clients_beside_a_log_are_cut_off_together() {
    runtime(true).block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = LogFile::open(&path, Format::Bare).unwrap();
        let (mut process, hub) = piped(Base::Log(Arc::new(Mutex::new(file))));
        let mut slow = Vec::new();
        for _ in 0..8 {
            slow.push(Client::join(&hub).await.unwrap());
        }
        let piece = vec![b'x'; PIPE];
        process.write_all(&piece).unwrap();
        sleep(Duration::from_millis(1)).await;
        process.write_all(&piece).unwrap();
        let since = Instant::now();
        for client in &mut slow {
            assert_eq!(client.obey().await, b'C');
        }
        assert!(since.elapsed() <= Duration::from_millis(150));
        hub.finish(soon()).await;
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * PIPE as u64);
    });
}

#[test]
fn the_last_words_are_in_the_log_also_beside_clients_and_without_a_newline() {
    runtime(false).block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = LogFile::open(&path, Format::Cri).unwrap();
        let (mut process, hub) = piped(Base::Log(Arc::new(Mutex::new(file))));
        let mut client = Client::join(&hub).await.unwrap();
        process.write_all(b"last words").unwrap();
        // The pump had no chance yet; a child may keep the pipe open for long.
        hub.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(" stdout P last words\n"), "{text}");
        assert_eq!(client.read(10).await, b"last words");
        process.write_all(b" and more\n").unwrap();
        assert_eq!(client.read(10).await, b" and more\n");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(" stdout F  and more\n"), "{text}");
    });
}

#[test]
fn a_client_that_went_and_came_again_while_another_asked_is_no_trouble() {
    runtime(false).block_on(async {
        let (mut process, hub) = piped(Base::Wait);
        let first = Client::join(&hub).await.unwrap();
        let asking = tokio::spawn({
            let hub = Arc::clone(&hub);
            async move { Client::join(&hub).await }
        });
        tokio::task::yield_now().await;
        drop(first);
        let again = Client::join(&hub).await;
        // One of the two has the source, the other shares it or is told why not; nobody is left
        // without a pipe that is fed.
        let asked = asking.await.unwrap();
        let mut clients: Vec<_> = [again, asked].into_iter().flatten().collect();
        assert!(!clients.is_empty());
        if clients.len() == 1 {
            process.write_all(b"fed").unwrap();
            assert_eq!(clients[0].read(3).await, b"fed");
        }
    });
}
