//! One bound for a whole pull or push.
//!
//! Invariant: work of many requests ends, however many there are and whatever hosts do: time without
//! progress, tries and pauses are counted over all of them. What has come pays for itself, so that a
//! slow pull of any size that goes on is not ended by what it met on its way.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use types::{Error, Result};

/// Tries besides the first of each request, of all requests together.
const AGAIN: u32 = 64;
/// Time in which something of it pauses before a try.
const PAUSES: Duration = Duration::from_secs(600);
/// What so many bytes, or one whole blob, have paid for: what one request may take. Small enough for a line that
/// breaks every half minute at a few KB/s.
const STEP: u64 = 64 << 10;
/// Tries of them.
const PAID: u32 = 4;
/// Pauses of them.
const PAID_PAUSES: Duration = Duration::from_secs(45);
/// Characters that are kept of what somebody waits for.
const LENGTH: usize = 320;

/// Limits for work of many requests: so long without any progress, so long altogether, so many tries
/// and so long in pauses between them. Clones share it. Every byte that arrives or is sent renews the
/// first and pays for some of the last two, nothing renews the second.
#[derive(Clone)]
pub struct Budget {
    clock: Arc<Clock>,
    /// Told of each pause, in one line.
    told: Option<Arc<Listener>>,
}

type Listener = dyn Fn(&str) + Send + Sync;

#[derive(Debug)]
struct Clock {
    idle: Duration,
    total: Option<Duration>,
    began: Instant,
    again: u32,
    pauses: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When there was some.
    progress: Instant,
    /// Tries that nothing has paid for.
    again: u32,
    /// Pauses that nothing has paid for and that are over.
    paused: Duration,
    /// Pauses at this moment, and since when there are any.
    open: Option<(u32, Instant)>,
    /// Bytes that have paid for nothing yet.
    bytes: u64,
    /// Why there was a pause since there was progress.
    why: Option<String>,
}

impl State {
    fn new(progress: Instant) -> Self {
        Self {
            progress,
            again: 0,
            paused: Duration::ZERO,
            open: None,
            bytes: 0,
            why: None,
        }
    }

    /// All of the pauses until now.
    fn paused(&mut self) -> Duration {
        self.fold();
        self.paused
    }

    /// Counts pauses that go on until now.
    fn fold(&mut self) {
        if let Some((_, since)) = &mut self.open {
            let now = Instant::now();
            self.paused += now - *since;
            *since = now;
        }
    }

    /// So many steps pay for what was taken until now, of pauses that go on as well: with many layers there may
    /// be no moment without any.
    fn pay(&mut self, steps: u32) {
        self.fold();
        self.again = self.again.saturating_sub(PAID.saturating_mul(steps));
        let pauses = PAID_PAUSES.saturating_mul(steps);
        self.paused = self.paused.saturating_sub(pauses);
    }
}

/// A pause before another try; over when dropped.
#[derive(Debug)]
pub(crate) struct Pausing(Budget);

impl Drop for Pausing {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.fold();
        state.open = match state.open {
            Some((open, since)) if open > 1 => Some((open - 1, since)),
            _ => None,
        };
    }
}

impl Budget {
    /// Begins now. Without `total` work may go on as long as there is progress.
    #[must_use]
    pub fn new(idle: Duration, total: Option<Duration>) -> Self {
        let began = Instant::now();
        let clock = Clock {
            idle,
            total,
            began,
            again: AGAIN,
            pauses: PAUSES,
            state: Mutex::new(State::new(began)),
        };
        Self {
            clock: Arc::new(clock),
            told: None,
        }
    }

    /// One that begins now and has so many tries that nothing pays for, and so long in pauses.
    #[must_use]
    pub fn with_tries(self, again: u32, pauses: Duration) -> Self {
        let began = Instant::now();
        let clock = Clock {
            began,
            again,
            pauses,
            state: Mutex::new(State::new(began)),
            ..*self.clock
        };
        Self {
            clock: Arc::new(clock),
            ..self
        }
    }

    /// The same, and each pause of who has this clone is told: how long, and for whom, in one line.
    #[must_use]
    pub fn telling(self, told: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            told: Some(Arc::new(told)),
            ..self
        }
    }

    /// Tells of progress.
    pub fn progress(&self) {
        let mut state = self.state();
        state.progress = Instant::now();
    }

    /// Tells of bytes that nobody will ask for again.
    pub(crate) fn gained(&self, bytes: u64) {
        let mut state = self.state();
        state.progress = Instant::now();
        state.why = None;
        state.bytes += bytes;
        let steps = state.bytes / STEP;
        state.bytes %= STEP;
        state.pay(u32::try_from(steps).unwrap_or(u32::MAX));
    }

    /// Tells that a blob or a document is there as a whole.
    pub fn done(&self) {
        let mut state = self.state();
        state.progress = Instant::now();
        state.why = None;
        state.pay(1);
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

    /// A pause of this length before another try, which is needed because of `error`.
    ///
    /// # Errors
    /// Why there may be none: the words for the error that ends it all.
    pub(crate) fn again(&self, pause: Duration, error: &Error) -> Result<Pausing, String> {
        let (clock, mut state) = (&self.clock, self.state());
        if state.again >= clock.again {
            let all = clock.again;
            return Err(format!("tried again {all} times in all, for too little"));
        }
        if state.paused() + pause > clock.pauses {
            let all = clock.pauses.as_secs();
            return Err(format!("paused for {all} s in all, for too little"));
        }
        state.again += 1;
        let (open, since) = state.open.unwrap_or((0, Instant::now()));
        state.open = Some((open + 1, since));
        let why: String = error.to_string().chars().take(LENGTH).collect();
        let (again, all) = (state.again, clock.again);
        state.why = Some(why.clone());
        drop(state);
        if let Some(told) = &self.told {
            let pause = pause.as_secs_f64();
            told(&format!(
                "waiting {pause:.1} s, try {again} of {all}: {why}"
            ));
        }
        Ok(Pausing(self.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.clock
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// When it ends if there is no more progress.
    fn end(&self) -> Instant {
        let idle = self.state().progress + self.clock.idle;
        match self.clock.total {
            Some(total) => idle.min(self.clock.began + total),
            None => idle,
        }
    }

    fn spent(&self) -> Error {
        let clock = &self.clock;
        let why = self.state().why.clone();
        let why = why.map_or_else(String::new, |why| format!(", after: {why}"));
        if clock
            .total
            .is_some_and(|total| clock.began.elapsed() >= total)
        {
            return Error::deadline_exceeded(format_args!(
                "not done within {:?}{why}",
                clock.total.unwrap_or_default()
            ));
        }
        Error::deadline_exceeded(format_args!("no progress within {:?}{why}", clock.idle))
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Budget").field(&self.clock).finish()
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

    #[tokio::test(start_paused = true)]
    async fn tries_of_all_requests_are_counted_until_what_comes_pays_for_them() {
        let budget = Budget::new(SECOND, None).with_tries(5, 60 * SECOND);
        let error = Error::unavailable("503");
        let again = || budget.again(Duration::ZERO, &error).map(drop);
        for _ in 0..5 {
            again().unwrap();
        }
        assert!(again().unwrap_err().contains("5 times in all"));
        // Progress as such is none that counts, nor are a few bytes.
        budget.progress();
        budget.gained(STEP - 1);
        again().unwrap_err();
        budget.gained(1);
        for _ in 0..PAID {
            again().unwrap();
        }
        again().unwrap_err();
        budget.done();
        again().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_at_the_same_time_count_once_and_end_it_before_they_begin() {
        let budget = Budget::new(SECOND, None).with_tries(100, 10 * SECOND);
        let error = Error::unavailable("503");
        let pause = |seconds| budget.again(seconds * SECOND, &error);
        let (one, other) = (pause(4).unwrap(), pause(4).unwrap());
        tokio::time::sleep(4 * SECOND).await;
        drop((one, other));
        tokio::time::sleep(60 * SECOND).await;
        assert!(pause(7).unwrap_err().contains("10 s in all"));
        let last = pause(6).unwrap();
        tokio::time::sleep(6 * SECOND).await;
        // Also while it is not over.
        pause(1).unwrap_err();
        drop(last);
        pause(1).unwrap_err();
        budget.done();
        drop(pause(10).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_during_a_pause_pays_for_it_too() {
        let budget = Budget::new(SECOND, None).with_tries(100, 60 * SECOND);
        let error = Error::unavailable("429");
        // There is always somebody who pauses, while others bring more than enough.
        let mut last = budget.again(30 * SECOND, &error).unwrap();
        for _ in 0..40 {
            tokio::time::sleep(20 * SECOND).await;
            budget.gained(STEP);
            last = budget.again(30 * SECOND, &error).unwrap();
        }
        tokio::time::sleep(60 * SECOND).await;
        budget.again(SECOND, &error).unwrap_err();
        drop(last);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_told_at_once_and_at_the_end() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let budget = Budget::new(SECOND, None);
        let budget = budget.telling(move |text| tell.lock().unwrap().push(text.to_owned()));
        let error = Error::unavailable("503").ctx("https://r.test/v2".to_owned());
        drop(budget.again(2 * SECOND, &error).unwrap());
        let told = told.lock().unwrap().clone();
        let [line] = &told[..] else {
            panic!("one line")
        };
        for part in ["waiting 2.0 s", "try 1 of 64", "https://r.test/v2: 503"] {
            assert!(line.contains(part), "{line}");
        }
        let never = std::future::pending::<Result<()>>;
        let end = budget.spend(never()).await.unwrap_err().to_string();
        assert!(
            end.contains("no progress within 1s, after: https://r.test/v2: 503"),
            "{end}"
        );
        budget.gained(1);
        let end = budget.spend(never()).await.unwrap_err().to_string();
        assert!(!end.contains("503"), "{end}");
    }
}
