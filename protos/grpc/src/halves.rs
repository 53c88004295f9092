//! Messages of which a part has come: what they take of this process' memory.
//!
//! Invariant: what has come of all messages that are not whole yet, on all connections, stays within
//! [`MOST`] and a little for each. A client that goes on and on with messages that it never ends is
//! refused, whoever it is; one that sends small ones is not.

use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

/// What has come of all of them, in bytes: several hundred writers of content, each in the middle of a
/// message of 1 MiB, are far below.
const MOST: usize = 256 << 20;
/// What may come of each before it counts.
const SMALL: usize = 16 << 10;

/// What counts of all of them.
static ALL: Halves = Halves {
    come: AtomicUsize::new(0),
    most: MOST,
};

/// What counts of some messages, and may.
#[derive(Debug)]
struct Halves {
    come: AtomicUsize,
    most: usize,
}

/// The message that is coming in on one stream.
#[derive(Debug)]
pub(crate) struct Half {
    counted: usize,
    all: &'static Halves,
}

impl Half {
    /// One that has not begun.
    pub(crate) fn new() -> Self {
        Self::of(&ALL)
    }

    fn of(all: &'static Halves) -> Self {
        Self { counted: 0, all }
    }

    /// Notes how much of a message has come, and 0 when it is whole.
    ///
    /// # Errors
    /// `ResourceExhausted` when more came with it than there is room for.
    pub(crate) fn come(&mut self, bytes: usize) -> Result<(), Status> {
        let counts = if bytes > SMALL { bytes } else { 0 };
        let before = std::mem::replace(&mut self.counted, counts);
        if counts <= before {
            self.all.come.fetch_sub(before - counts, Ordering::Relaxed);
            return Ok(());
        }
        let more = counts - before;
        let come = self.all.come.fetch_add(more, Ordering::Relaxed) + more;
        if come <= self.all.most {
            return Ok(());
        }
        let most = self.all.most;
        tracing::warn!(
            most,
            "messages that are not whole take too much: one is refused"
        );
        Err(Status::resource_exhausted(format!(
            "messages of which only a part has come take more than {most} bytes: resource exhausted"
        )))
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.all.come.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_together_and_given_back() {
        static SOME: Halves = Halves {
            come: AtomicUsize::new(0),
            most: 1 << 20,
        };
        let come = || SOME.come.load(Ordering::Relaxed);
        let (mut one, mut other) = (Half::of(&SOME), Half::of(&SOME));
        one.come(SMALL).unwrap();
        assert_eq!(come(), 0);
        one.come(1 << 19).unwrap();
        other.come(1 << 19).unwrap();
        assert_eq!(come(), 1 << 20);
        let refused = other.come((1 << 19) + 1).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(other);
        assert_eq!(come(), 1 << 19);
        one.come(0).unwrap();
        assert_eq!(come(), 0);
        // Small ones come also where there is no room.
        one.come(1 << 20).unwrap();
        let mut small = Half::of(&SOME);
        small.come(SMALL).unwrap();
        small.come(SMALL + 1).unwrap_err();
    }
}
