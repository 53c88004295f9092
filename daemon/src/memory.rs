//! What a burst of calls has left behind goes back to the kernel: blocks of the allocator that nobody uses,
//! and code that only the burst has run.
//!
//! Invariant: a daemon that does nothing does not stay as large as it once had to be, and is not woken for
//! that: it looks after calls, a while later, and not without. What is used is not touched, and as long as
//! the daemon is small the look at it is one small read. The start is a burst like another. Who works on
//! keeps what it will need in a moment, unless that is much.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use sys::limits::Memory;
use types::Result;

/// How long after a call is looked, and the time between two looks.
const BEAT: Duration = Duration::from_secs(5);
/// How long after its begin the start is over: what it has still to do is done behind it.
const STARTED: Duration = Duration::from_secs(1);
/// Memory that is not worth the work, in bytes: while there are calls, and when there are none.
const SLACK_AT_WORK: u64 = 8 << 20;
const SLACK_AT_REST: u64 = 1 << 20;

/// Watches the daemon's memory, for ever.
pub(crate) fn watch() {
    tokio::spawn(async {
        tokio::time::sleep(STARTED).await;
        let small = &Small::default();
        let error = after_work(grpc::meter::used, |slack| small.look(slack)).await;
        tracing::warn!(%error, "the daemon does not know its own size");
    });
}

/// Looks at the beginning, while something is done, and once more when nothing is any longer; until that
/// fails.
async fn after_work<W: Future<Output = ()>, L: Future<Output = Result<()>>>(
    work: impl Fn() -> W,
    mut look: impl FnMut(u64) -> L,
) -> types::Error {
    let mut slack = SLACK_AT_REST;
    loop {
        if let Err(error) = look(slack).await {
            return error;
        }
        if slack == SLACK_AT_REST {
            work().await;
        }
        tokio::time::sleep(BEAT).await;
        slack = match work().now_or_never() {
            Some(()) => SLACK_AT_WORK,
            None => SLACK_AT_REST,
        };
    }
}

/// How small the daemon can be: resident bytes when all was given back that could be, or fewer since. None
/// before the first look.
#[derive(Debug, Default)]
struct Small(AtomicU64);

impl Small {
    /// Gives back what nobody uses, when the daemon is larger than it has to be.
    async fn look(&self, slack: u64) -> Result<()> {
        let mut now = Memory::of_this_process()?.resident;
        let small = self.0.load(Ordering::Relaxed);
        if now > small.saturating_add(slack) {
            // Takes as long as there are blocks to look at.
            let work = tokio::task::spawn_blocking(move || give_back(slack));
            now = work.await.map_err(types::Error::internal)??;
        } else {
            now = now.min(small);
        }
        self.0.store(now, Ordering::Relaxed);
        Ok(())
    }
}

/// Gives back what nobody uses; how much stays resident, in bytes.
fn give_back(slack: u64) -> Result<u64> {
    // It is no loss where that fails, for lack of descriptors or else.
    drop(sys::program::unmap_code());
    let unused = unused(Memory::of_this_process()?, sys::limits::heap_in_use());
    if unused > slack {
        sys::limits::trim_heap();
        tracing::debug!(unused, "memory was given back");
    }
    Ok(Memory::of_this_process()?.resident)
}

/// What is resident for no use.
fn unused(memory: Memory, heap_in_use: u64) -> u64 {
    memory.anonymous.saturating_sub(heap_in_use)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_idle_is_not_looked_at() {
        let work = tokio::sync::Notify::new();
        let mut looks = Vec::new();
        {
            let looked = |slack| {
                looks.push(slack);
                std::future::ready(Ok(()))
            };
            let watching = after_work(|| work.notified(), looked);
            let mut watching = std::pin::pin!(watching);
            for calls in [1, 0, 1] {
                (0..calls).for_each(|_| work.notify_one());
                let hour = Duration::from_secs(3600);
                tokio::time::timeout(hour, &mut watching).await.unwrap_err();
            }
        }
        assert_eq!(
            looks, [SLACK_AT_REST; 3],
            "at the beginning, and after each call"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_works_keeps_more_until_the_work_is_over() {
        let work = tokio::sync::Notify::new();
        let mut looks = Vec::new();
        {
            let looked = |slack| {
                looks.push(slack);
                std::future::ready(Ok(()))
            };
            let watching = after_work(|| work.notified(), looked);
            let mut watching = std::pin::pin!(watching);
            for _ in 0..5 {
                work.notify_one();
                tokio::time::timeout(BEAT / 2, &mut watching)
                    .await
                    .unwrap_err();
            }
            let hour = Duration::from_secs(3600);
            tokio::time::timeout(hour, &mut watching).await.unwrap_err();
        }
        let [first, during @ .., last] = &looks[..] else {
            panic!("{looks:?}")
        };
        assert_eq!([*first, *last], [SLACK_AT_REST; 2]);
        assert!(!during.is_empty());
        assert!(
            during.iter().all(|slack| *slack == SLACK_AT_WORK),
            "{looks:?}"
        );
    }

    #[tokio::test]
    async fn what_is_freed_is_given_back_and_what_is_used_stays() {
        /// The heap is that of all tests here: what another one frees in the same moment is no fault.
        const TRIES: usize = 10;
        let mut unused = Vec::new();
        while unused
            .last()
            .is_none_or(|unused| *unused > 4 * SLACK_AT_WORK)
        {
            assert!(unused.len() < TRIES, "{unused:?}");
            unused.push(left_unused().await);
        }
    }

    /// What is resident for no use after a look behind a burst.
    async fn left_unused() -> u64 {
        let small = Small::default();
        small.look(SLACK_AT_WORK).await.unwrap();
        assert!(small.0.load(Ordering::Relaxed) > 0);
        // Small blocks, some of which stay: large ones go back by themselves.
        let made = (0..=255_u8).cycle().take(40_000);
        let made: Vec<Box<[u8; 2000]>> = made.map(|n| Box::new([n; 2000])).collect();
        let made = made.into_iter().enumerate();
        let (kept, freed): (Vec<_>, Vec<_>) = made.partition(|(n, _)| n % 8 == 7);
        drop(freed);
        small.look(SLACK_AT_WORK).await.unwrap();
        let now = Memory::of_this_process().unwrap();
        assert!(
            kept.iter()
                .all(|(n, block)| usize::from(block[1999]) == n % 256)
        );
        unused(now, sys::limits::heap_in_use())
    }
}
