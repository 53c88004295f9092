//! Subscriptions that ended with their exchange, and what the exchange after it owes to their clients.
//!
//! A client that knows its position comes back with it. One that does not (Go's) is known by its process
//! alone: when it subscribes again, everything since its subscription was cut comes first. Whoever was
//! not cut off is owed nothing, so nobody is told news that it has heard already.

use std::time::{Duration, Instant};

/// How long a client may take to come back: what it asks for later is something else.
const COME_BACK: Duration = Duration::from_secs(60);

/// A subscription that was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The subscriber's process.
    pub process: u32,
    /// Number of the newest envelope that it has got, or that did not concern it.
    pub after: u64,
}

/// Cuts whose clients have not come back yet.
#[derive(Debug)]
pub(crate) struct Cuts {
    open: Vec<Cut>,
    over: Instant,
}

impl Cuts {
    /// Those of the exchange before this one, which begins now.
    pub(crate) fn of(open: Vec<Cut>) -> Self {
        Self {
            open,
            over: Instant::now() + COME_BACK,
        }
    }

    /// Those that are still open.
    pub(crate) fn open(&self) -> &[Cut] {
        if Instant::now() < self.over {
            &self.open
        } else {
            &[]
        }
    }

    /// A process comes back: after which number everything is owed to it. Of several cuts of a process
    /// each is told once, and which of them is which nobody knows: the oldest counts for all.
    pub(crate) fn close(&mut self, process: u32) -> Option<u64> {
        let of_it = |cut: &&Cut| cut.process == process;
        let after = self
            .open()
            .iter()
            .filter(of_it)
            .map(|cut| cut.after)
            .min()?;
        let numbered = self.open.iter().enumerate();
        let newest = numbered
            .filter(|(_, cut)| cut.process == process)
            .max_by_key(|(_, cut)| cut.after)
            .map(|(place, _)| place)?;
        self.open.swap_remove(newest);
        Some(after)
    }

    /// A client that was back has gone before it had all that it was owed.
    pub(crate) fn reopen(&mut self, cut: Cut) {
        self.open.push(cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cut_is_closed_once_and_the_oldest_counts_for_all() {
        let cut = |process, after| Cut { process, after };
        let mut cuts = Cuts::of(vec![cut(1, 7), cut(2, 5), cut(1, 4)]);
        assert_eq!(cuts.close(3), None);
        assert_eq!(cuts.close(1), Some(4));
        assert_eq!(cuts.close(1), Some(4));
        assert_eq!(cuts.close(1), None);
        assert_eq!(cuts.open(), [cut(2, 5)]);
        cuts.reopen(cut(1, 6));
        assert_eq!((cuts.close(1), cuts.close(1)), (Some(6), None));
        cuts.over = Instant::now();
        assert_eq!((cuts.close(2), cuts.open().len()), (None, 0));
    }
}
