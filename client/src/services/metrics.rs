//! Metrics of both generations of cgroups as rows of a table.

use protos::cgroups::{v1, v2};
use protos::wire::{Wire as _, time};
use types::{Any, Error, Result};

use super::process::Metric;
use crate::json;

/// Reads what a task's shim measured.
pub(super) fn read(metric: protos::types::Metric) -> Result<Metric> {
    let data = Any::from_wire(metric.data.unwrap_or_default())?;
    let (rows, json) = if protos::any::is::<v1::Metrics>(&data) {
        let metrics: v1::Metrics = protos::any::unpack(&data)?;
        (rows_v1(&metrics), json::message(&metrics))
    } else if protos::any::is::<v2::Metrics>(&data) {
        let metrics: v2::Metrics = protos::any::unpack(&data)?;
        (rows_v2(&metrics), json::message(&metrics))
    } else {
        return Err(Error::not_implemented(format_args!(
            "cannot convert metric data of type {:?}",
            data.type_url
        )));
    };
    Ok(Metric {
        id: metric.id,
        timestamp: time(metric.timestamp)?,
        rows,
        json,
    })
}

fn rows_v1(metrics: &v1::Metrics) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(memory) = metrics.memory.as_ref() {
        rows.push(("memory.usage_in_bytes", memory.usage.usage.to_string()));
        rows.push(("memory.limit_in_bytes", memory.usage.limit.to_string()));
        rows.push(("memory.stat.cache", memory.total_cache.to_string()));
    }
    if let Some(cpu) = metrics.cpu.as_ref() {
        let each: Vec<String> = cpu.usage.per_cpu.iter().map(ToString::to_string).collect();
        rows.push(("cpuacct.usage", cpu.usage.total.to_string()));
        rows.push(("cpuacct.usage_percpu", format!("[{}]", each.join(" "))));
    }
    if let Some(pids) = metrics.pids.as_ref() {
        rows.push(("pids.current", pids.current.to_string()));
        rows.push(("pids.limit", pids.limit.to_string()));
    }
    rows
}

fn rows_v2(metrics: &v2::Metrics) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(pids) = metrics.pids.as_ref() {
        rows.push(("pids.current", pids.current));
        rows.push(("pids.limit", pids.limit));
    }
    if let Some(cpu) = metrics.cpu.as_ref() {
        rows.push(("cpu.usage_usec", cpu.usage_usec));
        rows.push(("cpu.user_usec", cpu.user_usec));
        rows.push(("cpu.system_usec", cpu.system_usec));
        rows.push(("cpu.nr_periods", cpu.nr_periods));
        rows.push(("cpu.nr_throttled", cpu.nr_throttled));
        rows.push(("cpu.throttled_usec", cpu.throttled_usec));
    }
    if let Some(memory) = metrics.memory.as_ref() {
        rows.push(("memory.usage", memory.usage));
        rows.push(("memory.usage_limit", memory.usage_limit));
        rows.push(("memory.swap_usage", memory.swap_usage));
        rows.push(("memory.swap_limit", memory.swap_limit));
    }
    rows.into_iter()
        .map(|(name, value)| (name, value.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::MessageField;

    fn metric(data: &Any) -> protos::types::Metric {
        protos::types::Metric {
            id: "t".into(),
            data: MessageField::some(data.to_wire()),
            ..Default::default()
        }
    }

    #[test]
    fn both_generations_are_read_and_others_named() {
        let pids = v1::PidsStat {
            current: 3,
            ..Default::default()
        };
        let one = v1::Metrics {
            pids: MessageField::some(pids),
            ..Default::default()
        };
        let got = read(metric(&protos::any::pack(&one).unwrap())).unwrap();
        assert_eq!(
            got.rows,
            [
                ("pids.current", "3".to_owned()),
                ("pids.limit", "0".to_owned())
            ]
        );
        assert_eq!(got.json.to_string(), r#"{"pids":{"current":3}}"#);

        let memory = v2::MemoryStat {
            usage: 7,
            ..Default::default()
        };
        let two = v2::Metrics {
            memory: MessageField::some(memory),
            ..Default::default()
        };
        let got = read(metric(&protos::any::pack(&two).unwrap())).unwrap();
        assert_eq!(got.rows[0], ("memory.usage", "7".to_owned()));

        let other = Any {
            type_url: "x.Y".into(),
            value: Vec::new(),
        };
        let error = read(metric(&other)).unwrap_err();
        assert!(error.is(types::Code::NotImplemented) && error.to_string().contains("x.Y"));
    }
}
