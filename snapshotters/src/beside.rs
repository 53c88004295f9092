//! Work that nobody waits for, on threads that give way to those somebody waits for.
//!
//! Invariant: it takes no thread of the runtime's and, while there is other work, little of a processor. To
//! remove directories, and to make some beforehand, is all in the kernel: two processors are soon full of
//! it, and each answer would wait for its turn.

use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};
use types::{Error, Result};

/// Whose work is done one after another, in one thread at a time, however many ask for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turn(Arc<Mutex<()>>);

/// Begins `work`; false when there is no thread for it, and nothing happens.
pub(crate) fn begin(work: impl FnOnce() + Send + 'static) -> bool {
    let thread = std::thread::Builder::new().name("snapshots-beside".into());
    let begun = thread.spawn(move || {
        sys::limits::give_way();
        work();
    });
    begun
        .inspect_err(|error| tracing::warn!(%error, "no thread for work beside"))
        .is_ok()
}

/// Runs `work` in its turn, and to its end, which comes also when the caller goes away: the turn is over
/// only then.
///
/// # Errors
/// Those of the work; `Internal` when it panicked; `ResourceExhausted` without a thread.
pub(crate) async fn run<T: Send + 'static>(
    turn: &Turn,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let turn = Arc::clone(&turn.0).lock_owned().await;
    let (sender, done) = oneshot::channel();
    let work = move || {
        let made = work();
        drop(turn);
        // Nobody may wait for it any more.
        drop(sender.send(made));
    };
    if !begin(work) {
        return Err(Error::resource_exhausted("no thread for work beside"));
    }
    let gone = |error| Error::internal("snapshotter work failed").with_source(error);
    done.await.map_err(gone)?
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn nice() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn it_gives_way_and_its_caller_does_not() {
        let before = nice();
        let beside = run(&Turn::default(), || Ok(nice())).await.unwrap();
        assert!(beside > before || before == 19, "{beside} {before}");
        assert_eq!(nice(), before);
    }

    #[tokio::test]
    async fn a_turn_is_over_when_its_work_is_and_not_when_its_caller_goes_away() {
        let turn = Turn::default();
        let (begun, wait_begun) = oneshot::channel();
        let (release, wait_release) = std::sync::mpsc::channel::<()>();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let first = turn.clone();
        let caller = tokio::spawn(async move {
            let work = move || {
                begun.send(()).unwrap();
                wait_release.recv().unwrap();
                over.store(true, Ordering::SeqCst);
                Ok(())
            };
            run(&first, work).await
        });
        wait_begun.await.unwrap();
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert!(turn.0.try_lock().is_err(), "its work goes on");
        let second = run(&turn, move || Ok(is_over.load(Ordering::SeqCst)));
        let (second, ()) = tokio::join!(second, async { release.send(()).unwrap() });
        assert!(second.unwrap(), "the first one was not over");
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let turn = Turn::default();
        let error = run(&turn, || -> Result<()> { Err(Error::not_found("x")) }).await;
        assert!(error.unwrap_err().is_not_found());
        let error = run(&turn, || -> Result<()> {
            std::panic::resume_unwind(Box::new("x"))
        })
        .await;
        assert!(error.unwrap_err().is(types::Code::Internal));
        // The next one has its turn.
        assert_eq!(run(&turn, || Ok(1)).await.unwrap(), 1);
    }
}
