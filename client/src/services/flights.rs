//! Flights: what the daemon is doing now, and what its last calls took long for.

use std::time::{Duration, SystemTime};

use grpc::flight::FlightsClient;
use protos::services::flight as wire;
use protos::wire::Wire as _;
use types::Result;

use crate::again::Again;
use crate::call::{done, present};

super::service! {
    /// What a daemon is doing.
    Flights, FlightsClient<Again>
}

/// Which flights are wanted.
#[derive(Clone, Debug, Default)]
pub struct FlightsOpts {
    /// Of this container or image only.
    pub subject: String,
    /// Of this namespace only, beside those of none.
    pub namespace: String,
    /// Also those that are over.
    pub finished: bool,
    /// Also those whose business is to wait.
    pub standing: bool,
}

/// What a daemon has been doing.
#[derive(Clone, Debug, Default)]
pub struct Flown {
    /// The oldest first.
    pub flights: Vec<Flight>,
    /// Flights that were not recorded since there were too many.
    pub unseen: u64,
}

/// One call, or other work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flight {
    /// Path of the method, or a name.
    pub name: String,
    /// Namespace, empty for none.
    pub namespace: String,
    /// Container or image, empty for none.
    pub subject: String,
    /// When it began.
    pub at: SystemTime,
    /// How long it took or has taken.
    pub took: Duration,
    /// It is over.
    pub over: bool,
    /// Why it failed, empty if it did not.
    pub error: String,
    /// What it waited for.
    pub stages: Vec<FlightStage>,
    /// Stages that were left out.
    pub more: u32,
}

/// One thing that was waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlightStage {
    /// What.
    pub name: String,
    /// By name: host, path, process.
    pub on: String,
    /// When it began, after the flight did.
    pub from: Duration,
    /// How long it took or has taken.
    pub took: Duration,
    /// It is over.
    pub over: bool,
    /// What the process that is waited for is doing, a line each.
    pub now: Vec<String>,
}

impl Flights {
    /// The flights that are wanted.
    ///
    /// # Errors
    /// Of the call; `NotImplemented` from a daemon that records none.
    pub async fn list(&self, opts: FlightsOpts) -> Result<Flown> {
        let message = wire::ListFlightsRequest {
            subject: opts.subject,
            namespace: opts.namespace,
            finished: opts.finished,
            standing: opts.standing,
            ..Default::default()
        };
        let answer = done(self.stub().list(self.caller.quick(message)?).await)?;
        let flights = answer.flights.into_iter().map(flight);
        Ok(Flown {
            flights: flights.collect::<Result<_>>()?,
            unseen: answer.unseen,
        })
    }
}

fn flight(flight: wire::Flight) -> Result<Flight> {
    Ok(Flight {
        name: flight.name,
        namespace: flight.namespace,
        subject: flight.subject,
        at: SystemTime::from_wire(present(flight.at, "time")?)?,
        took: micros(flight.took_micros),
        over: flight.over,
        error: flight.error,
        stages: flight.stages.into_iter().map(stage).collect(),
        more: flight.more,
    })
}

fn stage(stage: wire::Stage) -> FlightStage {
    FlightStage {
        name: stage.name,
        on: stage.on,
        from: micros(stage.from_micros),
        took: micros(stage.took_micros),
        over: stage.over,
        now: stage.now,
    }
}

fn micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}
