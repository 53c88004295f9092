//! Flights as the JSON of OTLP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use recorder::{On, Told, ToldStage};
use serde_json::{Value, json};

/// Numbers of the protocol: a span of a server, one within, a status that says failure.
const SERVER: u8 = 2;
const INTERNAL: u8 = 1;
const FAILED: u8 = 2;

/// One request with these flights: a trace each, the stages below it.
pub(super) fn of(resource: &[(String, String)], batch: &[Told]) -> String {
    let pairs = resource.iter();
    let resource: Vec<_> = pairs.map(|(name, value)| attribute(name, value)).collect();
    let spans: Vec<Value> = batch.iter().flat_map(spans).collect();
    let scope = json!({"name": "containerd", "version": env!("CARGO_PKG_VERSION")});
    json!({"resourceSpans": [{
        "resource": {"attributes": resource},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]})
    .to_string()
}

fn attribute(name: &str, value: &str) -> Value {
    json!({"key": name, "value": {"stringValue": value}})
}

/// Nanoseconds, which JSON has as text.
fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}

fn spans(told: &Told) -> Vec<Value> {
    let trace = told.origin.map_or_else(rand::random, |origin| origin.trace);
    let trace = format!("{trace:032x}");
    let id = format!("{:016x}", rand::random::<u64>());
    let mut attributes = Vec::new();
    if let Some((service, method)) = told.name.trim_start_matches('/').split_once('/') {
        attributes.push(attribute("rpc.system", "grpc"));
        attributes.push(attribute("rpc.service", service));
        attributes.push(attribute("rpc.method", method));
    }
    for (name, value) in [
        ("containerd.namespace", &told.namespace),
        ("containerd.subject", &told.subject),
    ] {
        attributes.extend((!value.is_empty()).then(|| attribute(name, value)));
    }
    let mut root = json!({
        "traceId": trace,
        "spanId": id,
        "name": told.name.trim_start_matches('/'),
        "kind": SERVER,
        "startTimeUnixNano": nanos(told.at),
        "endTimeUnixNano": nanos(told.at + told.took),
        "attributes": attributes,
    });
    if let Some(origin) = told.origin {
        root["parentSpanId"] = json!(format!("{:016x}", origin.parent));
    }
    if let Some(error) = &told.error {
        root["status"] = json!({"code": FAILED, "message": error});
    }
    let stages = told.stages.iter();
    let stages = stages.map(|one| stage(&trace, &id, told.at, told.took, one));
    std::iter::once(root).chain(stages).collect()
}

fn stage(trace: &str, parent: &str, at: SystemTime, end: Duration, stage: &ToldStage) -> Value {
    let on = match &stage.on {
        On::Nothing => String::new(),
        On::Process(pid) => format!("pid {pid}"),
        On::Named(name) => name.to_string(),
    };
    let waits = (!on.is_empty()).then(|| attribute("containerd.waits_for", &on));
    // One that is not over outlives its flight.
    let took = stage.took.unwrap_or(end.saturating_sub(stage.from));
    json!({
        "traceId": trace,
        "spanId": format!("{:016x}", rand::random::<u64>()),
        "parentSpanId": parent,
        "name": stage.name,
        "kind": INTERNAL,
        "startTimeUnixNano": nanos(at + stage.from),
        "endTimeUnixNano": nanos(at + stage.from + took),
        "attributes": waits.into_iter().collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flight_is_a_span_with_its_stages_below() {
        let stage = |name, on, took| ToldStage {
            name,
            on,
            from: Duration::from_millis(1),
            took,
        };
        let told = Told {
            name: "/x.Tasks/Create",
            namespace: "ns".into(),
            subject: "c".into(),
            at: UNIX_EPOCH + Duration::from_secs(1),
            origin: Some(recorder::Origin {
                trace: 0xab,
                parent: 0xcd,
                sampled: true,
            }),
            took: Duration::from_millis(5),
            over: true,
            error: Some("no".into()),
            stages: vec![
                stage("bundle", On::Nothing, Some(Duration::from_millis(2))),
                stage("Create", On::Process(7), None),
            ],
            more: 0,
        };
        let resource = [("service.name".to_owned(), "containerd".to_owned())];
        let made: Value = serde_json::from_str(&of(&resource, &[told])).unwrap();
        let of = &made["resourceSpans"][0];
        assert_eq!(
            of["resource"]["attributes"][0]["value"]["stringValue"],
            "containerd"
        );
        let spans = of["scopeSpans"][0]["spans"].as_array().unwrap();
        assert_eq!(spans.len(), 3);
        let root = &spans[0];
        assert_eq!(
            (&root["name"], &root["status"]["message"]),
            (&json!("x.Tasks/Create"), &json!("no"))
        );
        assert_eq!(root["traceId"], format!("{:032x}", 0xab));
        assert_eq!(root["parentSpanId"], "00000000000000cd");
        assert_eq!(spans[1]["traceId"], root["traceId"]);
        assert_eq!(root["startTimeUnixNano"], "1000000000");
        assert_eq!(root["endTimeUnixNano"], "1005000000");
        assert_eq!(root["traceId"].as_str().map(str::len), Some(32));
        for stage in &spans[1..] {
            assert_eq!(stage["traceId"], root["traceId"]);
            assert_eq!(stage["parentSpanId"], root["spanId"]);
            assert_ne!(stage["spanId"], root["spanId"]);
        }
        assert_eq!(spans[1]["endTimeUnixNano"], "1003000000");
        assert_eq!(spans[2]["endTimeUnixNano"], root["endTimeUnixNano"]);
        assert_eq!(spans[2]["attributes"][0]["value"]["stringValue"], "pid 7");
    }
}
