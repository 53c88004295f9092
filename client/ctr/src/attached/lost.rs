//! A daemon that goes away in the middle of what was asked of it, and comes back.
//!
//! Invariant: what nobody knows the end of is taken to have happened; it has not when the daemon that came
//! back says so.

use std::time::{Duration, Instant};

use client::{Exited, Status};
use tokio::task::JoinHandle;
use types::{Code, Error, Result};

use super::{Failure, Io, Signals, Target};

/// Longest absence of the daemon while a process is waited for, and how often it is asked for.
const ABSENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);

/// True when it is the daemon that is gone, not the process.
pub(super) fn is_lost(error: &Error) -> bool {
    let transport = error.is(Code::Unknown) && error.to_string().contains("transport error");
    transport || error.is(Code::Unavailable) || error.is(Code::Cancelled)
}

impl Target {
    /// Asks now for how it ends; the answer comes when it has. A daemon that goes away meanwhile is
    /// asked again when it is back: the process does not go with it.
    pub(crate) fn wait(&self) -> JoinHandle<Result<Exited>> {
        let target = self.clone();
        tokio::spawn(async move {
            let mut absent_since = None;
            loop {
                let asked = Instant::now();
                let answer = target.tasks.wait(&target.id, target.exec.as_ref()).await;
                if !answer.as_ref().is_err_and(is_lost) {
                    return answer;
                }
                // A call that was lost after a while was heard before: a new absence begins.
                if asked.elapsed() > RETRY {
                    absent_since = None;
                }
                if absent_since.get_or_insert_with(Instant::now).elapsed() > ABSENCE {
                    return answer;
                }
                tokio::time::sleep(RETRY).await;
            }
        })
    }

    /// Its creation failed. When the daemon went away over it, the pipes go all the same once it is back and
    /// says that there is no such task: whoever removes tasks would never hear of them.
    pub(crate) async fn uncreated(
        &self,
        io: Io,
        failure: Failure,
        signals: &mut Signals,
    ) -> Failure {
        if !is_lost(&failure.error) || signals.were_heeded() {
            return io.unstarted(failure);
        }
        match signals.unless_interrupted(self.was_never_made()).await {
            // Dropped, and the pipes with it.
            Ok(true) => failure,
            Ok(false) | Err(_) => io.unstarted(failure),
        }
    }

    /// Whether there is no such task, as soon as the daemon can tell. One that it does not know yet what has
    /// become of is no answer.
    async fn was_never_made(&self) -> Result<bool> {
        let begin = Instant::now();
        let mut has_ended = false;
        loop {
            match self.tasks.get(&self.id, None).await {
                Err(error) if error.is_not_found() => return Ok(true),
                Ok(task) if task.status == Status::Unknown => {}
                // One that is given up is told to have ended to who asks in this moment, and gone then.
                Ok(task) if task.status == Status::Stopped && !has_ended => has_ended = true,
                Ok(_) => return Ok(false),
                Err(error) if !is_lost(&error) => return Err(error),
                Err(_) => {}
            }
            if begin.elapsed() > ABSENCE {
                return Ok(false);
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}
