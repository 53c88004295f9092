//! `inflight` and `why`: what the daemon is doing, what it waits for, and what took long.

use std::fmt::Write as _;
use std::time::Duration;

use client::{Flight, FlightStage, FlightsOpts, Flown};
use types::Result;

use crate::context::Context;
use crate::out::{self, Pad, Table, plain};
use crate::text;

/// Exit code of `why` when nothing is known of the subject.
const UNKNOWN: u8 = 1;
/// Operations that are over and told of by `why`, unless all are wanted.
const LAST: usize = 10;

/// Arguments of `inflight`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also calls whose business is to wait: for the end of a process, for events.
    #[arg(short, long)]
    all: bool,
}

/// Arguments of `why`.
#[derive(Debug, clap::Args)]
pub(crate) struct Why {
    /// Container or image.
    subject: String,
    /// Everything that is known, and not only the last operations.
    #[arg(short, long)]
    all: bool,
}

/// Lists what goes on in all namespaces.
pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let opts = FlightsOpts {
        standing: args.all,
        ..FlightsOpts::default()
    };
    let told = ctx.client().await?.flights().list(opts).await?;
    table(&told.flights).print()?;
    note_unseen(&told);
    Ok(0)
}

/// Tells of one container or image.
pub(crate) async fn why(ctx: &Context, args: Why) -> Result<u8> {
    let opts = FlightsOpts {
        subject: args.subject.clone(),
        namespace: ctx.namespace.to_string(),
        finished: true,
        standing: args.all,
    };
    let told = ctx.client().await?.flights().list(opts).await?;
    note_unseen(&told);
    if told.flights.is_empty() {
        out::note(format_args!(
            "nothing is in flight for {:?}, and nothing that is over is remembered",
            args.subject
        ));
        return Ok(UNKNOWN);
    }
    let most = if args.all { usize::MAX } else { LAST };
    out::text(&story(&told.flights, most))?;
    Ok(0)
}

fn note_unseen(told: &Flown) {
    if told.unseen > 0 {
        out::note(format_args!(
            "{} calls were not recorded: too many at a time",
            told.unseen
        ));
    }
}

/// `Tasks.Create` of a method's path.
fn short(name: &str) -> String {
    match name.rsplit_once('/') {
        Some((service, method)) => {
            let service = service.rsplit(['.', '/']).next().unwrap_or_default();
            format!("{service}.{method}")
        }
        None => name.to_owned(),
    }
}

fn table(flights: &[Flight]) -> Table {
    let mut table = Table::new(Pad::WIDE);
    table.row(["NAMESPACE", "SUBJECT", "OPERATION", "SINCE", "WAITS FOR"]);
    for flight in flights {
        let waits: Vec<_> = open(flight).map(waits_for).collect();
        let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
        table.row([
            or_dash(&flight.namespace),
            or_dash(&flight.subject),
            short(&flight.name),
            time(flight.took),
            or_dash(&waits.join("; ")),
        ]);
    }
    table
}

fn open(flight: &Flight) -> impl Iterator<Item = &FlightStage> {
    flight.stages.iter().filter(|stage| !stage.over)
}

/// A stage that goes on, in one line: with the last of the processes that are looked at, which is the
/// one that the others wait for.
fn waits_for(stage: &FlightStage) -> String {
    let mut text = stage.name.clone();
    if !stage.on.is_empty() {
        text = format!("{text}: {}", stage.on);
    }
    if let Some(process) = stage.now.last() {
        text = format!("{text}: {process}");
    }
    text
}

/// What is over, at most the last `most`, and what is not, with all stages.
fn story(flights: &[Flight], most: usize) -> String {
    let over = flights.iter().filter(|flight| flight.over).count();
    let wanted = flights.iter().skip(over.saturating_sub(most));
    let mut told = String::new();
    for flight in wanted {
        let how = match (flight.over, flight.error.as_str()) {
            (false, _) => format!("in flight for {}", time(flight.took)),
            (true, "") => format!("took {}", time(flight.took)),
            (true, error) => format!("failed after {}: {}", time(flight.took), plain(error)),
        };
        let at = text::go_time(flight.at);
        // Writing to a String cannot fail.
        let _infallible = writeln!(told, "{at} {} {how}", plain(&short(&flight.name)));
        for stage in &flight.stages {
            tell(&mut told, stage);
        }
        if flight.more > 0 {
            let _infallible = writeln!(told, "    ({} more)", flight.more);
        }
    }
    told
}

fn tell(told: &mut String, stage: &FlightStage) {
    let on = match stage.on.as_str() {
        "" => String::new(),
        on => format!(": {}", plain(on)),
    };
    let how = if stage.over { "took" } else { "WAITS, for" };
    let (from, took, name) = (time(stage.from), time(stage.took), plain(&stage.name));
    let _infallible = writeln!(told, "    +{from:<8} {name}{on} {how} {took}");
    for line in &stage.now {
        let _infallible = writeln!(told, "              {}", plain(line));
    }
}

/// A time for people.
fn time(time: Duration) -> String {
    format!("{time:.1?}")
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn flights() -> Vec<Flight> {
        let stage = |name: &str, on: &str, over| FlightStage {
            name: name.into(),
            on: on.into(),
            from: Duration::from_millis(1),
            took: Duration::from_secs(3),
            over,
            now: match over {
                true => Vec::new(),
                false => vec![
                    "shim (pid 7) sleeps".into(),
                    "runc create (pid 8) sleeps".into(),
                ],
            },
        };
        let flight = |over, error: &str, stages| Flight {
            name: "/containerd.services.tasks.v1.Tasks/Create".into(),
            namespace: "ns".into(),
            subject: "c".into(),
            at: SystemTime::UNIX_EPOCH,
            took: Duration::from_millis(3001),
            over,
            error: error.into(),
            stages,
            more: 0,
        };
        vec![
            flight(true, "", vec![stage("bundle", "", true)]),
            flight(true, "no\n\x1b[2J", Vec::new()),
            flight(
                false,
                "",
                vec![stage("bundle", "", true), stage("Create", "pid 7", false)],
            ),
        ]
    }

    #[test]
    fn a_flight_is_a_line_with_what_it_waits_for() {
        let table = table(&flights()[2..]).render();
        let line = table.lines().nth(1).unwrap();
        let words = [
            "ns",
            "c",
            "Tasks.Create",
            "3.0s",
            "Create: pid 7: runc create (pid 8) sleeps",
        ];
        for word in words {
            assert!(line.contains(word), "{line}");
        }
    }

    #[test]
    fn a_story_has_the_last_that_are_over_and_all_that_are_not() {
        let text = story(&flights(), LAST);
        for part in [
            "Tasks.Create took 3.0s\n",
            "    +1.0ms    bundle took 3.0s\n",
            "failed after 3.0s: no\\u{a}\\u{1b}[2J\n",
            "in flight for 3.0s\n",
            "Create: pid 7 WAITS, for 3.0s\n              shim (pid 7) sleeps\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        let text = story(&flights(), 1);
        assert!(!text.contains("took 3.0s\n    +1.0ms") || text.contains("in flight"));
        assert_eq!(text.matches("Tasks.Create").count(), 2);
    }
}
