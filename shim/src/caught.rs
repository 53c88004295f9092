//! Panics as errors: a bug ends what it is in, and what that held is given back.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;

use types::{Error, Result};

/// Makes an error of a panic in `work`.
///
/// # Errors
/// Those of `work`; `Internal` for a panic.
pub(crate) async fn caught<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    poll_fn(
        |context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(poll) => poll,
            Err(_) => Poll::Ready(Err(Error::internal("request failed in the shim"))),
        },
    )
    .await
}

/// Runs `work`, which returns nothing, and says whether it came to its end.
pub(crate) fn survives(work: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_ok()
}

/// Where tests let it panic.
#[cfg(test)]
pub(crate) mod fault {
    use std::cell::Cell;

    thread_local! {
        static NEXT: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// The next time this thread comes to `point`, it panics.
    pub(crate) fn arm(point: &'static str) {
        NEXT.set(Some(point));
    }

    /// A point.
    pub(crate) fn point(name: &str) {
        if NEXT.get() == Some(name) {
            NEXT.set(None);
            panic!("a fault at {name}, as the test wants it");
        }
    }
}
