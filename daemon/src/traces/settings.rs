//! The standard variables of OpenTelemetry, as far as they mean something here.

use std::time::Duration;

use http::Uri;
use http::header::{HeaderName, HeaderValue};

/// The queue, how often it is sent, and how much at a time, when nothing else is said.
const QUEUE: usize = 2048;
const DELAY: Duration = Duration::from_secs(5);
const BATCH: usize = 512;
/// What a send may take, when nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What the queue may be told to hold: memory is bounded, whatever the environment says.
const MOST: usize = 64 << 10;

/// Where spans go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The collector, with the path.
    pub(super) endpoint: Uri,
    /// More headers.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// What the service and its host are, by name.
    pub(super) resource: Vec<(String, String)>,
    /// Spans that wait at most.
    pub(super) queue: usize,
    /// How often they are sent.
    pub(super) delay: Duration,
    /// Spans in one request.
    pub(super) batch: usize,
    /// What a request may take.
    pub(super) timeout: Duration,
}

/// Reads the variables: none when nothing asks for traces.
///
/// # Errors
/// What is asked for and cannot be done, in one line.
pub(super) fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Settings>, String> {
    let get = |name: &str| get(name).filter(|value| !value.trim().is_empty());
    let is = |name: &str, word: &str| get(name).is_some_and(|value| value.trim() == word);
    if get("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
        || is("OTEL_TRACES_EXPORTER", "none")
        || is("OTEL_TRACES_SAMPLER", "always_off")
    {
        return Ok(None);
    }
    let own = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let all = get("OTEL_EXPORTER_OTLP_ENDPOINT");
    let all = all.map(|base| format!("{}/v1/traces", base.trim().trim_end_matches('/')));
    let Some(endpoint) = own.or(all) else {
        // Parity: pkg/tracing/plugin/otlp.go: without an endpoint there is nothing to do.
        return Ok(None);
    };
    if let Some(other) = get("OTEL_TRACES_EXPORTER").filter(|name| name.trim() != "otlp") {
        return Err(format!(
            "OTEL_TRACES_EXPORTER={other:?}: there is otlp and none"
        ));
    }
    let of_traces = |name: &str| {
        let own = get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"));
        own.or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
    };
    if let Some(protocol) = of_traces("PROTOCOL").filter(|name| name.trim() == "grpc") {
        return Err(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: only http is spoken"
        ));
    }
    let uri = collector(endpoint.trim())?;
    let millis = |value: Option<String>, or: Duration| {
        let given = value.and_then(|text| text.trim().parse().ok());
        given.map_or(or, |millis: u64| Duration::from_millis(millis.max(1)))
    };
    let count = |name: &str, or: usize| {
        let given = get(name).and_then(|text| text.trim().parse().ok());
        given.unwrap_or(or).clamp(1, MOST)
    };
    Ok(Some(Settings {
        endpoint: uri,
        headers: pairs(of_traces("HEADERS").as_deref())
            .filter_map(|(name, value)| Some((name.parse().ok()?, value.parse().ok()?)))
            .collect(),
        resource: resource(
            get("OTEL_SERVICE_NAME"),
            get("OTEL_RESOURCE_ATTRIBUTES").as_deref(),
        ),
        queue: count("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE),
        delay: millis(get("OTEL_BSP_SCHEDULE_DELAY"), DELAY),
        batch: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH),
        timeout: millis(of_traces("TIMEOUT"), TIMEOUT),
    }))
}

fn collector(endpoint: &str) -> Result<Uri, String> {
    // Not quoted: a password may be in it.
    let bad = |why: &str| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {why}");
    let uri: Uri = endpoint.parse().map_err(|_| bad("no URL"))?;
    if uri.authority().is_some_and(|it| it.as_str().contains('@')) {
        return Err(bad(
            "passwords are not sent: use OTEL_EXPORTER_OTLP_HEADERS",
        ));
    }
    if uri.scheme_str() != Some("http") || uri.host().is_none() {
        return Err(bad("only http://HOST:PORT, to a collector nearby"));
    }
    Ok(uri)
}

fn resource(service: Option<String>, more: Option<&str>) -> Vec<(String, String)> {
    let mut made: Vec<(String, String)> = pairs(more).collect();
    let named = made.iter().any(|(name, _)| name == "service.name");
    if service.is_some() || !named {
        made.retain(|(name, _)| name != "service.name");
        let service = service.unwrap_or_else(|| "containerd".to_owned());
        made.push(("service.name".to_owned(), service));
    }
    made
}

/// `a=b,c=d`, with percent signs as in URLs.
fn pairs(text: Option<&str>) -> impl Iterator<Item = (String, String)> {
    let parts = text.unwrap_or_default().split(',');
    parts.filter_map(|part| {
        let (name, value) = part.split_once('=')?;
        Some((name.trim().to_owned(), decoded(value.trim())))
    })
}

fn decoded(text: &str) -> String {
    let mut made = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = digits.and_then(|two| std::str::from_utf8(two).ok());
        let byte = byte.and_then(|two| u8::from_str_radix(two, 16).ok());
        made.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&made).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        read(&|name| {
            let found = variables.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_say_where_spans_go() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318/");
        let plain = of(&[endpoint]).unwrap().unwrap();
        assert_eq!(plain.endpoint, "http://127.0.0.1:4318/v1/traces");
        assert_eq!((plain.queue, plain.batch), (QUEUE, BATCH));
        assert_eq!(
            plain.resource,
            [("service.name".into(), "containerd".into())]
        );
        let full = of(&[
            endpoint,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c:1/x"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b%zz, x = y"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,host.name=h"),
            ("OTEL_SERVICE_NAME", "mine"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "999999999"),
            ("OTEL_BSP_SCHEDULE_DELAY", "250"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "nonsense"),
            ("OTEL_TRACES_EXPORTER", "otlp"),
        ]);
        let full = full.unwrap().unwrap();
        assert_eq!(full.endpoint, "http://c:1/x");
        let headers = full.headers.iter();
        let headers: Vec<_> = headers
            .map(|(n, v)| (n.as_str(), v.to_str().unwrap()))
            .collect();
        assert_eq!(headers, [("api-key", "a b%zz"), ("x", "y")]);
        let resource = [("host.name", "h"), ("service.name", "mine")];
        assert_eq!(
            full.resource,
            resource.map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
        assert_eq!((full.queue, full.delay.as_millis()), (MOST, 250));
        assert_eq!(full.timeout, TIMEOUT);
    }

    #[test]
    fn nothing_is_sent_unless_it_is_asked_for_and_can_be_done() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        for quiet in [
            &[][..],
            &[endpoint, ("OTEL_SDK_DISABLED", "True")],
            &[endpoint, ("OTEL_TRACES_EXPORTER", "none")],
            &[endpoint, ("OTEL_TRACES_SAMPLER", "always_off")],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
        ] {
            assert_eq!(of(quiet), Ok(None), "{quiet:?}");
        }
        for refused in [
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4318")][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318")],
            &[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
            &[endpoint, ("OTEL_TRACES_EXPORTER", "jaeger")],
        ] {
            assert!(of(refused).is_err(), "{refused:?}");
        }
    }
}
