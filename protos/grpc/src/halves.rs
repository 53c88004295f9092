//! Messages of which a part has come: what they take of this process' memory.
//!
//! Invariant: what has come of all messages that are not whole yet stays within [`MOST_OF_ONE`] for each
//! connection and within [`MOST`] for all of them, and a little for each message. A client that goes on
//! and on with messages that it never ends is refused, and others are not; one that sends small ones is
//! not either.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Status;

/// What may have come of all of them, in bytes.
const MOST: usize = 512 << 20;
/// What may have come of those of one connection. Clients that fetch an image send all its layers at once
/// in messages of 1 MiB, a frame of each in turn, so that all may be about to end: an image has at most 127.
const MOST_OF_ONE: usize = 160 << 20;
/// What may come of each before it counts.
const SMALL: usize = 16 << 10;

/// What counts of all of them.
static ALL: Halves = Halves::new(MOST);

/// What counts of some messages, and may.
#[derive(Debug)]
pub(crate) struct Halves {
    come: AtomicUsize,
    most: usize,
}

impl Halves {
    const fn new(most: usize) -> Self {
        let come = AtomicUsize::new(0);
        Self { come, most }
    }

    /// Those of one connection.
    pub(crate) fn of_connection() -> Self {
        Self::new(MOST_OF_ONE)
    }

    /// Counts more if there is room for it.
    fn add(&self, more: usize) -> bool {
        let fits = |come: usize| come.checked_add(more).filter(|come| *come <= self.most);
        let added = self
            .come
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        added.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.come.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The message that is coming in on one stream.
#[derive(Debug)]
pub(crate) struct Half {
    counted: usize,
    connection: Option<Arc<Halves>>,
    all: &'static Halves,
}

impl Half {
    /// One that has not begun, on a connection if that is known.
    pub(crate) fn new(connection: Option<Arc<Halves>>) -> Self {
        Self::of(connection, &ALL)
    }

    fn of(connection: Option<Arc<Halves>>, all: &'static Halves) -> Self {
        Self {
            counted: 0,
            connection,
            all,
        }
    }

    /// Notes how much of a message has come, and 0 when it is whole.
    ///
    /// # Errors
    /// `ResourceExhausted` when more came with it than there is room for: of this one nothing counts then.
    pub(crate) fn come(&mut self, bytes: usize) -> Result<(), Status> {
        let counts = if bytes > SMALL { bytes } else { 0 };
        let before = self.counted;
        if counts == before {
            return Ok(());
        }
        if counts < before {
            self.give_back(before - counts);
            return Ok(());
        }
        let more = counts - before;
        let full = match &self.connection {
            Some(one) if !one.add(more) => Some(("of one connection ", one.most)),
            one if !self.all.add(more) => {
                if let Some(one) = one {
                    one.give_back(more);
                }
                Some(("", self.all.most))
            }
            _ => None,
        };
        let Some((whose, most)) = full else {
            self.counted = counts;
            return Ok(());
        };
        self.give_back(before);
        tracing::debug!(most, "messages {whose}that are not whole take too much");
        Err(Status::resource_exhausted(format!(
            "messages {whose}of which only a part has come take more than {most} bytes: \
             resource exhausted"
        )))
    }

    fn give_back(&mut self, bytes: usize) {
        self.counted -= bytes;
        for halves in self.connection.as_deref().into_iter().chain([self.all]) {
            halves.give_back(bytes);
        }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        if self.counted > 0 {
            self.give_back(self.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn come(halves: &Halves) -> usize {
        halves.come.load(Ordering::Relaxed)
    }

    fn refused(half: &mut Half, bytes: usize) {
        let refused = half.come(bytes).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn parts_are_counted_together_and_given_back() {
        static SOME: Halves = Halves::new(1 << 20);
        let (mut one, mut other) = (Half::of(None, &SOME), Half::of(None, &SOME));
        one.come(SMALL).unwrap();
        assert_eq!(come(&SOME), 0);
        one.come(1 << 19).unwrap();
        other.come(1 << 19).unwrap();
        assert_eq!(come(&SOME), 1 << 20);
        // What is refused has no part in it any more, long before it is dropped.
        refused(&mut other, (1 << 19) + 1);
        assert_eq!(come(&SOME), 1 << 19);
        drop(other);
        assert_eq!(come(&SOME), 1 << 19);
        one.come(0).unwrap();
        assert_eq!(come(&SOME), 0);
        // Small ones come also where there is no room.
        one.come(1 << 20).unwrap();
        let mut small = Half::of(None, &SOME);
        small.come(SMALL).unwrap();
        refused(&mut small, SMALL + 1);
        drop(one);
        assert_eq!(come(&SOME), 0);
    }

    #[test]
    fn all_layers_of_an_image_may_come_at_once() {
        static SOME: Halves = Halves::new(MOST);
        let connection = Arc::new(Halves::of_connection());
        let mut layers: Vec<_> = (0..127)
            .map(|_| Half::of(Some(Arc::clone(&connection)), &SOME))
            .collect();
        for come in 1..=64 {
            for layer in &mut layers {
                layer.come(come << 14).unwrap();
            }
        }
    }

    #[test]
    fn one_connection_has_no_more_than_its_part() {
        static SOME: Halves = Halves::new(3 << 20);
        let connection = || Arc::new(Halves::new(2 << 20));
        let (mine, others) = (connection(), connection());
        let half = |of: &Arc<Halves>| Half::of(Some(Arc::clone(of)), &SOME);
        let (mut first, mut second) = (half(&mine), half(&mine));
        first.come(1 << 20).unwrap();
        second.come(1 << 20).unwrap();
        refused(&mut half(&mine), SMALL + 1);
        let mut other = half(&others);
        other.come(1 << 20).unwrap();
        // Its own connection has room, all together have not.
        refused(&mut half(&others), SMALL + 1);
        assert_eq!((come(&mine), come(&others)), (2 << 20, 1 << 20));
        assert_eq!(come(&SOME), 3 << 20);
        second.come(0).unwrap();
        half(&others).come(1 << 20).unwrap();
        drop((first, second, other));
        assert_eq!([come(&mine), come(&others), come(&SOME)], [0; 3]);
    }
}
