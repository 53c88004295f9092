//! Messages of netlink: a header, a body of fixed length, attributes that may hold attributes.

use std::io;

use types::{Error, Result};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// Flags of a request whose end is told.
pub(super) const ACK: u16 = 0x5;
/// Flags of a request for a list.
pub(super) const DUMP: u16 = 0x301;
/// The list changed while it was told.
const INTERRUPTED: u16 = 0x10;
/// The request is not repeated in the answer.
const CAPPED: u16 = 0x100;
/// Attributes follow an error.
const EXPLAINED: u16 = 0x200;
/// The kernel's words on an error.
const WORDS: u16 = 1;
/// The kind of an attribute is below these bits.
const KIND: u16 = 0x3fff;
/// Its value is attributes.
const NESTED: u16 = 0x8000;

/// A request.
#[derive(Clone, Debug)]
pub struct Message {
    what: String,
    bytes: Vec<u8>,
}

impl Message {
    /// A request with its body; `what` it is for goes into errors.
    #[must_use]
    pub fn new(what: impl Into<String>, kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(body);
        let what = what.into();
        let mut made = Self { what, bytes };
        made.pad();
        made
    }

    /// Adds an attribute.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |message| message.bytes.extend(value))
    }

    /// Adds an attribute with a text and the zero byte that ends it.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nest(kind, |message| {
            message.bytes.extend(value.as_bytes());
            message.bytes.push(0);
        })
    }

    /// Adds an attribute with a number of one byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// Adds an attribute with a number of two bytes.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute with a number of four bytes.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute whose value is what `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        fill(self);
        let length = self.bytes.len() - start;
        // What is sent is made here, of values that are checked: none comes near the limit.
        let length = u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes();
        self.bytes[start..start + 2].copy_from_slice(&length);
        self.pad();
        self
    }

    /// As [`Message::nest`], with the mark that parts of the kernel ask for.
    pub fn marked(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.nest(kind | NESTED, fill)
    }

    /// Adds bytes as they are: a header inside an attribute, a body of attributes made before.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self.pad();
        self
    }

    /// The body and the attributes as they are sent.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }

    /// The bytes to send, and what they are for.
    pub(super) fn finish(mut self, flags: u16, sequence: u32) -> (Vec<u8>, String) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let own = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&(own | flags).to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        (self.bytes, self.what)
    }
}

/// What a frame is to a request.
pub(super) enum Answer {
    /// Something that was asked for.
    Entry,
    /// The end.
    Done,
    /// The end, without success.
    Failed(Error),
}

/// One message of an answer.
pub(super) struct Frame<'a> {
    kind: u16,
    flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

impl Frame<'_> {
    pub(super) fn is_interrupted(&self) -> bool {
        self.flags & INTERRUPTED != 0
    }

    pub(super) fn answer(&self) -> Result<Answer> {
        let done = i32::from(self.kind) == libc::NLMSG_DONE;
        if i32::from(self.kind) == libc::NLMSG_NOOP {
            return Err(broken("a message of no meaning"));
        }
        if !done && i32::from(self.kind) != libc::NLMSG_ERROR {
            return Ok(Answer::Entry);
        }
        // The end of a list has an error number as well, of older kernels none.
        let errno = self.body.get(..4).map_or(0, |bytes| {
            i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        });
        if errno == 0 {
            return Ok(Answer::Done);
        }
        let error = io::Error::from_raw_os_error(errno.wrapping_neg());
        let words = self.words(done);
        let words = words.as_deref().unwrap_or("the kernel refuses");
        Ok(Answer::Failed(Error::os(words, error)))
    }

    /// What the kernel says beside the number.
    fn words(&self, done: bool) -> Option<String> {
        if self.flags & EXPLAINED == 0 {
            return None;
        }
        let skipped = if done {
            4
        } else if self.flags & CAPPED != 0 {
            4 + HEADER
        } else {
            4 + aligned(u32_of(self.body.get(4..8)?)? as usize)
        };
        let found = attributes(self.body.get(skipped..)?).find(|(kind, _)| *kind == WORDS);
        found.map(|(_, value)| text_of(value))
    }
}

/// The messages in what one call received.
pub(super) fn frames(mut bytes: &[u8]) -> impl Iterator<Item = Result<Frame<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let frame = frame(bytes);
        bytes = match &frame {
            Ok((_, length)) => bytes.get(aligned(*length)..).unwrap_or_default(),
            Err(_) => &[],
        };
        Some(frame.map(|(frame, _)| frame))
    })
}

fn frame(bytes: &[u8]) -> Result<(Frame<'_>, usize)> {
    let short = || broken("a message that is cut short");
    let header = bytes.get(..HEADER).ok_or_else(short)?;
    let length = u32_of(header).ok_or_else(short)? as usize;
    let body = bytes.get(HEADER..length).ok_or_else(short)?;
    let frame = Frame {
        kind: u16_of(&header[4..]).unwrap_or_default(),
        flags: u16_of(&header[6..]).unwrap_or_default(),
        sequence: u32_of(&header[8..]).unwrap_or_default(),
        body,
    };
    Ok((frame, length))
}

fn broken(what: &str) -> Error {
    Error::internal(format_args!("the kernel sent {what}"))
}

/// Kinds and values of attributes, without the marks of the kind; ends where they end or make no sense.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(&'a [u8]);

/// The attributes in `bytes`.
#[must_use]
pub const fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_of(self.0)?);
        let kind = u16_of(self.0.get(2..)?)? & KIND;
        let value = self.0.get(ATTRIBUTE..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A number of two bytes, if there is one.
#[must_use]
pub fn u16_of(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?))
}

/// A number of four bytes, if there is one.
#[must_use]
pub fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A text, up to the zero byte that ends it.
#[must_use]
pub fn text_of(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut message = Message::new("x", 1, 0, &[7; 5]);
        message.text(3, "ab").u8(4, 9).nest(5, |inner| {
            inner.u32(1, 1 << 20).marked(2, |inner| {
                inner.u16(1, 513);
            });
        });
        assert_eq!(message.body().len() % 4, 0);
        let all: Vec<_> = attributes(&message.body()[8..]).collect();
        assert_eq!(all[0], (3, &b"ab\0"[..]));
        assert_eq!(text_of(all[0].1), "ab");
        assert_eq!(all[1], (4, &[9][..]));
        let inner: Vec<_> = attributes(all[2].1).collect();
        assert_eq!((inner[0].0, u32_of(inner[0].1)), (1, Some(1 << 20)));
        let deep = attributes(inner[1].1).next().unwrap();
        assert_eq!((inner[1].0, u16_of(deep.1)), (2, Some(513)));
    }

    #[test]
    fn nonsense_ends_a_list_and_is_no_message() {
        for bytes in [&[][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1], &[0; 8], &[255; 3]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        for bytes in [&[0; 4][..], &[0; 16], &[200; 16]] {
            assert!(frames(bytes).next().unwrap().is_err(), "{bytes:?}");
            assert_eq!(frames(bytes).count(), 1);
        }
    }
}
