//! Undoing the steps of a failed piece of work, last step first.
//!
//! Invariant: a step's undo is registered before anything of the step can remain; unwinding goes on
//! past failures and logs them, because the first error is the one the caller needs.

use futures::future::BoxFuture;
use types::Result;

type Step = Box<dyn FnOnce() -> BoxFuture<'static, Result<()>> + Send>;

/// Stack of undo steps.
#[derive(Default)]
pub(crate) struct Undo {
    steps: Vec<(&'static str, Step)>,
}

impl Undo {
    /// Registers how to undo `name`.
    pub(crate) fn after<F, R>(&mut self, name: &'static str, undo: F)
    where
        F: FnOnce() -> R + Send + 'static,
        R: Future<Output = Result<()>> + Send + 'static,
    {
        self.steps.push((name, Box::new(move || Box::pin(undo()))));
    }

    /// The work is done: nothing to undo.
    pub(crate) fn keep(mut self) {
        self.steps.clear();
    }

    /// Undoes everything, last step first.
    pub(crate) async fn unwind(self) {
        for (name, undo) in self.steps.into_iter().rev() {
            if let Err(error) = undo().await {
                tracing::warn!(step = name, %error, "undo failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use types::Error;

    #[tokio::test]
    async fn steps_are_undone_in_reverse_past_failures() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for step in 1..=3 {
            let seen = Arc::clone(&seen);
            undo.after("step", move || async move {
                seen.lock().unwrap().push(step);
                if step == 2 {
                    return Err(Error::internal("no"));
                }
                Ok(())
            });
        }
        undo.unwind().await;
        assert_eq!(*seen.lock().unwrap(), [3, 2, 1]);
    }

    #[tokio::test]
    async fn kept_work_is_not_undone() {
        let mut undo = Undo::default();
        undo.after("step", || async { panic!("must not run") });
        undo.keep();
    }
}
