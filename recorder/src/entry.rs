//! One flight in memory: whom it is for, and its stages with their times.
//!
//! Invariant: an entry has [`MAX_STAGES`] stages at most. Of the finished ones the shortest make room:
//! what is left is what took long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::Origin;

/// Stages kept of one flight.
pub const MAX_STAGES: usize = 32;
/// Bytes kept of a text: a name, what is waited for, an error.
pub const MAX_TEXT: usize = 256;

/// What a stage waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum On {
    /// The stage's name says it.
    #[default]
    Nothing,
    /// A process, and what that one waits for.
    Process(u32),
    /// This, by name: a host, a path, a lock.
    Named(Box<str>),
}

impl On {
    /// Something by name; a long name is cut.
    pub fn named(name: impl Into<String>) -> Self {
        Self::Named(cut(name.into()).into_boxed_str())
    }
}

/// A text of at most [`MAX_TEXT`] bytes.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[derive(Debug)]
struct Record {
    name: &'static str,
    on: On,
    from: Duration,
    took: Option<Duration>,
}

#[derive(Debug, Default)]
struct State {
    subject: Option<(Box<str>, Box<str>)>,
    stages: Vec<Record>,
    /// Stages that were left out.
    more: u32,
    ended: Option<(Duration, Option<Box<str>>)>,
}

/// One flight.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) began: Instant,
    at: SystemTime,
    origin: Option<Origin>,
    state: Mutex<State>,
}

impl Entry {
    pub(crate) fn new(name: &'static str, began: Instant, origin: Option<Origin>) -> Self {
        let at = SystemTime::now();
        Self {
            name,
            began,
            at: at.checked_sub(began.elapsed()).unwrap_or(at),
            origin,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn subject(&self, namespace: &str, id: &str) {
        let text = |text: &str| cut(text.to_owned()).into_boxed_str();
        let mut state = self.state();
        if state.subject.is_none() {
            state.subject = Some((text(namespace), text(id)));
        }
    }

    /// Ends it; how long it took, and whether it is worth keeping for its subject or its failure.
    pub(crate) fn end(&self, error: Option<String>) -> Landed {
        let took = self.began.elapsed();
        let mut state = self.state();
        state.stages.shrink_to_fit();
        let landed = Landed {
            took,
            named: state.subject.is_some(),
            failed: error.is_some(),
        };
        state.ended = Some((took, error.map(|error| cut(error).into_boxed_str())));
        landed
    }

    pub(crate) fn told(&self) -> Told {
        let state = self.state();
        let (namespace, subject) = state.subject.clone().unzip();
        let (took, error) = match &state.ended {
            Some((took, error)) => (*took, error.as_deref().map(str::to_owned)),
            None => (self.began.elapsed(), None),
        };
        let stages = state.stages.iter().map(|record| ToldStage {
            name: record.name,
            on: record.on.clone(),
            from: record.from,
            took: record.took,
        });
        Told {
            name: self.name,
            namespace: namespace.unwrap_or_default().into(),
            subject: subject.unwrap_or_default().into(),
            at: self.at,
            origin: self.origin,
            took,
            over: state.ended.is_some(),
            error,
            stages: stages.collect(),
            more: state.more,
        }
    }
}

/// How a flight ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Landed {
    pub(crate) took: Duration,
    pub(crate) named: bool,
    pub(crate) failed: bool,
}

/// A stage that goes on until this is dropped. The default one is nobody's.
#[derive(Debug, Default)]
pub struct Stage(Option<(Arc<Entry>, usize)>);

impl Stage {
    pub(crate) fn begin(entry: &Arc<Entry>, name: &'static str, on: On) -> Self {
        let record = Record {
            name,
            on,
            from: entry.began.elapsed(),
            took: None,
        };
        let mut state = entry.state();
        let at = if state.stages.len() < MAX_STAGES {
            state.stages.push(record);
            Some(state.stages.len() - 1)
        } else {
            state.more = state.more.saturating_add(1);
            let over = state.stages.iter().enumerate();
            let over = over.filter_map(|(at, stage)| Some((stage.took?, at)));
            let at = over.min().map(|(_, at)| at);
            if let Some(at) = at {
                state.stages[at] = record;
            }
            at
        };
        drop(state);
        Self(at.map(|at| (Arc::clone(entry), at)))
    }

    /// Says, later than at its beginning, what the stage waits for.
    pub fn on(&self, on: On) {
        if let Some((entry, at)) = &self.0
            && let Some(record) = entry.state().stages.get_mut(*at)
        {
            record.on = on;
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((entry, at)) = self.0.take() {
            let now = entry.began.elapsed();
            if let Some(record) = entry.state().stages.get_mut(at) {
                record.took = Some(now.saturating_sub(record.from));
            }
        }
    }
}

/// A flight as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What it is: the path of a method, or a name of the daemon's own work.
    pub name: &'static str,
    /// Namespace of its subject, empty for none.
    pub namespace: String,
    /// Whom it is for: a container, an image. Empty for none.
    pub subject: String,
    /// When it began.
    pub at: SystemTime,
    /// The trace that it is part of.
    pub origin: Option<Origin>,
    /// How long it took, or has taken so far.
    pub took: Duration,
    /// It is over.
    pub over: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// What it waited for, in the order of beginning as long as there was room.
    pub stages: Vec<ToldStage>,
    /// Stages that were left out.
    pub more: u32,
}

impl Told {
    /// What it takes of memory, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let stages = self.stages.iter().map(|stage| match &stage.on {
            On::Named(name) => size_of::<ToldStage>() + name.len(),
            _ => size_of::<ToldStage>(),
        });
        let texts = [
            self.namespace.len(),
            self.subject.len(),
            self.error.as_ref().map_or(0, String::len),
        ];
        size_of::<Self>() + texts.iter().sum::<usize>() + stages.sum::<usize>()
    }
}

/// A stage as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldStage {
    /// What was done.
    pub name: &'static str,
    /// What was waited for.
    pub on: On,
    /// When it began, after the flight did.
    pub from: Duration,
    /// How long it took; `None`: it goes on.
    pub took: Option<Duration>,
}
