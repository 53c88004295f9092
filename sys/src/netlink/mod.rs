//! Netlink: what the kernel is told and asked about networks, as messages on a socket.
//!
//! Invariant: a socket belongs to the network namespace of the thread that opened it, for ever and
//! whoever uses it. Every request is answered before the next one is sent, so that an answer is always
//! that of the last request. Calls block no longer than the kernel works.

mod batch;
mod message;

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType};
use types::{Context as _, Error, Result};

use crate::error::{last, op};
use message::{ACK, Answer, DUMP, Frame};
pub use message::{Attributes, Message, attributes, text_of, u16_of, u32_of};

/// The kernel fills an answer to a list up to this size.
const BUFFER: usize = 32 << 10;
/// How often a list is asked for again that changed while it was told.
const MOST_TRIES: usize = 16;

/// Which part of the kernel is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Interfaces, addresses, routes.
    Route,
    /// Packet filters.
    Netfilter,
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one in the network namespace of this thread.
    ///
    /// # Errors
    /// The errno of `socket`.
    pub fn open(family: Family) -> Result<Self> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )
        .map_err(|e| op("socket of netlink", e))?;
        // Errors come with words and without the whole request; what a kernel that is too old does not
        // know is not needed.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            drop(set(&fd, libc::SOL_NETLINK, option, 1));
        }
        // Filters of lists are kept or refused, never ignored.
        if family == Family::Route {
            drop(set(&fd, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1));
        }
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Performs one change.
    ///
    /// # Errors
    /// The errno with the kernel's words, as [`Error::errno`] tells.
    pub fn change(&mut self, message: Message) -> Result<()> {
        self.ask(message).map(drop)
    }

    /// Performs a change, or asks a question, and returns what the kernel tells about it; empty when
    /// that is nothing.
    ///
    /// # Errors
    /// As [`Socket::change`].
    pub fn ask(&mut self, message: Message) -> Result<Vec<u8>> {
        let (bytes, what) = message.finish(ACK, self.next());
        let mut told = Vec::new();
        self.send(&bytes)
            .and_then(|()| {
                self.answers(|frame| {
                    if told.is_empty() {
                        told.extend_from_slice(frame.body);
                    }
                    Ok(())
                })
            })
            .ctx_with(|| what)?;
        Ok(told)
    }

    /// Performs changes, sent together. Those after one that failed are tried as well.
    ///
    /// # Errors
    /// That of the first one that failed.
    pub fn change_all(&mut self, messages: Vec<Message>) -> Result<()> {
        let mut failure = Ok(());
        // A request and its answer must fit the socket's buffer with those of all others.
        const TOGETHER: usize = 64;
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let (mut bytes, mut sent) = (Vec::new(), Vec::new());
            for message in messages.by_ref().take(TOGETHER) {
                let (more, what) = message.finish(ACK, self.next());
                bytes.extend(more);
                sent.push((self.sequence, what));
            }
            self.send(&bytes)?;
            for (sequence, what) in sent {
                let done = self.answers_to(sequence, |_| Ok(())).ctx_with(|| what);
                failure = failure.and(done.map(drop));
            }
        }
        failure
    }

    /// Asks for a list; `read` makes something of each entry or passes it over.
    ///
    /// # Errors
    /// As [`Socket::change`], those of `read`, `Unavailable` when the list does not stop changing.
    pub fn list<T>(
        &mut self,
        message: &Message,
        mut read: impl FnMut(&[u8]) -> Result<Option<T>>,
    ) -> Result<Vec<T>> {
        for _ in 0..MOST_TRIES {
            let (bytes, what) = message.clone().finish(DUMP, self.next());
            let mut all = Vec::new();
            let changed = self
                .send(&bytes)
                .and_then(|()| {
                    self.answers(|frame| {
                        all.extend(read(frame.body)?);
                        Ok(())
                    })
                })
                .ctx_with(|| what)?;
            if !changed {
                return Ok(all);
            }
        }
        Err(Error::unavailable(
            "a list of the kernel does not stop changing",
        ))
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        rustix::net::send(&self.fd, bytes, SendFlags::empty()).map_err(|e| op("send", e))?;
        Ok(())
    }

    /// Fills the buffer with what comes next from the kernel: others can send to the socket as well.
    fn receive(&mut self) -> Result<usize> {
        loop {
            match rustix::net::recvfrom(&self.fd, self.buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Ok((_, _, from)) if !is_kernel(from.as_ref()) => {}
                Ok((got, whole, _)) if whole > got => {
                    return Err(Error::internal(format_args!(
                        "answer of {whole} bytes is longer than {got}"
                    )));
                }
                Ok((got, _, _)) => return Ok(got),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(op("receive", e)),
            }
        }
    }

    fn answers(&mut self, each: impl FnMut(&Frame<'_>) -> Result<()>) -> Result<bool> {
        self.answers_to(self.sequence, each)
    }

    /// Reads what answers the request `sequence`, up to its end. Also when `each` fails, so that the
    /// next answer is that of the next request. True when what was told has changed meanwhile.
    fn answers_to(
        &mut self,
        sequence: u32,
        mut each: impl FnMut(&Frame<'_>) -> Result<()>,
    ) -> Result<bool> {
        let mut so_far = Ok(false);
        loop {
            let got = self.receive()?;
            let is_over = read(&self.buffer[..got], sequence, &mut so_far, &mut each)?;
            if is_over {
                return so_far;
            }
        }
    }
}

/// Reads what one call received of the answer to `sequence`; true when that is over.
fn read(
    received: &[u8],
    sequence: u32,
    so_far: &mut Result<bool>,
    each: &mut impl FnMut(&Frame<'_>) -> Result<()>,
) -> Result<bool> {
    for frame in message::frames(received) {
        let frame = frame?;
        // The rest of an answer that was not waited for.
        if frame.sequence != sequence {
            continue;
        }
        // The end says it as well, for what came between the last entry and it.
        if let Ok(changed) = so_far {
            *changed |= frame.is_interrupted();
        }
        match frame.answer()? {
            Answer::Entry => {
                if let (true, Err(error)) = (so_far.is_ok(), each(&frame)) {
                    *so_far = Err(error);
                }
            }
            Answer::Done => return Ok(true),
            Answer::Failed(error) => {
                if so_far.is_ok() {
                    *so_far = Err(error);
                }
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn is_kernel(from: Option<&SocketAddrAny>) -> bool {
    let from = from.and_then(|from| SocketAddrNetlink::try_from(from.clone()).ok());
    from.is_some_and(|from| from.pid() == 0)
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: libc::c_int) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or_default();
    // SAFETY: `value` is readable for `length` bytes.
    let done = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(last("setsockopt of netlink"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct ifinfomsg` with nothing in it.
    const ANY_LINK: [u8; 16] = [0; 16];

    fn names(socket: &mut Socket) -> Vec<String> {
        let list = Message::new("list interfaces", libc::RTM_GETLINK, 0, &ANY_LINK);
        let name = |entry: &[u8]| {
            let found = attributes(&entry[16..]).find(|(kind, _)| *kind == libc::IFLA_IFNAME);
            Ok(found.map(|(_, value)| text_of(value)))
        };
        socket.list(&list, name).unwrap()
    }

    #[test]
    fn a_list_has_the_loopback_and_can_be_asked_for_again() {
        let mut socket = Socket::open(Family::Route).unwrap();
        assert!(names(&mut socket).contains(&"lo".to_owned()));
        let broken = Message::new("list interfaces", libc::RTM_GETLINK, 0, &ANY_LINK);
        let refused = socket.list::<()>(&broken, |_| Err(Error::internal("no")));
        assert!(refused.unwrap_err().is(types::Code::Internal));
        assert!(names(&mut socket).contains(&"lo".to_owned()));
    }

    #[test]
    fn a_refusal_has_its_errno_and_says_of_what() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let mut wanted = Message::new("find no-such", libc::RTM_GETLINK, 0, &ANY_LINK);
        wanted.text(libc::IFLA_IFNAME, "no-such");
        let error = socket.ask(wanted).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert!(error.to_string().starts_with("find no-such: "), "{error}");
        // Of several the first failure is told, and the answers of all are taken.
        let wanted = |name| {
            let mut wanted = Message::new(format!("find {name}"), libc::RTM_GETLINK, 0, &ANY_LINK);
            wanted.text(libc::IFLA_IFNAME, name);
            wanted
        };
        let error = socket
            .change_all(vec![wanted("lo"), wanted("gone-1"), wanted("gone-2")])
            .unwrap_err();
        assert!(error.to_string().starts_with("find gone-1: "), "{error}");
        assert!(!socket.ask(wanted("lo")).unwrap().is_empty());
    }

    /// A message as the kernel would write it.
    fn written(kind: i32, flags: u16, sequence: u32, errno: i32) -> Vec<u8> {
        let kind = u16::try_from(kind).unwrap();
        let made = Message::new("x", kind, flags, &errno.to_ne_bytes());
        made.finish(0, sequence).0
    }

    #[test]
    fn an_answer_that_is_not_the_kernels_is_passed_over() {
        let mut socket = Socket::open(Family::Route).unwrap();
        assert!(names(&mut socket).contains(&"lo".to_owned()));
        let bound = rustix::net::getsockname(&socket.fd).unwrap();
        let other = Socket::open(Family::Route).unwrap();
        let forged = written(libc::NLMSG_ERROR, 0, socket.sequence + 1, -libc::EIO);
        let to = SocketAddrNetlink::try_from(bound).unwrap();
        rustix::net::sendto(&other.fd, &forged, SendFlags::empty(), &to).unwrap();
        assert!(names(&mut socket).contains(&"lo".to_owned()));
    }

    #[test]
    fn a_list_that_changes_before_its_end_is_told_as_changed() {
        // As linux/netlink.h has it.
        const DUMP_INTR: u16 = 0x10;
        for (flags, changed) in [(0, false), (DUMP_INTR, true)] {
            let mut bytes = written(libc::RTM_NEWLINK.into(), 0, 7, 0);
            bytes.extend(written(libc::NLMSG_DONE, flags, 7, 0));
            let (mut so_far, mut seen) = (Ok(false), 0);
            let mut each = |_: &Frame<'_>| {
                seen += 1;
                Ok(())
            };
            assert!(read(&bytes, 7, &mut so_far, &mut each).unwrap());
            assert_eq!((so_far.unwrap(), seen), (changed, 1));
        }
    }

    #[test]
    fn the_kernel_says_in_words_what_it_does_not_like() {
        let mut socket = Socket::open(Family::Route).unwrap();
        // An attribute that cuts its value short.
        let mut broken = Message::new("ask", libc::RTM_GETLINK, 0, &ANY_LINK);
        broken.bytes(libc::IFLA_MTU, &[1]);
        let error = socket.ask(broken).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ERANGE), "{error}");
        assert!(error.to_string().contains("ttribute"), "{error}");
    }
}
