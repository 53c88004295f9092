//! Events over the deaths of daemons and connections.
//!
//! Invariant: nothing is left out in silence. Between two events that follow each other there was no
//! other that passes the filter, unless a [`Heard::Gap`] stands between them.
//!
//! ```text
//! subscribe --> stream --lost--> resume after the position --> stream
//!                                   `--OutOfRange: Gap--> resume from the oldest that is held
//! ```

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
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
    /// The attempt under way. It outlives the call that began it: a daemon may count a subscriber
    /// long before it answers, and what it has queued since must not go with a cancelled call.
    opening: Option<Opening>,
}

/// An attempt to subscribe.
struct Opening(Pin<Box<dyn Future<Output = Opened> + Send>>);

type Opened = std::result::Result<Subscription, Status>;

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opening")
    }
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
            opening: None,
        }
    }
}

impl Follow {
    /// The next event, or that some may be missed. Cancel safe: an attempt to subscribe that is
    /// under way goes on with the next call.
    ///
    /// # Errors
    /// Of the first subscription; later of the last attempt when the daemon did not come back in
    /// time, or refuses for good.
    pub async fn next(&mut self) -> Result<Heard> {
        loop {
            match &mut self.state {
                State::New => {
                    let made = self.opened("").await;
                    let made = made.map_err(|s| grpc::status::to_error(&s))?;
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
        match self.opened(asked).await {
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
                self.opening = Some(self.open(asked, PAUSE));
                Ok(None)
            }
        }
    }

    /// The end of the attempt under way, or of a new one.
    async fn opened(&mut self, after: &str) -> Opened {
        let opening = match self.opening.take() {
            Some(opening) => opening,
            None => self.open(after, Duration::ZERO),
        };
        let opening = self.opening.insert(opening);
        let opened = opening.0.as_mut().await;
        self.opening = None;
        opened
    }

    /// An attempt to subscribe, after a pause.
    fn open(&self, after: &str, pause: Duration) -> Opening {
        let (events, filter, after) = (self.events.clone(), self.filter.clone(), after.to_owned());
        Opening(Box::pin(async move {
            tokio::time::sleep(pause).await;
            events.open(&filter, &after).await
        }))
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
