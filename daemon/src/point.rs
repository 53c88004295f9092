//! Extension points: the plugins of one kind, ready or with the reason why not.
//!
//! Invariant: a plugin that cannot work is a row with an error, not the end of the daemon, unless
//! the configuration requires it. What introspection lists are the rows of the points.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use types::{Code, Error, Filterable, Platform, Result};

use crate::config::Config;

/// What a plugin tells about itself beside what it does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Platforms that it works for.
    pub(crate) platforms: Vec<Platform>,
    /// Values for clients, such as `root`.
    pub(crate) exports: BTreeMap<String, String>,
    /// What it can do beyond its contract.
    pub(crate) capabilities: Vec<String>,
}

impl Facts {
    /// The facts of a plugin that works for this host.
    pub(crate) fn of_host() -> Self {
        Self {
            platforms: vec![Platform::host()],
            ..Self::default()
        }
    }

    /// The same with one more capability, if `has`.
    pub(crate) fn capability(mut self, name: &str, has: bool) -> Self {
        self.capabilities.extend(has.then(|| name.to_owned()));
        self
    }

    /// The same with one more export.
    pub(crate) fn export(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.exports.insert(name.to_owned(), value.to_string());
        self
    }
}

/// One line of `ctr plugins ls`.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// containerd's name of the kind, `io.containerd.snapshotter.v1`.
    pub(crate) kind: &'static str,
    /// Id within the kind.
    pub(crate) id: String,
    /// Kinds that it needs.
    pub(crate) requires: &'static [&'static str],
    /// What it tells of itself.
    pub(crate) facts: Facts,
    /// Why it does not work: class, text. `NotImplemented` means that it was skipped.
    pub(crate) failure: Option<(Code, String)>,
}

impl Row {
    /// A row of something that works.
    pub(crate) fn ready(kind: &'static str, id: &str, requires: &'static [&'static str]) -> Self {
        let id = id.to_owned();
        Self {
            kind,
            id,
            requires,
            facts: Facts::default(),
            failure: None,
        }
    }

    /// Its full name, as the configuration writes it.
    pub(crate) fn uri(&self) -> String {
        format!("{}.{}", self.kind, self.id)
    }

    /// The same with facts.
    pub(crate) fn with(self, facts: Facts) -> Self {
        Self { facts, ..self }
    }
}

impl Filterable for Row {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["type"] => Some(self.kind.to_owned()),
            ["id"] => Some(self.id.clone()),
            _ => None,
        }
    }
}

/// A plugin that may come to be.
pub(crate) struct Candidate<'a, T: ?Sized> {
    /// Id within the kind.
    pub(crate) id: &'a str,
    /// Kinds that it needs, for the row.
    pub(crate) requires: &'static [&'static str],
    /// Makes it, beside the others. `NotImplemented` means that it cannot work on this host: skipped, not
    /// failed.
    pub(crate) build: Box<dyn FnOnce() -> Made<T> + Send + 'a>,
}

/// What becomes of a candidate.
type Made<T> = Result<(Arc<T>, Facts)>;

/// The plugins of one kind.
pub(crate) struct Point<T: ?Sized> {
    plugins: BTreeMap<String, Arc<T>>,
    rows: Vec<Row>,
}

impl<T: ?Sized + Send + Sync> Point<T> {
    /// Builds the candidates that are not disabled, side by side: what they wait for is the kernel.
    ///
    /// # Errors
    /// That of a required plugin which does not work; `InvalidArgument` for two of one id.
    pub(crate) fn build(
        kind: &'static str,
        config: &Config,
        candidates: Vec<Candidate<'_, T>>,
    ) -> Result<Self> {
        let mut wanted: Vec<(Row, _)> = Vec::new();
        for candidate in candidates {
            let row = Row::ready(kind, candidate.id, candidate.requires);
            let uri = row.uri();
            if !config.enabled(&uri) {
                tracing::debug!(plugin = uri, "plugin disabled");
                continue;
            }
            if wanted.iter().any(|(known, _)| known.id == row.id) {
                return Err(Error::invalid_argument(format_args!(
                    "plugin {uri} is there twice: give the proxy plugin another name"
                )));
            }
            wanted.push((row, candidate.build));
        }
        let mut made = Self {
            plugins: BTreeMap::new(),
            rows: Vec::new(),
        };
        let (rows, builds): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        for (mut row, built) in rows.into_iter().zip(side_by_side(builds)) {
            let uri = row.uri();
            match built {
                Ok((plugin, facts)) => {
                    row.facts = facts;
                    made.plugins.insert(row.id.clone(), plugin);
                }
                Err(error) if config.required(&uri) => {
                    return Err(error.ctx(format!("required plugin {uri}")));
                }
                Err(error) => row.failure = Some(failure(&uri, &error)),
            }
            made.rows.push(row);
        }
        Ok(made)
    }

    /// The plugins that work.
    pub(crate) fn ready(&self) -> &BTreeMap<String, Arc<T>> {
        &self.plugins
    }

    /// A row for each candidate.
    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// What they return, in their order. The first runs here, and those for which there is no thread.
fn side_by_side<R: Send, W: FnOnce() -> R + Send>(work: Vec<W>) -> Vec<R> {
    let runtime = tokio::runtime::Handle::try_current().ok();
    let slots: Vec<_> = work
        .into_iter()
        .map(|work| Mutex::new(Some(work)))
        .collect();
    let run = |slot: &Mutex<Option<W>>| {
        let work = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        work.map(|work| work())
    };
    std::thread::scope(|scope| {
        let (runtime, run) = (runtime.as_ref(), &run);
        let spawn = |slot| {
            let inside = move || {
                let _entered = runtime.map(tokio::runtime::Handle::enter);
                run(slot)
            };
            std::thread::Builder::new().spawn_scoped(scope, inside)
        };
        let threads: Vec<_> = slots.iter().skip(1).map(spawn).collect();
        let mut done: Vec<_> = slots.first().map(run).into_iter().collect();
        for (slot, thread) in slots.iter().skip(1).zip(threads) {
            done.push(match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(ended) => ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => run(slot),
            });
        }
        done.into_iter().flatten().collect()
    })
}

/// Logs a failure and puts it in the words of the wire.
fn failure(uri: &str, error: &Error) -> (Code, String) {
    if error.is(Code::NotImplemented) {
        tracing::info!(plugin = uri, %error, "plugin skipped");
        return (Code::NotImplemented, format!("{error}: skip plugin"));
    }
    tracing::warn!(plugin = uri, %error, "plugin failed");
    (error.code(), error.to_string())
}

impl<T: ?Sized> fmt::Debug for Point<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.plugins.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: &str = "io.containerd.test.v1";

    fn candidates() -> Vec<Candidate<'static, str>> {
        let candidate = |id, build: fn() -> Result<(Arc<str>, Facts)>| Candidate {
            id,
            requires: &[],
            build: Box::new(build),
        };
        vec![
            candidate("good", || {
                Ok(("plugin".into(), Facts::of_host().export("root", "/x")))
            }),
            candidate("skipped", || {
                Err(Error::not_implemented("no such file system"))
            }),
            candidate("broken", || Err(Error::unknown("boom"))),
        ]
    }

    fn config(disabled: &[&str], required: &[&str]) -> Config {
        let uris = |ids: &[&str]| ids.iter().map(|id| format!("{KIND}.{id}")).collect();
        Config {
            disabled_plugins: uris(disabled),
            required_plugins: uris(required),
            ..Config::default()
        }
    }

    #[test]
    fn what_does_not_work_is_a_row_with_the_reason() {
        let point = Point::build(KIND, &config(&[], &["good"]), candidates()).unwrap();
        assert_eq!(point.ready().keys().collect::<Vec<_>>(), ["good"]);
        let rows: Vec<_> = point
            .rows()
            .iter()
            .map(|row| (row.id.as_str(), row.failure.clone()))
            .collect();
        assert_eq!(
            rows,
            [
                ("good", None),
                (
                    "skipped",
                    Some((
                        Code::NotImplemented,
                        "no such file system: not implemented: skip plugin".into()
                    ))
                ),
                ("broken", Some((Code::Unknown, "boom".into()))),
            ]
        );
        assert_eq!(point.rows()[0].facts.exports["root"], "/x");
    }

    #[test]
    fn plugins_are_made_side_by_side_and_listed_in_order() {
        let meeting = std::sync::Barrier::new(3);
        let all = ["first", "second", "third"];
        let candidates = all.map(|id| Candidate {
            id,
            requires: &[],
            build: Box::new(|| {
                // One after the other they would wait here for ever.
                meeting.wait();
                Ok((Arc::<str>::from("plugin"), Facts::default()))
            }),
        });
        let point = Point::build(KIND, &config(&[], &[]), candidates.into()).unwrap();
        let rows = point.rows().iter().map(|row| row.id.as_str());
        assert!(rows.eq(all));
    }

    #[test]
    fn a_disabled_plugin_is_not_even_a_row() {
        let point = Point::build(KIND, &config(&["broken", "skipped"], &[]), candidates()).unwrap();
        assert_eq!(point.rows().len(), 1);
    }

    #[test]
    fn a_required_plugin_that_fails_is_an_error() {
        let error = Point::build(KIND, &config(&[], &["broken"]), candidates()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "required plugin io.containerd.test.v1.broken: boom"
        );
    }
}
