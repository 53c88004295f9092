//! Programs in a directory as verifiers: `<program> -name <name> -digest <digest> -stdin-media-type
//! application/vnd.oci.descriptor.v1+json`, the descriptor on standard input, exit code 0 for yes, the
//! reason on standard output.
//!
//! Invariant: every program is asked in the order of names; the first that says no, fails or takes too
//! long ends it. What a program writes costs a fixed amount of memory, whatever it is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use sys::process::{Spawn, Status};
use types::{Context as _, Descriptor, Error, Result};

use super::{Judgement, Verifier};
use crate::archive::descriptor_json;

/// Most bytes of a reason.
const MAX_REASON: usize = 32 * 1024;
/// What the descriptor on standard input is.
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";

/// Which programs, and how long each may take.
#[derive(Clone, Debug)]
pub struct BinDirOpts {
    /// Their directory; without it every image is welcome.
    pub directory: PathBuf,
    /// How many of them are asked; `None`: all.
    pub most: Option<usize>,
    /// Time of each.
    pub patience: Duration,
}

/// The programs of a directory.
#[derive(Clone, Debug)]
pub struct BinDir {
    opts: BinDirOpts,
}

impl BinDir {
    /// Asks the programs that are in the directory when an image comes.
    #[must_use]
    pub fn new(opts: BinDirOpts) -> Self {
        Self { opts }
    }
}

#[async_trait]
impl Verifier for BinDir {
    async fn verify(&self, name: &str, target: &Descriptor) -> Result<Judgement> {
        let (opts, name, target) = (self.opts.clone(), name.to_owned(), target.clone());
        let judged = tokio::task::spawn_blocking(move || judge(&opts, &name, &target)).await;
        judged.map_err(|e| Error::internal("image verifier").with_source(e))?
    }
}

fn judge(opts: &BinDirOpts, name: &str, target: &Descriptor) -> Result<Judgement> {
    let yes = |reason| Judgement { ok: true, reason };
    let shown = opts.directory.display();
    let Some(mut programs) = programs(&opts.directory)? else {
        return Ok(yes(format!(
            "image verifier directory {shown} does not exist"
        )));
    };
    if programs.is_empty() {
        return Ok(yes(format!("no image verifier binaries found in {shown}")));
    }
    if let Some(most) = opts.most.filter(|most| *most < programs.len()) {
        let all = programs.len();
        tracing::warn!(directory = %shown, all, most, "image verifiers are skipped");
        programs.truncate(most);
    }
    let mut reasons = Vec::new();
    for program in programs {
        let path = opts.directory.join(&program);
        let program = program.to_string_lossy();
        let (status, reason) = run(&path, name, target, opts.patience)
            .ctx_with(|| format!("failed to call verifier {program}"))?;
        match status {
            Status::Exited(0) => reasons.push(format!("{program} => {reason}")),
            Status::Exited(code) => {
                return Ok(Judgement {
                    ok: false,
                    reason: format!(
                        "verifier {program} rejected image (exit code {code}): {reason}"
                    ),
                });
            }
            Status::Signaled(signal) => {
                return Err(Error::unknown(format_args!(
                    "verifier {program} was killed by signal {signal}"
                )));
            }
        }
    }
    Ok(yes(reasons.join(", ")))
}

/// Names in the directory, in order; `None` without a directory.
fn programs(directory: &Path) -> Result<Option<Vec<OsString>>> {
    let failed = |e| Error::os(format_args!("read {}", directory.display()), e);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    Ok(Some(names))
}

fn run(
    path: &Path,
    name: &str,
    target: &Descriptor,
    patience: Duration,
) -> Result<(Status, String)> {
    let mut input = descriptor_json(target).to_string().into_bytes();
    input.push(b'\n');
    let spawn = Spawn::new(path)
        .args(["-name", name])
        .args(["-digest", target.digest.as_str()])
        .args(["-stdin-media-type", DESCRIPTOR])
        .new_group();
    let said = spawn.answer(&input, MAX_REASON, patience)?;
    for line in String::from_utf8_lossy(&said.errors).lines() {
        tracing::debug!(image_verifier = %path.display(), stream = "stderr", "{line}");
    }
    let mut reason = String::from_utf8_lossy(&said.text).trim().to_owned();
    if said.is_cut {
        reason.push_str("(stdout truncated)");
    }
    Ok((said.status, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Code, Labels, media_type as mt};

    fn script(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        let text = format!("#!/bin/sh\n{text}\n");
        // By another process: whatever is forked here meanwhile would hold our descriptor for a moment, and
        // what is open for writing cannot be run.
        let write = ["-c", "cat >\"$0\" && chmod 755 \"$0\""];
        let write = Spawn::new("/bin/sh").args(write).arg(&path);
        let written = write.output(text.as_bytes(), 1 << 10, Duration::from_secs(60));
        assert!(written.unwrap().status.is_success());
    }

    fn target() -> Descriptor {
        Descriptor {
            media_type: mt::OCI_MANIFEST.into(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            size: 7,
            annotations: Labels::new(),
        }
    }

    fn ask(directory: &Path, most: Option<usize>) -> Result<Judgement> {
        let opts = BinDirOpts {
            directory: directory.to_owned(),
            most,
            patience: Duration::from_secs(60),
        };
        judge(&opts, "r.test/a:1", &target())
    }

    #[test]
    fn without_programs_everything_is_welcome() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ask(&dir.path().join("none"), None).unwrap().ok);
        let judged = ask(dir.path(), None).unwrap();
        assert!(
            judged.ok && judged.reason.contains("no image verifier"),
            "{judged:?}"
        );
    }

    #[test]
    fn programs_get_name_digest_and_descriptor_in_order() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "b", "echo \"  $* \"; echo noise >&2");
        script(dir.path(), "a", "cat");
        let judged = ask(dir.path(), None).unwrap();
        let digest = target().digest;
        let descriptor = descriptor_json(&target());
        let want = format!(
            "a => {descriptor}, b => -name r.test/a:1 -digest {digest} -stdin-media-type {DESCRIPTOR}"
        );
        assert_eq!(
            judged,
            Judgement {
                ok: true,
                reason: want
            }
        );
    }

    #[test]
    fn the_first_no_counts_and_only_so_many_are_asked() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "a", "echo fine");
        script(dir.path(), "b", "echo unsigned; exit 3");
        script(dir.path(), "c", "exit 4");
        let judged = ask(dir.path(), None).unwrap();
        let want = "verifier b rejected image (exit code 3): unsigned";
        assert_eq!((judged.ok, judged.reason.as_str()), (false, want));
        assert!(ask(dir.path(), Some(1)).unwrap().ok);
    }

    #[test]
    fn who_cannot_tell_is_an_error_in_time() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "slow", "exec sleep 600");
        let opts = BinDirOpts {
            directory: dir.path().to_owned(),
            most: None,
            patience: Duration::from_millis(100),
        };
        let error = judge(&opts, "n", &target()).unwrap_err();
        assert!(error.is(Code::DeadlineExceeded), "{error}");
        assert!(error.to_string().contains("verifier slow"), "{error}");
        script(dir.path(), "slow", "kill -9 $$");
        assert!(
            ask(dir.path(), None)
                .unwrap_err()
                .to_string()
                .contains("signal 9")
        );
        std::fs::write(dir.path().join("slow"), "").unwrap();
        ask(dir.path(), None).unwrap_err();
    }

    #[test]
    fn a_flood_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        script(
            dir.path(),
            "a",
            "head -c 300000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero >&2",
        );
        let judged = ask(dir.path(), None).unwrap();
        assert!(judged.ok && judged.reason.ends_with("(stdout truncated)"));
        assert!(judged.reason.len() < MAX_REASON + 100);
    }
}
