//! A proxy on loopback that counts what a registry sends, and can stop in the middle of it.
//!
//! Invariant: what was counted was handed to the client's socket, or is just being handed to it; nothing
//! is read ahead of a stop, and all connections together send no byte beyond it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Debug, Default)]
struct Count {
    /// What has passed, or is about to.
    passed: u64,
    /// Nothing passes beyond this.
    limit: Option<u64>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    count: Mutex<Count>,
    changed: Condvar,
}

/// The proxy.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a port of its own and connects each client to `port`.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("address");
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if theirs.count().ended {
                    break;
                }
                // A registry that is gone is for the client to notice.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    theirs.join(client, server);
                }
            }
        });
        Self {
            shared,
            address,
            accepting: Some(accepting),
        }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Bytes that the registry has sent through it, headers included.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.shared.count().passed
    }

    /// Lets no more than `bytes` pass in all.
    pub fn stop_at(&self, bytes: u64) {
        self.shared.count().limit = Some(bytes);
    }

    /// Waits until the limit is reached.
    ///
    /// # Panics
    /// When it is not within `patience`.
    pub fn stopped(&self, patience: Duration) {
        let reached = |count: &mut Count| count.limit.is_some_and(|limit| count.passed < limit);
        let count = self.shared.count();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(count, patience, reached);
        let (count, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "{count:?}");
    }

    /// Lets everything pass again.
    pub fn go_on(&self) {
        self.shared.count().limit = None;
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut count = self.shared.count();
        (count.ended, count.limit) = (true, None);
        drop(count);
        self.shared.changed.notify_all();
        // The listener wakes up and sees that it is over.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            drop(accepting.join());
        }
    }
}

impl Shared {
    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Two threads that end with their connection.
    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let (mut from, mut to) = (
            client.try_clone().expect("dup"),
            server.try_clone().expect("dup"),
        );
        drop(std::thread::spawn(move || {
            drop(std::io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Write));
        }));
        let this = Arc::clone(self);
        drop(std::thread::spawn(move || this.answers(server, client)));
    }

    fn answers(&self, mut server: TcpStream, mut client: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            // Looked at and not read: what may pass is known first, and nobody takes more than he has.
            let there = server.peek(&mut buffer).unwrap_or(0);
            if there == 0 {
                break;
            }
            let passing = self.pass(there);
            let got = server.read_exact(&mut buffer[..passing]);
            if got.is_err() || client.write_all(&buffer[..passing]).is_err() {
                break;
            }
        }
        drop(client.shutdown(Shutdown::Both));
        drop(server.shutdown(Shutdown::Both));
    }

    /// Counts what may pass now, of `most`; waits until it is something.
    fn pass(&self, most: usize) -> usize {
        let full = |count: &mut Count| count.limit.is_some_and(|limit| count.passed >= limit);
        let waited = self.changed.wait_while(self.count(), full);
        let mut count = waited.unwrap_or_else(PoisonError::into_inner);
        let passing = count.limit.map_or(most, |limit| {
            usize::try_from(limit - count.passed).map_or(most, |left| left.min(most))
        });
        count.passed += passing as u64;
        drop(count);
        self.changed.notify_all();
        passing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a megabyte to whoever comes.
    fn server() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                std::thread::spawn(move || drop(client.write_all(&[1; 1 << 20])));
            }
        });
        port
    }

    #[test]
    fn many_connections_together_get_no_byte_beyond_the_stop() {
        const LIMIT: u64 = 1_000_001;
        const CLIENTS: usize = 16;
        let proxy = Proxy::to(server());
        proxy.stop_at(LIMIT);
        let counted = Arc::new(Mutex::new(0));
        let readers: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let counted = Arc::clone(&counted);
                let mut client = TcpStream::connect(proxy.address).unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(got @ 1..) = client.read(&mut buffer) {
                        *counted.lock().unwrap() += got as u64;
                    }
                })
            })
            .collect();
        proxy.stopped(Duration::from_secs(10));
        crate::until("what may pass is there", || {
            *counted.lock().unwrap() >= LIMIT
        });
        assert_eq!((*counted.lock().unwrap(), proxy.passed()), (LIMIT, LIMIT));
        proxy.go_on();
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(proxy.passed(), (CLIENTS << 20) as u64);
    }
}
