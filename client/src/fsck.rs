//! A check of a daemon's records and files over the wire: JSON in the opaque parts of `PluginInfo`, so
//! that a daemon without it answers as it does for any plugin that it has not.

use serde_json::{Value, json};
use types::{Any, CheckOpts, Error, Fault, Finding, Repair, Report, Result};

use crate::opaque::{any, malformed, value};

/// Kind and id of the plugin that checks.
pub const PLUGIN: (&str, &str) = ("io.containerd.internal.v1", "fsck");

const OPTIONS_URL: &str = "containerd.fsck.v1.Options";
const REPORT_URL: &str = "containerd.fsck.v1.Report";

/// Findings in one answer: more than anybody reads.
const FINDINGS: usize = 10_000;
/// Bytes of them as they travel: objects have names of any length, and a message ends at 16 MiB.
const FINDINGS_SIZE: usize = 12 << 20;

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

/// A report as it travels: what is too much for one message is a last finding that counts the rest.
#[must_use]
pub fn report_to_any(report: &Report) -> Any {
    let value = json!({
        "findings": findings_to_json(&report.findings),
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

fn findings_to_json(findings: &[Finding]) -> Vec<Value> {
    let mut size = 0;
    let fits = |value: &Value| {
        size += value.to_string().len();
        size <= FINDINGS_SIZE
    };
    let first = findings.iter().take(FINDINGS);
    let mut all: Vec<_> = first.map(finding_to_json).take_while(fits).collect();
    all.extend(rest(&findings[all.len()..]).as_ref().map(finding_to_json));
    all
}

fn finding_to_json(finding: &Finding) -> Value {
    json!({
        "fault": finding.fault.to_string(),
        "object": finding.object,
        "text": finding.text,
        "repair": finding.repair.to_string(),
    })
}

/// One finding that stands for these, if there are any.
fn rest(findings: &[Finding]) -> Option<Finding> {
    // The sum of a report with something left must not say that all was repaired.
    let is_left = |finding: &&Finding| finding.repair != Repair::Done;
    let worst = findings.iter().find(is_left).or(findings.first())?;
    Some(Finding {
        fault: worst.fault,
        object: "others".into(),
        text: format!(
            "and {} more; a check of the stopped daemon names all",
            findings.len()
        ),
        repair: worst.repair,
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

    fn faulty(count: usize, text: &str) -> Report {
        let mut report = Report::default();
        for n in 0..count {
            report.note(Fault::Orphan, format!("x {n}"), text, Repair::Done);
        }
        report
    }

    #[test]
    fn findings_beyond_the_limit_are_counted_and_what_is_left_stays_left() {
        let at_limit = faulty(FINDINGS, "");
        let back = report_from_any(&report_to_any(&at_limit)).unwrap();
        assert_eq!(back, at_limit);
        let mut beyond = faulty(FINDINGS + 7, "");
        beyond.findings[FINDINGS + 5].repair = Repair::Possible;
        let back = report_from_any(&report_to_any(&beyond)).unwrap();
        assert_eq!(back.findings[..FINDINGS], beyond.findings[..FINDINGS]);
        let [last] = &back.findings[FINDINGS..] else {
            panic!("one line stands for the rest");
        };
        assert!(last.text.contains("and 7 more"), "{last}");
        assert!(back.is_faulty());
    }

    #[test]
    fn a_report_of_long_findings_fits_one_message() {
        for text in ["x".repeat(4096), "\0".repeat(4096)] {
            let report = faulty(FINDINGS, &text);
            let any = report_to_any(&report);
            assert!(any.value.len() < grpc::MAX_MESSAGE, "{}", any.value.len());
            let back = report_from_any(&any).unwrap();
            let more = report.findings.len() - back.findings.len() + 1;
            let last = back.findings.last().unwrap();
            assert!(last.text.contains(&format!("and {more} more")), "{last}");
        }
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
