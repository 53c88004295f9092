//! The text format of Prometheus, version 0.0.4.
//!
//! Invariant: a family is written at one place, with its type before its samples, and no value of a label
//! can end its line.

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

/// The format's media type.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text under way.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

/// What a family's numbers mean.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// They only grow.
    Counter,
    /// They come and go.
    Gauge,
    /// They are counts by size.
    Histogram,
}

/// Labels, by name.
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A family, to which samples are added.
pub(crate) struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Text {
    /// Begins a family.
    pub(crate) fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail, here and below.
        let _infallible = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family {
            text: &mut self.0,
            name,
        }
    }

    /// A family with one sample and no label.
    pub(crate) fn one(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).add(&[], value);
    }

    /// The text.
    pub(crate) fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a sample.
    pub(crate) fn add(&mut self, labels: Labels<'_>, value: impl Display) {
        self.line("", labels, None, &value);
    }

    /// Adds a histogram: the upper ends of its buckets in microseconds, the counts in them and in the one
    /// above, and the sum of all values.
    pub(crate) fn histogram(
        &mut self,
        labels: Labels<'_>,
        ends: &[u64],
        counts: impl Iterator<Item = u64>,
        sum: Duration,
    ) {
        let mut total = 0;
        let ends = ends.iter().map(|micros| Some(*micros)).chain([None]);
        for (end, count) in ends.zip(counts) {
            total += count;
            let end = match end {
                Some(micros) => Duration::from_micros(micros).as_secs_f64().to_string(),
                None => "+Inf".to_owned(),
            };
            self.line("_bucket", labels, Some(&end), &total);
        }
        self.line("_sum", labels, None, &sum.as_secs_f64());
        self.line("_count", labels, None, &total);
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, end: Option<&str>, value: &dyn Display) {
        let text = &mut *self.text;
        let _infallible = write!(text, "{}{suffix}", self.name);
        let labels = labels.iter().copied().chain(end.map(|end| ("le", end)));
        let mut separator = '{';
        for (name, value) in labels {
            let _infallible = write!(text, "{separator}{name}=\"{}\"", Escaped(value));
            separator = ',';
        }
        let close = if separator == ',' { "}" } else { "" };
        let _infallible = writeln!(text, "{close} {value}");
    }
}

struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_written_as_prometheus_reads_them() {
        let mut text = Text::default();
        text.one("up", Kind::Gauge, "Whether.", 1);
        let mut family = text.family("took_seconds", Kind::Histogram, "How long.");
        let labels = [("method", "a\"b\\c\nd"), ("code", "OK")];
        family.histogram(
            &labels,
            &[500, 2_500_000],
            [2, 1, 4].into_iter(),
            Duration::from_millis(1500),
        );
        let labels = r#"method="a\"b\\c\nd",code="OK""#;
        assert_eq!(
            text.finish(),
            format!(
                "# HELP up Whether.\n# TYPE up gauge\nup 1\n\
                 # HELP took_seconds How long.\n# TYPE took_seconds histogram\n\
                 took_seconds_bucket{{{labels},le=\"0.0005\"}} 2\n\
                 took_seconds_bucket{{{labels},le=\"2.5\"}} 3\n\
                 took_seconds_bucket{{{labels},le=\"+Inf\"}} 7\n\
                 took_seconds_sum{{{labels}}} 1.5\ntook_seconds_count{{{labels}}} 7\n"
            )
        );
    }
}
