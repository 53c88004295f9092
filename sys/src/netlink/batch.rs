//! Changes of packet filters, which the kernel makes all together or not at all.

use types::{Context as _, Error, Result};

use super::Socket;
use super::message::{self, ACK, Answer, Message, attributes};

/// Messages that begin and end a batch.
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// Which filters a batch is for: `nf_tables`, in the order of the network, behind two zero bytes.
const NFTABLES: u8 = 10;
/// Attribute of the beginning: the generation that the batch was made for.
const GENERATION: u16 = 1;
/// Flag of every request.
const REQUEST: u16 = 0x1;
/// The rules have changed since that generation.
const OTHER_GENERATION: i32 = 85;
/// Asks for the generation, and where it is in the answer.
const GET_GENERATION: u16 = (NFTABLES as u16) << 8 | 16;
const ANSWERED: u16 = 1;

/// Bytes that fit every socket's buffer.
const USUAL: usize = 64 << 10;
/// Most bytes of a batch: all ports of all protocols, twice.
const MOST: usize = 128 << 20;

impl Socket {
    /// The generation of the packet filters: it changes whenever anybody changes them.
    ///
    /// # Errors
    /// The errno.
    pub fn generation(&mut self) -> Result<u32> {
        let ask = Message::new("generation of packet filters", GET_GENERATION, 0, &[0; 4]);
        let told = self.ask(ask)?;
        let found = attributes(told.get(4..).unwrap_or_default());
        let found = found.into_iter().find(|(kind, _)| *kind == ANSWERED);
        let number = found.and_then(|(_, value)| Some(u32::from_be_bytes(value.try_into().ok()?)));
        number.ok_or_else(|| Error::internal("the kernel tells no generation of packet filters"))
    }

    /// Performs all changes or none of them.
    ///
    /// # Errors
    /// `Aborted` when the filters are of another `generation` by now; else the errno of the first change
    /// that cannot be, with what it was for.
    pub fn batch(&mut self, generation: u32, messages: Vec<Message>) -> Result<()> {
        let Some(last) = messages.len().checked_sub(1) else {
            return Ok(());
        };
        let mut begin = Message::new("change packet filters", BEGIN, REQUEST, &frame());
        begin.bytes(GENERATION, &generation.to_be_bytes());
        let (mut bytes, what) = begin.finish(0, self.next());
        let mut sent = vec![(self.sequence, what)];
        for (at, message) in messages.into_iter().enumerate() {
            // Failures are told in any case; of successes the last one's says that it is over.
            let flags = if at == last { ACK } else { REQUEST };
            let (more, what) = message.finish(flags, self.next());
            bytes.extend(more);
            sent.push((self.sequence, what));
        }
        let end = Message::new("", END, REQUEST, &frame());
        bytes.extend(end.finish(0, self.next()).0);
        self.make_room(bytes.len())?;
        self.send(&bytes)?;
        self.judge(&sent)
    }

    /// A batch is sent in one piece, and the kernel counts twice what it copies.
    fn make_room(&mut self, length: usize) -> Result<()> {
        if length > MOST {
            return Err(Error::resource_exhausted(format_args!(
                "a change of packet filters of {length} bytes"
            )));
        }
        if length > USUAL {
            let wanted = i32::try_from(2 * length).unwrap_or(i32::MAX);
            super::set(&self.fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted)?;
        }
        Ok(())
    }

    /// Reads until the last change, or the batch as a whole, is answered.
    fn judge(&mut self, sent: &[(u32, String)]) -> Result<()> {
        let mut failure = Ok(());
        loop {
            let got = self.receive()?;
            for frame in message::frames(&self.buffer[..got]) {
                let frame = frame?;
                let at = sent
                    .iter()
                    .position(|(number, _)| *number == frame.sequence);
                let Some(at) = at else {
                    continue;
                };
                if let Answer::Failed(error) = frame.answer()? {
                    let error = if error.errno() == Some(OTHER_GENERATION) {
                        error.reclass(types::Code::Aborted)
                    } else {
                        error
                    };
                    let told = Err(error).ctx_with(|| sent[at].1.clone());
                    failure = failure.and(told);
                }
                // The answer to its beginning is that of the batch.
                if at == 0 || at + 1 == sent.len() {
                    return failure;
                }
            }
        }
    }
}

/// `struct nfgenmsg` of a batch.
const fn frame() -> [u8; 4] {
    [0, 0, 0, NFTABLES]
}
