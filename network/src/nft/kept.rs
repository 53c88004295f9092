//! The socket that the table is read and changed by, and what is known of the table from the last change.
//!
//! Invariant: what is known is of one generation of the packet filters, and is used as long as they are of that.
//! A generation that nobody here has made ends what is known, and the belief that all is as it was left.
//!
//! One socket is kept for good: whenever one is closed, the kernel ends all that is still to be taken away of
//! filters first, and who closes it waits for that, 10 to 30 ms after a change.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use sys::netlink::{Family, Message, Socket};
use types::{Code, Error, Result};

use super::element::{self, Element};
use super::message::{GET_RULE, GET_TABLE, about};
use super::ruleset::HOSTS4;
use super::{Change, MOST_TRIES};

/// The network namespace of this thread.
const OWN: &str = "/proc/thread-self/ns/net";
/// No such table.
const ENOENT: i32 = 2;

/// What is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) is_there: bool,
    pub(super) elements: Vec<Element>,
    /// How many rules there are in the table.
    pub(super) rules: usize,
}

impl Found {
    /// What is there after a change of a container's elements. `None` when it is quicker looked at than told.
    fn after(&self, change: &Change) -> Option<Self> {
        let is_plain = |one: &Element| one.set >= HOSTS4;
        let mut all = change.add.iter().chain(&change.remove);
        // Without any elements it was made anew, with rules that it may not have had.
        let is_anew = change.add.is_empty() && change.remove.is_empty();
        if !self.is_there || is_anew || !all.all(is_plain) {
            return None;
        }
        let gone: BTreeSet<&Element> = change.remove.iter().collect();
        let left = self.elements.iter().filter(|one| !gone.contains(one));
        let elements: Vec<_> = left.chain(&change.add).cloned().collect();
        // Empty it would be gone.
        (!elements.is_empty()).then_some(Self {
            is_there: true,
            elements,
            rules: self.rules,
        })
    }
}

/// A socket, and what is known by it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    open: Option<Open>,
    /// How often somebody else may have changed something.
    pub(super) era: u64,
    /// When everything was compared with the records, and found to be as it should.
    pub(super) compared: Option<u64>,
}

#[derive(Debug)]
struct Open {
    socket: Socket,
    /// It is of one network namespace, and keeps that: nobody gets its number meanwhile.
    place: u64,
    /// The last generation that was seen or made, and what was there.
    known: Option<(u32, Option<Arc<Found>>)>,
}

impl Kept {
    /// Runs `work` on the socket in this thread's network namespace. After a failure of the socket's the next
    /// one gets another.
    pub(super) fn with<T>(&mut self, work: impl FnOnce(&mut Socket) -> Result<T>) -> Result<T> {
        let done = work(&mut self.open()?.socket);
        self.judged(done)
    }

    fn open(&mut self) -> Result<&mut Open> {
        let place = fs::metadata(OWN).map_err(|e| Error::os(format_args!("stat {OWN}"), e))?;
        let place = place.ino();
        if self.open.as_ref().is_some_and(|open| open.place != place) {
            self.open = None;
        }
        match &mut self.open {
            Some(open) => Ok(open),
            none => {
                self.era += 1;
                Ok(none.insert(Open {
                    socket: Socket::open(Family::Netfilter)?,
                    place,
                    known: None,
                }))
            }
        }
    }

    fn judged<T>(&mut self, done: Result<T>) -> Result<T> {
        if let Err(error) = &done
            && (error.errno().is_some() || error.is(Code::Internal))
            // The kernel has said that others were faster: the socket is as good as before.
            && !error.is(Code::Aborted)
        {
            self.open = None;
        }
        done
    }

    /// The generation; it is noted when that is one that nobody here has made.
    pub(super) fn generation(&mut self) -> Result<u32> {
        let open = self.open()?;
        let told = open.socket.generation();
        let known = open.known.as_ref().map(|(generation, _)| *generation);
        let now = self.judged(told)?;
        if known != Some(now) {
            self.era += 1;
            self.open()?.known = Some((now, None));
        }
        Ok(now)
    }

    /// What there is, and of which generation.
    pub(super) fn find(&mut self, table: &str) -> Result<(u32, Arc<Found>)> {
        for _ in 0..MOST_TRIES {
            let generation = self.generation()?;
            if let Some((_, Some(found))) = &self.open()?.known {
                return Ok((generation, Arc::clone(found)));
            }
            let found = Arc::new(self.with(|socket| read(socket, table))?);
            // Sets are told one after the other: only of one generation they fit together.
            if self.generation()? == generation {
                self.open()?.known = Some((generation, Some(Arc::clone(&found))));
                return Ok((generation, found));
            }
        }
        Err(restless())
    }

    /// Decides on a change by what is there, and makes it if that is still so. `Aborted` in another `era`.
    pub(super) fn change(
        &mut self,
        table: &str,
        era: Option<u64>,
        mut decide: impl FnMut(&Found) -> Result<(Change, Vec<Message>)>,
    ) -> Result<()> {
        for _ in 0..MOST_TRIES {
            let (generation, found) = self.find(table)?;
            if era.is_some_and(|era| era != self.era) {
                return Err(Error::aborted("packet filters have changed"));
            }
            let (change, messages) = decide(&found)?;
            if messages.is_empty() {
                return Ok(());
            }
            match self.with(|socket| socket.batch(generation, messages)) {
                Err(error) if error.is(Code::Aborted) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    // It is never zero.
                    let made = generation.wrapping_add(1).max(1);
                    self.open()?.known = Some((made, found.after(&change).map(Arc::new)));
                    return Ok(());
                }
            }
        }
        Err(restless())
    }
}

fn restless() -> Error {
    Error::unavailable("packet filters do not stop changing")
}

fn read(socket: &mut Socket, table: &str) -> Result<Found> {
    match socket.ask(about(format!("find table {table}"), GET_TABLE, 0, table)) {
        Ok(_) => {}
        Err(e) if e.errno() == Some(ENOENT) => return Ok(Found::default()),
        Err(e) => return Err(e),
    }
    let what = format!("list rules of table {table}");
    let rules = socket.list(&about(what, GET_RULE, 0, table), |_| Ok(Some(())));
    let rules = match rules {
        Err(e) if e.errno() == Some(ENOENT) => 0,
        rules => rules?.len(),
    };
    Ok(Found {
        is_there: true,
        elements: element::list(socket, table)?,
        rules,
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// The shortest of a few times that work takes.
    fn took<T>(work: impl Fn() -> T) -> Duration {
        let once = |_| {
            let begun = Instant::now();
            drop(work());
            begun.elapsed()
        };
        (0..15).map(once).min().unwrap()
    }

    #[test]
    fn of_many_elements_many_go_in_about_the_time_that_they_take_to_be_sorted() {
        let one = |at: u32| {
            let [.., a, b] = at.to_be_bytes();
            Element::taken("a", [10, 0, a, b].into())
        };
        let elements: Vec<_> = (0..20_000).map(one).collect();
        let change = Change {
            remove: elements.iter().step_by(2).cloned().collect(),
            add: vec![one(20_000)],
        };
        let found = Found {
            is_there: true,
            rules: 1,
            elements,
        };
        let left = found.after(&change).unwrap().elements;
        assert_eq!((left.len(), &left[0]), (10_001, &one(1)));
        let sorted = took(|| found.elements.iter().cloned().collect::<BTreeSet<_>>());
        let told = took(|| found.after(&change));
        assert!(told < sorted * 20, "{told:?}, sorted in {sorted:?}");
    }
}
