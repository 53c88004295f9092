//! What the recorder has, for those who ask, with a look at the processes that are waited for now.
//!
//! Invariant: looking costs the asker, not the flights: what a process does is read when it is asked
//! for, and only of those that somebody waits for at that moment.

use std::fmt::Write as _;
use std::time::Duration;

use protos::MessageField;
use protos::services::flight::{Flight, ListFlightsResponse, Stage};
use protos::wire::Wire as _;
use recorder::{On, Told, ToldStage};
use sys::process::Look;

/// Flights in one answer: the oldest of those in the air, the newest of those that are over.
const MOST: usize = 1000;
/// Bytes of one answer: far less than a message may have.
const BYTES: usize = 2 << 20;
/// Levels of children that are looked at, and lines that are told of them.
const LEVELS: usize = 3;
const LINES: usize = 16;
/// The clock by which processes begin is coarse.
const COARSE: Duration = Duration::from_millis(20);

/// Which flights are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Of this container or image only, unless empty.
    pub(crate) subject: String,
    /// Of this namespace only and of none, unless empty.
    pub(crate) namespace: String,
    /// Also those that are over.
    pub(crate) finished: bool,
    /// Also those whose business is to wait.
    pub(crate) standing: bool,
}

impl Wanted {
    fn has(&self, told: &Told) -> bool {
        let of = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        // Who asks is no news.
        let asks = told.name.ends_with(".Flights/List");
        let here = of(&self.namespace, &told.namespace) || told.namespace.is_empty();
        here && of(&self.subject, &told.subject) && !asks
    }
}

/// The flights that are wanted. Reads `/proc`.
pub(crate) fn tell(wanted: &Wanted) -> ListFlightsResponse {
    let mut flights = Vec::new();
    if wanted.finished {
        flights = recorder::finished(|told| wanted.has(told));
        let over = flights.len().saturating_sub(MOST / 2);
        flights.drain(..over);
    }
    let mut air = recorder::in_flight(wanted.standing, |told| wanted.has(told));
    air.truncate(MOST - flights.len());
    // What goes on now comes first when there is no room for all.
    let mut room = BYTES;
    let mut more = fit(&mut air, &mut room);
    flights.reverse();
    more += fit(&mut flights, &mut room);
    flights.reverse();
    flights.extend(air);
    ListFlightsResponse {
        flights: flights.into_iter().map(flight).collect(),
        unseen: recorder::counts().unseen + more,
        ..Default::default()
    }
}

/// Leaves as many of the first as there is room for; how many that does not hold.
fn fit(flights: &mut Vec<Told>, room: &mut usize) -> u64 {
    let fits = |told: &Told| {
        let left = room.checked_sub(told.size());
        *room = left.unwrap_or(0);
        left.is_some()
    };
    let count = flights.len();
    let kept = flights.iter().map(fits).take_while(|fits| *fits).count();
    flights.truncate(kept);
    (count - kept) as u64
}

fn flight(told: Told) -> Flight {
    let Told { took, .. } = told;
    let stages = told.stages.into_iter().map(|stage| tell_stage(stage, took));
    Flight {
        name: told.name.to_owned(),
        namespace: told.namespace,
        subject: told.subject,
        at: MessageField::some(told.at.to_wire()),
        took_micros: micros(took),
        over: told.over,
        error: told.error.unwrap_or_default(),
        stages: stages.collect(),
        more: told.more,
        ..Default::default()
    }
}

/// The same for people, a line each for flights and their stages.
pub(crate) fn text(told: &ListFlightsResponse) -> String {
    let micros = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or_default());
    let mut text = String::new();
    for flight in &told.flights {
        let (name, took) = (&flight.name, micros(flight.took_micros));
        let (namespace, subject) = (&flight.namespace, &flight.subject);
        let how = match (flight.over, flight.error.as_str()) {
            (false, _) => "in flight for".to_owned(),
            (true, "") => "took".to_owned(),
            (true, error) => format!("failed ({error:?}) after"),
        };
        // Writing to a String cannot fail, here and below.
        let _infallible = writeln!(text, "{name} {namespace:?} {subject:?} {how} {took:.1?}");
        for stage in &flight.stages {
            let (from, took) = (micros(stage.from_micros), micros(stage.took_micros));
            let how = if stage.over { "took" } else { "WAITS, for" };
            let (name, on) = (&stage.name, &stage.on);
            let _infallible = writeln!(text, "    +{from:.1?} {name}: {on:?} {how} {took:.1?}");
            for line in &stage.now {
                let _infallible = writeln!(text, "        {line:?}");
            }
        }
    }
    text
}

/// A stage of a flight that has taken `so_far`.
fn tell_stage(stage: ToldStage, so_far: Duration) -> Stage {
    let took = stage.took.unwrap_or(so_far.saturating_sub(stage.from));
    let (on, now) = match stage.on {
        On::Nothing => (String::new(), Vec::new()),
        On::Named(name) => (name.into(), Vec::new()),
        On::Process(pid) if stage.took.is_none() => look(pid, took),
        On::Process(pid) => (format!("pid {pid}"), Vec::new()),
    };
    Stage {
        name: stage.name.to_owned(),
        on,
        from_micros: micros(stage.from),
        took_micros: micros(took),
        over: stage.took.is_some(),
        now,
        ..Default::default()
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// A process that has been waited for `since` this long ago, and those of its descendants that it
/// started since then: it may be they that it waits for.
fn look(pid: u32, since: Duration) -> (String, Vec<String>) {
    let Some(seen) = sys::process::look(pid) else {
        return (format!("pid {pid}, which is gone"), Vec::new());
    };
    let mut lines = vec![line(&seen)];
    descend(pid, since.saturating_add(COARSE), LEVELS, &mut lines);
    (format!("pid {pid}"), lines)
}

fn descend(pid: u32, since: Duration, levels: usize, lines: &mut Vec<String>) {
    if levels == 0 {
        return;
    }
    for child in sys::process::children(pid).unwrap_or_default() {
        let Some(seen) = sys::process::look(child).filter(|seen| seen.age <= since) else {
            continue;
        };
        if lines.len() >= LINES {
            return;
        }
        lines.push(line(&seen));
        descend(child, since, levels - 1, lines);
    }
}

fn line(seen: &Look) -> String {
    let doing = match seen.state {
        'S' | 'I' => "sleeps",
        'D' => "waits for a device",
        'R' => "runs",
        'T' | 't' => "is stopped",
        'Z' | 'X' => "has ended",
        _ => "is in an unknown state",
    };
    let mut text = format!("{} (pid {}) {doing}", seen.command, seen.pid);
    if !seen.wait.is_empty() {
        text += &format!(" in {}", seen.wait);
    }
    text + &format!(", for {:.1?} now", seen.age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_what_it_does_and_one_that_is_gone_as_such() {
        let me = std::process::id();
        let (on, lines) = look(me, Duration::ZERO);
        assert_eq!(on, format!("pid {me}"));
        let told = format!("(pid {me}) ");
        assert!(
            lines[0].contains(&told) && lines[0].ends_with(" now"),
            "{lines:?}"
        );
        let (on, lines) = look(u32::MAX, Duration::ZERO);
        assert!(on.ends_with("which is gone") && lines.is_empty(), "{on}");
    }

    #[test]
    fn an_answer_has_a_bounded_size() {
        let told = Told {
            name: "/x.Tasks/Create",
            namespace: String::new(),
            subject: "c".repeat(1000),
            at: std::time::SystemTime::now(),
            origin: None,
            took: Duration::ZERO,
            over: true,
            error: None,
            stages: Vec::new(),
            more: 0,
        };
        let mut flights = vec![told.clone(); 10];
        let mut room = 5 * told.size() + 1;
        assert_eq!(fit(&mut flights, &mut room), 5);
        assert_eq!(flights.len(), 5);
        assert_eq!(fit(&mut vec![told], &mut room), 1);
    }

    #[test]
    fn who_wants_one_subject_gets_no_other() {
        let told = Told {
            name: "/x.Tasks/Create",
            namespace: "ns".into(),
            subject: "c".into(),
            at: std::time::SystemTime::now(),
            origin: None,
            took: Duration::from_millis(3),
            over: true,
            error: None,
            stages: vec![ToldStage {
                name: "Create",
                on: On::Process(1),
                from: Duration::from_millis(1),
                took: Some(Duration::from_millis(1)),
            }],
            more: 0,
        };
        let wanted = |subject: &str, namespace: &str| Wanted {
            subject: subject.into(),
            namespace: namespace.into(),
            ..Wanted::default()
        };
        assert!(wanted("", "").has(&told) && wanted("c", "ns").has(&told));
        assert!(!wanted("d", "ns").has(&told) && !wanted("c", "other").has(&told));
        let wire = flight(told);
        let all = ListFlightsResponse {
            flights: vec![wire.clone()],
            ..Default::default()
        };
        let lines =
            "/x.Tasks/Create \"ns\" \"c\" took 3.0ms\n    +1.0ms Create: \"pid 1\" took 1.0ms\n";
        assert_eq!(text(&all), lines);
        assert_eq!((wire.took_micros, wire.stages[0].from_micros), (3000, 1000));
        assert_eq!((&*wire.stages[0].on, wire.stages[0].over), ("pid 1", true));
    }
}
