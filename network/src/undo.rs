//! Undoing the steps of a failed piece of work, last step first.
//!
//! Invariant: what undoes a step is registered right beside it; unwinding goes on past failures and
//! logs them, because the first error is the one that the caller needs.

use std::fmt;

use types::Result;

type Step<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// Stack of undo steps. Dropped without [`Undo::keep`], it undoes them; the steps may block.
#[derive(Default)]
pub struct Undo<'a> {
    steps: Vec<(&'static str, Step<'a>)>,
}

impl<'a> Undo<'a> {
    /// Registers what undoes the step `name`.
    pub fn after(&mut self, name: &'static str, undo: impl FnOnce() -> Result<()> + Send + 'a) {
        self.steps.push((name, Box::new(undo)));
    }

    /// The work is done: nothing to undo.
    pub fn keep(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some((name, undo)) = self.steps.pop() {
            if let Err(error) = undo() {
                tracing::warn!(step = name, %error, "undo failed");
            }
        }
    }
}

impl fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.steps.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use types::Error;

    #[test]
    fn steps_are_undone_in_reverse_past_failures() {
        let seen = Mutex::new(Vec::new());
        let mut undo = Undo::default();
        for step in 1..=3 {
            let seen = &seen;
            undo.after("step", move || {
                seen.lock().unwrap().push(step);
                if step == 2 {
                    return Err(Error::internal("no"));
                }
                Ok(())
            });
        }
        drop(undo);
        assert_eq!(*seen.lock().unwrap(), [3, 2, 1]);
    }

    #[test]
    fn kept_work_is_not_undone() {
        let seen = Mutex::new(0);
        let mut undo = Undo::default();
        undo.after("step", || {
            *seen.lock().unwrap() += 1;
            Ok(())
        });
        undo.keep();
        assert_eq!(*seen.lock().unwrap(), 0);
    }
}
