//! What a burst of calls has left in the allocator goes back to the kernel.
//!
//! Invariant: a daemon that does nothing does not stay as large as it once had to be. What is used is not
//! touched, and as long as the daemon is small the look at it is one small read.

use std::time::Duration;

use sys::limits::Memory;
use types::Result;

/// How often is looked.
const BEAT: Duration = Duration::from_secs(5);
/// Memory that is not worth the work, in bytes.
const SLACK: u64 = 8 << 20;

/// Watches the daemon's memory, for ever.
pub(crate) fn watch() {
    tokio::spawn(async {
        let mut least = u64::MAX;
        loop {
            if let Err(error) = look(&mut least).await {
                tracing::warn!(%error, "the daemon does not know its own size");
                return;
            }
            tokio::time::sleep(BEAT).await;
        }
    });
}

/// Gives back what nobody uses, when the daemon is larger than it has been.
async fn look(least: &mut u64) -> Result<()> {
    let now = Memory::of_this_process()?;
    *least = now.resident.min(*least);
    if now.resident <= least.saturating_add(SLACK) {
        return Ok(());
    }
    // Takes as long as there are blocks to look at.
    let work = tokio::task::spawn_blocking(move || {
        let unused = unused(now, sys::limits::heap_in_use());
        if unused > SLACK {
            sys::limits::trim_heap();
            tracing::debug!(unused, "memory was given back");
        }
    });
    work.await.map_err(types::Error::internal)
}

/// What is resident for no use.
fn unused(memory: Memory, heap_in_use: u64) -> u64 {
    memory.anonymous.saturating_sub(heap_in_use)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_freed_is_given_back_and_what_is_used_stays() {
        let mut least = u64::MAX;
        look(&mut least).await.unwrap();
        assert!(least < u64::MAX);
        // Small blocks, some of which stay: large ones go back by themselves.
        let made = (0..=255_u8).cycle().take(40_000);
        let made: Vec<Box<[u8; 2000]>> = made.map(|n| Box::new([n; 2000])).collect();
        let made = made.into_iter().enumerate();
        let (kept, freed): (Vec<_>, Vec<_>) = made.partition(|(n, _)| n % 8 == 7);
        drop(freed);
        look(&mut least).await.unwrap();
        let now = Memory::of_this_process().unwrap();
        let unused = unused(now, sys::limits::heap_in_use());
        assert!(unused <= 4 * SLACK, "{unused} of {now:?}");
        assert!(
            kept.iter()
                .all(|(n, block)| usize::from(block[1999]) == n % 256)
        );
    }
}
