//! A check of a daemon's records and files over the wire: JSON in the opaque parts of `PluginInfo`, so
//! that a daemon without it answers as it does for any plugin that it has not.

use serde_json::{Value, json};
use types::{Any, CheckOpts, Error, Fault, Finding, Repair, Report, Result};

/// Kind and id of the plugin that checks.
pub const PLUGIN: (&str, &str) = ("io.containerd.internal.v1", "fsck");

const OPTIONS_URL: &str = "containerd.fsck.v1.Options";
const REPORT_URL: &str = "containerd.fsck.v1.Report";

/// Options as they travel. A point in time does not: it is the daemon's own affair.
#[must_use]
pub fn options_to_any(opts: &CheckOpts) -> Any {
    let options = json!({ "repair": opts.repair, "quick": opts.quick });
    any(OPTIONS_URL, &options)
}

/// Options as they came.
///
/// # Errors
/// `InvalidArgument` for something else, and for an option that is not known.
pub fn options_from_any(any: &Any) -> Result<CheckOpts> {
    let value = value(any, OPTIONS_URL)?;
    let fields = value.as_object().ok_or_else(malformed)?;
    let mut opts = CheckOpts::default();
    for (name, value) in fields {
        let flag = value.as_bool().ok_or_else(malformed)?;
        match name.as_str() {
            "repair" => opts.repair = flag,
            "quick" => opts.quick = flag,
            other => {
                return Err(Error::invalid_argument(format_args!(
                    "option {other:?} of a check is not known"
                )));
            }
        }
    }
    Ok(opts)
}

/// A report as it travels.
#[must_use]
pub fn report_to_any(report: &Report) -> Any {
    let finding = |finding: &Finding| {
        json!({
            "fault": finding.fault.to_string(),
            "object": finding.object,
            "text": finding.text,
            "repair": finding.repair.to_string(),
        })
    };
    let findings: Vec<Value> = report.findings.iter().map(finding).collect();
    let value = json!({
        "findings": findings,
        "blobs": report.blobs,
        "bytes": report.bytes,
        "ingests": report.ingests,
        "snapshots": report.snapshots,
        "images": report.images,
        "containers": report.containers,
    });
    any(REPORT_URL, &value)
}

/// A report as it came.
///
/// # Errors
/// `InvalidArgument` for something else.
pub fn report_from_any(any: &Any) -> Result<Report> {
    let value = value(any, REPORT_URL)?;
    let count = |name: &str| value[name].as_u64().ok_or_else(malformed);
    let findings = value["findings"].as_array().ok_or_else(malformed)?;
    Ok(Report {
        findings: findings.iter().map(finding).collect::<Result<_>>()?,
        blobs: count("blobs")?,
        bytes: count("bytes")?,
        ingests: count("ingests")?,
        snapshots: count("snapshots")?,
        images: count("images")?,
        containers: count("containers")?,
    })
}

fn finding(value: &Value) -> Result<Finding> {
    let text = |name: &str| value[name].as_str().ok_or_else(malformed);
    let (fault, repair) = (text("fault")?, text("repair")?);
    Ok(Finding {
        fault: named(&Fault::ALL, fault)?,
        object: text("object")?.to_owned(),
        text: text("text")?.to_owned(),
        repair: named(&Repair::ALL, repair)?,
    })
}

fn named<T: Copy + ToString>(all: &[T], name: &str) -> Result<T> {
    let found = all.iter().find(|value| value.to_string() == name);
    found.copied().ok_or_else(malformed)
}

fn any(url: &str, value: &Value) -> Any {
    Any {
        type_url: url.to_owned(),
        value: value.to_string().into_bytes(),
    }
}

fn value(any: &Any, url: &str) -> Result<Value> {
    if any.type_url != url {
        return Err(Error::invalid_argument(format_args!(
            "type {:?} is not {url:?}",
            any.type_url
        )));
    }
    serde_json::from_slice(&any.value).map_err(|e| malformed().with_source(e))
}

fn malformed() -> Error {
    Error::invalid_argument("malformed message of a check")
}

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;

    #[test]
    fn what_travels_comes_as_it_was() {
        let opts = CheckOpts {
            repair: true,
            ..CheckOpts::default()
        };
        let back = options_from_any(&options_to_any(&opts)).unwrap();
        assert!(back.repair && !back.quick);
        let mut report = Report {
            blobs: 3,
            bytes: u64::MAX,
            ..Report::default()
        };
        for (fault, repair) in Fault::ALL.into_iter().zip(Repair::ALL) {
            report.note(fault, "content \"x\"".into(), "a\nb", repair);
        }
        assert_eq!(report_from_any(&report_to_any(&report)).unwrap(), report);
    }

    #[test]
    fn anything_else_is_refused() {
        for value in ["", "[]", "{\"repair\":1}", "{\"force\":true}"] {
            let any = Any {
                type_url: OPTIONS_URL.into(),
                value: value.into(),
            };
            let error = options_from_any(&any).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{value}: {error}");
            report_from_any(&any).unwrap_err();
        }
    }
}
