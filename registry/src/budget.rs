//! One bound for a whole pull or push.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use types::{Error, Result};

/// Time for work of many requests: so long without any progress, and so long altogether. Clones share
/// it. Every byte that arrives or is sent renews the first, nothing renews the second.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Clock>);

#[derive(Debug)]
struct Clock {
    idle: Duration,
    total: Option<Duration>,
    began: Instant,
    progress: Mutex<Instant>,
}

impl Budget {
    /// Begins now. Without `total` work may go on as long as there is progress.
    #[must_use]
    pub fn new(idle: Duration, total: Option<Duration>) -> Self {
        let began = Instant::now();
        Self(Arc::new(Clock {
            idle,
            total,
            began,
            progress: Mutex::new(began),
        }))
    }

    /// Tells of progress.
    pub fn progress(&self) {
        let mut last = self
            .0
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Instant::now();
    }

    /// `work` as long as there is budget for it.
    ///
    /// # Errors
    /// Those of `work`; `DeadlineExceeded` when the budget is spent.
    pub async fn spend<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.bound(pin!(work)).await
    }

    /// The same for work that stays where it is: it may be large.
    async fn bound<T>(&self, mut work: Pin<&mut impl Future<Output = Result<T>>>) -> Result<T> {
        loop {
            let end = self.end();
            match timeout_at(end, &mut work).await {
                Ok(done) => return done,
                // There may have been progress elsewhere.
                Err(_) if self.end() > end => {}
                Err(_) => return Err(self.spent()),
            }
        }
    }

    /// When it ends if there is no more progress.
    fn end(&self) -> Instant {
        let last = *self
            .0
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let idle = last + self.0.idle;
        match self.0.total {
            Some(total) => idle.min(self.0.began + total),
            None => idle,
        }
    }

    fn spent(&self) -> Error {
        let clock = &self.0;
        if clock
            .total
            .is_some_and(|total| clock.began.elapsed() >= total)
        {
            return Error::deadline_exceeded(format_args!(
                "not done within {:?}",
                clock.total.unwrap_or_default()
            ));
        }
        Error::deadline_exceeded(format_args!("no progress within {:?}", clock.idle))
    }
}

/// As [`Budget::spend`], when there is one.
pub(crate) async fn within<T>(
    budget: Option<&Budget>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let work = pin!(work);
    match budget {
        Some(budget) => budget.bound(work).await,
        None => work.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn progress_renews_it_but_not_beyond_the_total() {
        let budget = Budget::new(SECOND, Some(5 * SECOND));
        let never = std::future::pending::<Result<()>>;
        let began = Instant::now();
        let other = budget.clone();
        let feeder = tokio::spawn(async move {
            for _ in 0..2 {
                tokio::time::sleep(SECOND * 3 / 4).await;
                other.progress();
            }
        });
        let error = within(Some(&budget), never()).await.unwrap_err();
        assert!(error.is(Code::DeadlineExceeded), "{error}");
        assert!(
            error.to_string().contains("no progress within 1s"),
            "{error}"
        );
        assert_eq!(began.elapsed(), SECOND * 5 / 2);
        feeder.await.unwrap();
        budget.progress();
        let other = budget.clone();
        let busy = tokio::spawn(async move {
            loop {
                other.progress();
                tokio::time::sleep(SECOND / 2).await;
            }
        });
        let error = within(Some(&budget), never()).await.unwrap_err();
        assert!(error.to_string().contains("not done within 5s"), "{error}");
        assert_eq!(began.elapsed(), 5 * SECOND);
        busy.abort();
        within(None, async { Ok(()) }).await.unwrap();
    }
}
