//! Work that comes to its end, whoever waits for it.
//!
//! Invariant: the work is polled by its caller, which costs no task and no way between threads; when
//! the caller drops it unfinished, the rest of it runs on a task of its own.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use types::Result;

use crate::call::{Observed, panicked};

/// Work in a place of its own: from there on it is a pointer that goes from hand to hand.
pub(crate) type Work<R> = Pin<Box<dyn Future<Output = Result<R>> + Send>>;

/// The work, until it is done.
pub(crate) struct Detached<R: Send + 'static> {
    work: Option<Observed<Work<R>>>,
}

impl<R: Send + 'static> Detached<R> {
    pub(crate) fn new(work: Observed<Work<R>>) -> Self {
        Self { work: Some(work) }
    }
}

impl<R: Send + 'static> Future for Detached<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<R>> {
        let Some(work) = &mut self.work else {
            return Poll::Pending;
        };
        // A bug in one call is that call's end and nobody else's.
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(work).poll(context)));
        let done = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(done)) => done,
            Err(panic) => Err(panicked(&text(&*panic))),
        };
        self.work = None;
        Poll::Ready(done)
    }
}

impl<R: Send + 'static> Drop for Detached<R> {
    fn drop(&mut self) {
        // Without a runtime the process is at its end.
        if let Some(work) = self.work.take()
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn(work));
        }
    }
}

/// What a panic says.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}
