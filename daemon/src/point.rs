//! Extension points: the plugins of one kind, ready or with the reason why not.
//!
//! Invariant: a plugin that cannot work is a row with an error, not the end of the daemon, unless
//! the configuration requires it. What introspection lists are the rows of the points.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

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
    /// Makes it. `NotImplemented` means that it cannot work on this host: skipped, not failed.
    pub(crate) build: Box<dyn FnOnce() -> Result<(Arc<T>, Facts)> + 'a>,
}

/// The plugins of one kind.
pub(crate) struct Point<T: ?Sized> {
    plugins: BTreeMap<String, Arc<T>>,
    rows: Vec<Row>,
}

impl<T: ?Sized> Point<T> {
    /// Builds the candidates that are not disabled.
    ///
    /// # Errors
    /// That of a required plugin which does not work; `InvalidArgument` for two of one id.
    pub(crate) fn build(
        kind: &'static str,
        config: &Config,
        candidates: Vec<Candidate<'_, T>>,
    ) -> Result<Self> {
        let mut made = Self {
            plugins: BTreeMap::new(),
            rows: Vec::new(),
        };
        for candidate in candidates {
            let uri = format!("{kind}.{}", candidate.id);
            if !config.enabled(&uri) {
                tracing::debug!(plugin = uri, "plugin disabled");
                continue;
            }
            if made.rows.iter().any(|row| row.id == candidate.id) {
                return Err(Error::invalid_argument(format_args!(
                    "plugin {uri} is there twice: give the proxy plugin another name"
                )));
            }
            let mut row = Row::ready(kind, candidate.id, candidate.requires);
            match (candidate.build)() {
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
