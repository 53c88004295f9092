//! The log on standard error: one line per event, `time=… level=… msg=…` or JSON; or to journald.

mod journal;

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level as Tracing, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};
use types::{Error, Result};

use self::journal::Journal;
use crate::config::{Debug, Format, Level};

/// Libraries whose own events help nobody but their authors.
const LIBRARIES: [&str; 5] = ["h2", "hyper", "tonic", "tower", "hyper_util"];

/// Changes what is logged.
static TARGETS: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging. A second call changes nothing.
pub(crate) fn start(config: &Debug) {
    let (targets, handle) = reload::Layer::new(targets(config.level));
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let started = match (journal(config.format), config.format) {
        (Some(journal), _) => registry.with(journal).try_init(),
        (None, Format::Json) => registry.with(layer.json().flatten_event(true)).try_init(),
        (None, _) => registry.with(layer.event_format(Logfmt)).try_init(),
    };
    match started {
        Ok(()) => {
            log_panics();
            let _first = TARGETS.set(handle);
        }
        Err(error) => tracing::debug!(%error, "the log was started before"),
    }
}

/// Logs from `level` on, from now on.
///
/// # Errors
/// `FailedPrecondition` before [`start`].
pub(crate) fn set_level(level: Level) -> Result<()> {
    let handle = TARGETS.get();
    let handle = handle.ok_or_else(|| Error::failed_precondition("the log is not started"))?;
    handle.reload(targets(level)).map_err(Error::internal)
}

fn targets(level: Level) -> Targets {
    let level = filter(level);
    let libraries = LIBRARIES.map(|name| (name, level.min(LevelFilter::WARN)));
    Targets::new().with_default(level).with_targets(libraries)
}

/// The journal, when it is configured, or reads standard error anyway and would get the same as text.
fn journal(format: Format) -> Option<Journal> {
    let is_wanted = match format {
        Format::Journald => true,
        Format::Text => journal::is_stderr(std::env::var("JOURNAL_STREAM").ok().as_deref()),
        Format::Json => false,
    };
    if !is_wanted {
        return None;
    }
    let journal = Journal::connect(Path::new(journal::SOCKET));
    // Without it the text is as good.
    let warn = |error: &Error| {
        let _told = writeln!(std::io::stderr(), "<4>the log stays text: {error}");
    };
    journal.inspect_err(warn).ok()
}

/// Panics go to the log, as a line like any other.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        // What a damaged file makes of its reader is an answer, and told as one.
        if thread.name() == Some(sys::damage::CHECK_THREAD) {
            tracing::debug!("{panic}");
        } else {
            let trace = std::backtrace::Backtrace::capture();
            tracing::error!(thread = thread.name(), %trace, "{panic}");
        }
    }));
}

const fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error | Level::Fatal | Level::Panic => LevelFilter::ERROR,
    }
}

/// logfmt, with the fields of the spans behind those of the event.
struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let now = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Tracing::ERROR => "error",
            Tracing::WARN => "warning",
            Tracing::INFO => "info",
            Tracing::DEBUG => "debug",
            Tracing::TRACE => "trace",
        };
        write!(
            writer,
            "time=\"{now}\" level={level} msg={:?}{}",
            fields.message, fields.rest
        )?;
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            if let Some(fields) = extensions.get::<FormattedFields<N>>()
                && !fields.is_empty()
            {
                write!(writer, " {fields}")?;
            }
        }
        writeln!(writer)
    }
}

/// The message and the other fields, as text.
#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // Writing to a String cannot fail.
        let _infallible = match field.name() {
            "message" => write!(self.message, "{text}"),
            name if text.contains([' ', '\n', '=']) && !text.starts_with('"') => {
                write!(self.rest, " {name}={text:?}")
            }
            name => write!(self.rest, " {name}={text}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_with_its_fields_and_those_of_its_spans() {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(Logfmt)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let _in = tracing::info_span!("grpc", method = "/x/Y").entered();
            tracing::warn!(count = 2, error = %"a b\nc", "two \"words\"");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(
            time.starts_with("time=\"20") && time.ends_with("Z\""),
            "{time}"
        );
        assert_eq!(
            rest,
            "level=warning msg=\"two \\\"words\\\"\" count=2 error=\"a b\\nc\" method=\"/x/Y\"\n"
        );
    }

    #[test]
    fn levels_above_error_mean_error() {
        assert_eq!(filter(Level::Panic), LevelFilter::ERROR);
        assert_eq!(filter(Level::default()), LevelFilter::INFO);
    }
}
