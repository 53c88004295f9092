//! Signals that this program gets while it stands for a process.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use types::{Error, Result};

use super::Failure;

/// Signals that are passed on to the process. Those that stop us or say that we did wrong are not.
const FORWARDED: [i32; 11] = [1, 2, 3, 10, 12, 14, 15, 18, 20, 21, 22];
/// Those of them that people and service managers stop programs with.
const ENDING: [i32; 4] = [1, 2, 3, 15];
/// `SIGWINCH`.
pub(super) const WINDOW_CHANGED: i32 = 28;

/// The signals that we got, from the moment that this was made.
#[derive(Debug)]
pub(crate) struct Signals {
    pub(super) arrived: mpsc::UnboundedReceiver<i32>,
    /// One of them has ended a wait.
    heeded: bool,
    _listeners: JoinSet<()>,
}

impl Signals {
    /// Catches signals from now on: none of them ends this program any more.
    pub(crate) fn catch() -> Result<Self> {
        let (sender, arrived) = mpsc::unbounded_channel();
        let mut listeners = JoinSet::new();
        for number in FORWARDED.into_iter().chain([WINDOW_CHANGED]) {
            let mut listener: Signal = signal(SignalKind::from_raw(number))
                .map_err(|e| Error::os(format_args!("catch signal {number}"), e))?;
            let sender = sender.clone();
            listeners.spawn(async move {
                while listener.recv().await.is_some() && sender.send(number).is_ok() {}
            });
        }
        Ok(Self {
            arrived,
            heeded: false,
            _listeners: listeners,
        })
    }

    /// True when one of them has told us to end before a call did.
    pub(super) fn were_heeded(&self) -> bool {
        self.heeded
    }

    /// Before the process runs there is nobody to pass a signal on to: it is meant for us.
    ///
    /// # Errors
    /// `Cancelled` when one came that ends programs.
    pub(crate) fn check(&mut self) -> Result<()> {
        while let Ok(number) = self.arrived.try_recv() {
            if ENDING.contains(&number) {
                return Err(Error::cancelled("interrupted"));
            }
        }
        Ok(())
    }

    /// Waits for a call, which may take as long as it wants, but not for who was told to end.
    ///
    /// # Errors
    /// The call's, or `Cancelled`; then it may be fulfilled all the same.
    pub(crate) async fn unless_interrupted<T>(
        &mut self,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T, Failure> {
        let interrupted = async {
            while let Some(number) = self.arrived.recv().await {
                if ENDING.contains(&number) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            done = call => Ok(done?),
            () = interrupted => {
                self.heeded = true;
                let text = "interrupted; what was asked for may be done all the same";
                Err(Failure::after_start(Error::cancelled(text)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn a_signal_before_the_start_is_for_us() {
        for (numbers, ends) in [
            (&[][..], false),
            (&[WINDOW_CHANGED, 10], false),
            (&[WINDOW_CHANGED, 2], true),
            (&[15], true),
        ] {
            let (sender, arrived) = mpsc::unbounded_channel();
            numbers.iter().for_each(|n| sender.send(*n).unwrap());
            let mut signals = Signals {
                arrived,
                heeded: false,
                _listeners: JoinSet::new(),
            };
            let checked = signals.check();
            assert_eq!(checked.is_err_and(|e| e.is(Code::Cancelled)), ends);
        }
    }

    #[tokio::test]
    async fn a_call_that_lasts_ends_for_us_with_a_signal_that_ends_programs() {
        let (sender, arrived) = mpsc::unbounded_channel();
        let mut signals = Signals {
            arrived,
            heeded: false,
            _listeners: JoinSet::new(),
        };
        for number in [WINDOW_CHANGED, 10] {
            sender.send(number).unwrap();
        }
        let done = signals.unless_interrupted(async {
            tokio::task::yield_now().await;
            Ok(7)
        });
        assert_eq!(done.await.unwrap(), 7);
        assert!(!signals.were_heeded());
        sender.send(2).unwrap();
        let for_ever = std::future::pending::<Result<()>>();
        let failure = signals.unless_interrupted(for_ever).await.unwrap_err();
        // Nobody knows what becomes of it: nothing may be taken away.
        assert!(failure.started && failure.error.is(Code::Cancelled));
        assert!(signals.were_heeded());
    }
}
