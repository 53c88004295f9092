//! `format/`: places of earlier mounts are filled in, in source, target and options.
//!
//! ```text
//! {{ mount 0 }}  {{ source 0 }}  {{ target 0 }}  {{ overlay 3 0 }}   positions in the list of mounts
//! ```
//! Parity: core/mount/manager/format.go: templates of another language; of that, these four calls are
//! all that snapshotters write, and anything else is an error.

use types::{ActiveMount, Error, Mount, Result};

pub(super) fn apply(mut mount: Mount, active: &[ActiveMount]) -> Result<Mount> {
    for text in [&mut mount.source, &mut mount.target] {
        *text = fill(text, active)?;
    }
    for option in &mut mount.options {
        *option = fill(option, active)?;
    }
    Ok(mount)
}

fn fill(text: &str, active: &[ActiveMount]) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, call)) = rest.split_once("{{") {
        let bad = || Error::invalid_argument(format_args!("mount template {text:?}"));
        let (call, after) = call.split_once("}}").ok_or_else(bad)?;
        let value = value(call, active).map_err(|e| e.ctx(format!("mount template {text:?}")))?;
        // A dash takes the white space on its side away.
        let trim = |text: &str| text.trim_end_matches([' ', '\t', '\r', '\n']).len();
        let cut = if call.starts_with("- ") {
            trim(before)
        } else {
            before.len()
        };
        filled.push_str(&before[..cut]);
        filled.push_str(&value);
        rest = if call.ends_with(" -") {
            after.trim_start_matches([' ', '\t', '\r', '\n'])
        } else {
            after
        };
    }
    filled.push_str(rest);
    Ok(filled)
}

/// What a call stands for.
fn value(call: &str, active: &[ActiveMount]) -> Result<String> {
    let call = call.strip_prefix("- ").unwrap_or(call);
    let call = call.strip_suffix(" -").unwrap_or(call);
    let words: Vec<&str> = call.split_ascii_whitespace().collect();
    let position = |word: &str| -> Result<usize> {
        let at = word.parse().ok().filter(|at| *at < active.len());
        at.ok_or_else(|| {
            Error::invalid_argument(format_args!(
                "position {word}, there are {} mounts before",
                active.len()
            ))
        })
    };
    let one = |word: &str| position(word).map(|at| &active[at]);
    match words[..] {
        ["mount", at] => Ok(one(at)?.mount_point.clone()),
        ["source", at] => Ok(one(at)?.mount.source.clone()),
        ["target", at] => Ok(one(at)?.mount.target.clone()),
        ["overlay", from, to] => {
            let (from, to) = (position(from)?, position(to)?);
            let range = &active[from.min(to)..=from.max(to)];
            let points = range.iter().map(|one| one.mount_point.as_str());
            let points: Vec<&str> = if from > to {
                points.rev().collect()
            } else {
                points.collect()
            };
            Ok(points.join(":"))
        }
        _ => Err(Error::invalid_argument(format_args!(
            "unknown call {call:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active() -> Vec<ActiveMount> {
        let one = |number: usize| ActiveMount {
            mount: Mount {
                source: format!("/s{number}"),
                target: format!("t{number}"),
                ..Mount::default()
            },
            mount_point: format!("/m{number}"),
            ..ActiveMount::default()
        };
        (0..3).map(one).collect()
    }

    #[test]
    fn places_are_filled_in() {
        for (text, want) in [
            ("plain", "plain"),
            ("{{ mount 0 }}/fs", "/m0/fs"),
            ("{{source 1}}-{{target 2}}", "/s1-t2"),
            ("lowerdir={{ overlay 2 0 }}", "lowerdir=/m2:/m1:/m0"),
            ("{{ overlay 0 1 }}", "/m0:/m1"),
            ("{{ overlay 1 1 }}", "/m1"),
            ("a {{- mount 0 -}} b", "a/m0b"),
            ("}} {", "}} {"),
        ] {
            assert_eq!(fill(text, &active()).unwrap(), want);
        }
    }

    #[test]
    fn what_is_no_call_and_what_is_not_there_is_refused() {
        for bad in [
            "{{",
            "{{ mount }}",
            "{{ mount 3 }}",
            "{{ mount -1 }}",
            "{{ overlay 0 }}",
            "{{ overlay 0 3 }}",
            "{{ env \"HOME\" }}",
            "{{ mount 0 | print }}",
            "{{}}",
        ] {
            let error = fill(bad, &active()).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument), "{bad}: {error}");
        }
    }

    #[test]
    fn source_target_and_options_are_filled_in() {
        let mount = Mount {
            kind: "overlay".into(),
            source: "{{ mount 0 }}".into(),
            target: "{{ target 1 }}".into(),
            options: vec!["ro".into(), "upperdir={{ mount 2 }}/u".into()],
        };
        let got = apply(mount, &active()).unwrap();
        assert_eq!((&*got.source, &*got.target), ("/m0", "t1"));
        assert_eq!(got.options, ["ro", "upperdir=/m2/u"]);
    }
}
