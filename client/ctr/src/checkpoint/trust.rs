//! What a checkpoint may have of this host.
//!
//! Invariant: without the user's word nothing that an image says runs outside of a container: no hook, no
//! runtime but an installed one by its name, and none of the options that name files; and CRIU reads nothing
//! of it.

use client::RuncOptions;
use types::{Error, Result, Runtime};

/// Runtimes that a checkpoint may name.
const RUNTIMES: [&str; 3] = ["", "runc", "crun"];
/// So many of the things that were found are told.
const TOLD: usize = 8;

/// With what a checkpoint is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// With what each container has.
    Default,
    /// With all that it says.
    All,
}

impl Trust {
    /// Whether a dump may be restored: its files say what memory, open files and rights its processes get,
    /// and CRIU reads them as root.
    ///
    /// # Errors
    /// `PermissionDenied`, naming the flag.
    pub(super) fn live(self) -> Result<()> {
        match self {
            Self::All => Ok(()),
            Self::Default => Err(Error::permission_denied(
                "--live has CRIU give its processes what the dump says, as root of this host; \
                 --trust-spec lets it",
            )),
        }
    }

    /// The runtime as it is to be used, when neither it nor the spec, of which `beyond` is told, asks for
    /// more.
    ///
    /// # Errors
    /// `PermissionDenied`, naming what was asked for.
    pub(super) fn judge(self, mut beyond: Vec<String>, runtime: Runtime) -> Result<Runtime> {
        if self == Self::All {
            return Ok(runtime);
        }
        let runtime = usual(&mut beyond, runtime);
        if beyond.is_empty() {
            return Ok(runtime);
        }
        let more = beyond.len().saturating_sub(TOLD);
        beyond.truncate(TOLD);
        let mut text = beyond.join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        Err(Error::permission_denied(format_args!(
            "it asks for more of this host than a container has: {text}; --trust-spec gives it all of that"
        )))
    }
}

/// The runtime with the options that do no harm.
fn usual(beyond: &mut Vec<String>, mut runtime: Runtime) -> Runtime {
    if runtime.name.contains('/') {
        beyond.push(format!("runtime {:?}", runtime.name));
    }
    let given = runtime.options.take().filter(|given| !given.is_empty());
    let Some(given) = given else { return runtime };
    let Ok(options) = RuncOptions::from_any(Some(&given)) else {
        beyond.push(format!("runtime options of type {:?}", given.type_url));
        return runtime;
    };
    if !RUNTIMES.contains(&options.binary.as_str()) {
        beyond.push(format!("runtime binary {:?}", options.binary));
    }
    if !options.root.is_empty() {
        beyond.push(format!("runtime root {:?}", options.root));
    }
    if options.no_pivot_root {
        beyond.push("no pivot_root".to_owned());
    }
    // Written anew: there are others that name files and groups of the host.
    runtime.options = options.to_any().ok();
    runtime
}

#[cfg(test)]
mod tests {
    use types::{Any, Code};

    use super::*;

    fn runtime(name: &str, options: Option<RuncOptions>) -> Runtime {
        Runtime {
            name: name.into(),
            options: options.map(|options| options.to_any().unwrap()),
        }
    }

    #[test]
    fn an_installed_runtime_may_be_named() {
        let crun = RuncOptions {
            binary: "crun".into(),
            systemd_cgroup: true,
            io_owner: (1, 2),
            ..RuncOptions::default()
        };
        for given in [None, Some(RuncOptions::default()), Some(crun)] {
            let given = runtime("io.containerd.runc.v2", given);
            let judged = Trust::Default.judge(Vec::new(), given.clone()).unwrap();
            let options = |any: &Runtime| RuncOptions::from_any(any.options.as_ref()).unwrap();
            assert_eq!(
                (&judged.name, options(&judged)),
                (&given.name, options(&given))
            );
        }
    }

    #[test]
    fn what_names_files_of_the_host_is_told_unless_it_is_trusted() {
        let of = |edit: fn(&mut RuncOptions)| {
            let mut options = RuncOptions::default();
            edit(&mut options);
            runtime("io.containerd.runc.v2", Some(options))
        };
        let mut other = runtime("io.containerd.runc.v2", None);
        other.options = Some(Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: vec![10, 2, 47, 120],
        });
        for (given, want) in [
            (runtime("/x/shim", None), "runtime \"/x/shim\""),
            (of(|o| o.binary = "/x".into()), "runtime binary \"/x\""),
            (of(|o| o.binary = "sh".into()), "runtime binary \"sh\""),
            (of(|o| o.root = "/etc".into()), "runtime root \"/etc\""),
            (of(|o| o.no_pivot_root = true), "no pivot_root"),
            (other, "runtime options of type"),
        ] {
            let error = Trust::Default.judge(Vec::new(), given.clone()).unwrap_err();
            assert!(error.is(Code::PermissionDenied), "{error}");
            for text in [want, "--trust-spec"] {
                assert!(error.to_string().contains(text), "{text}: {error}");
            }
            assert_eq!(
                Trust::All.judge(vec!["x".into()], given.clone()).unwrap(),
                given
            );
        }
    }

    #[test]
    fn a_dump_is_restored_for_whoever_trusts_it() {
        Trust::All.live().unwrap();
        let error = Trust::Default.live().unwrap_err();
        assert!(error.is(Code::PermissionDenied), "{error}");
        assert!(error.to_string().contains("--trust-spec"), "{error}");
    }

    #[test]
    fn of_very_many_things_the_first_are_told() {
        let many = (0..20).map(|n| format!("thing {n}")).collect();
        let given = runtime("io.containerd.runc.v2", None);
        let error = Trust::Default.judge(many, given).unwrap_err().to_string();
        assert!(error.contains("thing 7 and 12 more;"), "{error}");
    }
}
