//! Events over the deaths of daemons and connections.
//!
//! Invariant: nothing is left out in silence. Between two events that follow each other there was no
//! other that passes the filter, unless a [`Heard::Gap`] stands between them.
//!
//! ```text
//! subscribe --> stream --lost--> resume after the position --> stream
//!                                   `--OutOfRange: Gap--> resume from the oldest that is held
//! ```

use std::time::Duration;

use tokio::time::Instant;
use types::{Code, Error, Filter, Result};

use super::events::{Envelope, Events, Subscription, position};

/// Pause between attempts to reach a daemon that is not there. Nothing tells when it comes.
const PAUSE: Duration = Duration::from_millis(100);

/// What a follower hears.
#[derive(Debug)]
pub enum Heard {
    /// An event.
    Event(Envelope),
    /// Events may have been missed here, for the reason that the error gives.
    Gap(Error),
}

/// Events that pass a filter, from one subscription after the other.
#[derive(Debug)]
pub struct Follow {
    events: Events,
    filter: Filter,
    patience: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing was subscribed yet.
    New,
    Live(Box<Subscription>),
    /// Since when there is no stream, and where to go on.
    Lost(Instant, Option<String>),
}

impl Events {
    /// Follows the events that pass the filter, from now on. When the stream breaks, because the
    /// daemon is restarted or because this subscriber was too slow, it is taken up where it was; a
    /// daemon that is gone is waited for as long as `patience`.
    #[must_use]
    pub fn follow(&self, filter: Filter, patience: Duration) -> Follow {
        Follow {
            events: self.clone(),
            filter,
            patience,
            state: State::New,
        }
    }
}

impl Follow {
    /// The next event, or that some may be missed. Cancel safe.
    ///
    /// # Errors
    /// Of the first subscription; later of the last attempt when the daemon did not come back in
    /// time, or refuses for good.
    pub async fn next(&mut self) -> Result<Heard> {
        loop {
            match &mut self.state {
                State::New => {
                    let made = self.events.subscribe(&self.filter).await?;
                    self.state = State::Live(Box::new(made));
                }
                State::Live(subscription) => {
                    match subscription.next().await {
                        Ok(Some(envelope)) => return Ok(Heard::Event(envelope)),
                        Err(error) if is_final(error.code()) => return Err(error),
                        Ok(None) => tracing::debug!("the daemon ended the event stream"),
                        Err(error) => tracing::debug!(%error, "the event stream broke"),
                    }
                    let position = subscription.position().map(str::to_owned);
                    self.state = State::Lost(Instant::now(), position);
                }
                State::Lost(..) => {
                    if let Some(gap) = self.resume().await? {
                        return Ok(Heard::Gap(gap));
                    }
                }
            }
        }
    }

    /// Makes one attempt to go on; the gap if there is one.
    async fn resume(&mut self) -> Result<Option<Error>> {
        let State::Lost(since, after) = &self.state else {
            return Ok(None);
        };
        let (since, after) = (*since, after.clone());
        let asked = after.as_deref().unwrap_or_default();
        match self.events.open(&self.filter, asked).await {
            Ok(subscription) => {
                let is_whole = after.is_some() && subscription.position().is_some();
                self.state = State::Live(Box::new(subscription));
                let gap =
                    || Error::out_of_range("events of the time without a connection are gone");
                Ok((!is_whole).then(gap))
            }
            Err(status) => {
                let error = grpc::status::to_error(&status);
                if error.is(Code::OutOfRange) {
                    self.state = State::Lost(since, position(status.metadata()));
                    return Ok(Some(error));
                }
                if is_final(error.code()) || since.elapsed() > self.patience {
                    return Err(error);
                }
                tokio::time::sleep(PAUSE).await;
                Ok(None)
            }
        }
    }
}

/// True when asking again brings the same answer.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotImplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

#[cfg(test)]
mod tests;
