//! The log to journald, with fields: its native protocol, a datagram per event.
//!
//! Invariant: the log never blocks and never fails anybody: what journald does not take goes to standard
//! error, where journald finds it as text.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use types::{Error, Result};

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest value of a field: all of an event must fit into a datagram.
const MAX_VALUE: usize = 8 << 10;
/// Longest name of a field, by journald's rules.
const MAX_NAME: usize = 64;
/// Longest event. The kernel's own limit is not far above.
const MAX_EVENT: usize = 128 << 10;

/// Sends events.
#[derive(Debug)]
pub(super) struct Journal(UnixDatagram);

/// The fields of a span, as they are sent.
struct Sent(Vec<u8>);

impl Journal {
    /// Connects to journald.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let at = |e| Error::os(format_args!("connect {}", path.display()), e);
        let socket = UnixDatagram::unbound().map_err(at)?;
        socket.connect(path).map_err(at)?;
        socket.set_nonblocking(true).map_err(at)?;
        Ok(Self(socket))
    }
}

/// True when standard error is the journal's, as `JOURNAL_STREAM` says: device and inode.
pub(super) fn is_stderr(variable: Option<&str>) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let Some((device, inode)) = variable.and_then(|text| text.split_once(':')) else {
        return false;
    };
    // By its number: the stream may be a socket, which cannot be opened by a path.
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|meta| device.parse() == Ok(meta.dev()) && inode.parse() == Ok(meta.ino()))
}

impl<S> Layer<S> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Sent(fields.bytes));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(sent) = span.extensions_mut().get_mut::<Sent>()
        {
            sent.0.append(&mut fields.bytes);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let priority = match *event.metadata().level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let mut fields = Fields::default();
        fields.add("PRIORITY", priority);
        fields.add("SYSLOG_IDENTIFIER", "containerd");
        fields.add("TARGET", event.metadata().target());
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(sent) = span.extensions().get::<Sent>()
                && fields.bytes.len() + sent.0.len() <= MAX_EVENT
            {
                fields.bytes.extend_from_slice(&sent.0);
            }
        }
        if let Err(error) = self.0.send(&fields.bytes) {
            // There is no third place.
            let text = as_text(priority, &fields.message, &error);
            let _gone = std::io::stderr().write_all(text.as_bytes());
        }
    }
}

/// A message as lines of standard error, each with its priority: journald takes each for a message.
fn as_text(priority: &str, message: &str, error: &dyn fmt::Display) -> String {
    let why = format!("(journald: {error})");
    let mut lines: Vec<&str> = message.lines().collect();
    lines.push(&why);
    let lines = lines.iter().map(|line| format!("<{priority}>{line}\n"));
    lines.collect()
}

/// Fields in journald's form.
#[derive(Default)]
struct Fields {
    bytes: Vec<u8>,
    /// What is told when journald does not take them.
    message: String,
}

impl Fields {
    fn add(&mut self, name: &str, value: &str) {
        if self.bytes.len() + value.len().min(MAX_VALUE) > MAX_EVENT {
            return;
        }
        let mut end = value.len().min(MAX_VALUE);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = &value[..end];
        if name == "message" {
            value.clone_into(&mut self.message);
        }
        self.bytes.extend(name_of(name).into_bytes());
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes.extend((value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend(value.as_bytes());
        self.bytes.push(b'\n');
    }
}

/// A name by journald's rules: capitals, digits and underscores, which do not come first.
fn name_of(name: &str) -> String {
    let letter = |c: char| match c.to_ascii_uppercase() {
        c @ ('A'..='Z' | '0'..='9') => c,
        _ => '_',
    };
    let made: String = name.chars().map(letter).collect();
    let made = made.trim_start_matches(|c: char| c == '_' || c.is_ascii_digit());
    let made = if made.is_empty() { "FIELD" } else { made };
    made.chars().take(MAX_NAME).collect()
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{value:?}");
        self.add(field.name(), &text);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn an_event_is_a_datagram_with_its_fields_and_those_of_its_spans() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, || {
            let span =
                tracing::info_span!("grpc", method = "/x/Y", namespace = tracing::field::Empty);
            span.record("namespace", "ns");
            let _in = span.entered();
            let long = "x".repeat(3 * MAX_VALUE);
            tracing::warn!(count = 2, _1id = "c", error = "a\nb", long, "two words");
        });
        let mut buffer = vec![0; MAX_EVENT];
        let length = journald.recv(&mut buffer).unwrap();
        let sent = &buffer[..length];
        let has = |part: &[u8]| sent.windows(part.len()).any(|window| window == part);
        for part in [
            &b"PRIORITY=4\n"[..],
            b"SYSLOG_IDENTIFIER=containerd\n",
            b"MESSAGE=two words\n",
            b"COUNT=2\n",
            b"\nID=c\n",
            b"ERROR\n\x03\0\0\0\0\0\0\0a\nb\n",
            b"METHOD=/x/Y\n",
            b"NAMESPACE=ns\n",
        ] {
            assert!(has(part), "{:?}", String::from_utf8_lossy(part));
        }
        assert!(length < 2 * MAX_VALUE, "long values are cut: {length}");
    }

    #[test]
    fn what_journald_does_not_take_is_told_with_all_its_lines() {
        let mut fields = Fields::default();
        fields.add("message", "panicked at x:\nno such thing");
        let text = as_text("3", &fields.message, &"gone");
        assert_eq!(
            text,
            "<3>panicked at x:\n<3>no such thing\n<3>(journald: gone)\n"
        );
    }

    #[test]
    fn only_the_stream_that_is_named_is_the_journal_s() {
        use std::os::unix::fs::MetadataExt as _;
        let stderr = std::fs::metadata("/proc/self/fd/2").unwrap();
        let own = format!("{}:{}", stderr.dev(), stderr.ino());
        assert!(is_stderr(Some(&own)));
        for other in ["1:2", "", "x:y", ":"] {
            assert!(!is_stderr(Some(other)), "{other}");
        }
        assert!(!is_stderr(None));
    }

    #[test]
    fn names_follow_journald_s_rules() {
        for (name, want) in [
            ("message", "MESSAGE"),
            ("grpc.code", "GRPC_CODE"),
            ("_private", "PRIVATE"),
            ("9", "FIELD"),
            ("ü", "FIELD"),
        ] {
            assert_eq!(name_of(name), want);
        }
        assert_eq!(name_of(&"x".repeat(100)).len(), MAX_NAME);
    }
}
