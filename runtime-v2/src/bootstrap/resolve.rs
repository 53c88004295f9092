//! From a runtime's name to the shim's binary.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use types::{Error, Result};

/// Finds the binary of a runtime: an absolute path means itself; a name like `io.containerd.runc.v2`
/// means `containerd-shim-runc-v2` in `PATH`, then next to the daemon's own binary.
///
/// # Errors
/// `InvalidArgument` for a name that can mean no binary, `NotFound` when there is none.
pub(crate) fn resolve(runtime: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent);
    resolve_in(runtime, beside)
}

fn resolve_in(runtime: &str, beside: Option<&Path>) -> Result<PathBuf> {
    if runtime.starts_with('/') {
        let path = PathBuf::from(runtime);
        return if is_executable(&path) {
            Ok(path)
        } else {
            Err(not_installed(runtime, runtime))
        };
    }
    let name = binary_name(runtime)?;
    if let Ok(found) = sys::process::find(name.as_ref()) {
        return Ok(found);
    }
    let candidate = beside.map(|dir| dir.join(&name));
    candidate
        .filter(|path| is_executable(path))
        .ok_or_else(|| not_installed(runtime, &name))
}

fn not_installed(runtime: &str, binary: &str) -> Error {
    Error::not_found(format_args!(
        "runtime {runtime:?} binary not installed {binary:?}"
    ))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The last two parts of a runtime's name make the binary's.
fn binary_name(runtime: &str) -> Result<String> {
    let invalid = || {
        Error::invalid_argument(format_args!(
            "invalid runtime name {runtime:?}, correct runtime name should be either format like \
             `io.containerd.runc.v2` or a full path to the binary"
        ))
    };
    if runtime.contains(['/', '\0']) {
        return Err(invalid());
    }
    let mut parts = runtime.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some(version), Some(name)) if !version.is_empty() && !name.is_empty() => {
            Ok(format!("containerd-shim-{name}-{version}"))
        }
        _ => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn the_last_two_parts_make_the_name() {
        for (runtime, binary) in [
            ("io.containerd.runc.v2", "containerd-shim-runc-v2"),
            ("runc.v2", "containerd-shim-runc-v2"),
            ("a.b.c.kata-qemu.v2", "containerd-shim-kata-qemu-v2"),
        ] {
            assert_eq!(binary_name(runtime).unwrap(), binary);
        }
    }

    #[test]
    fn names_that_can_mean_no_binary_are_refused() {
        for runtime in [
            "",
            "runc",
            "runc.",
            ".v2",
            "bin/runc.v2",
            "../x.v2",
            "a.b\0",
        ] {
            let error = resolve_in(runtime, None).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{runtime:?}: {error}");
        }
    }

    #[test]
    fn absolute_paths_mean_themselves() {
        assert_eq!(resolve_in("/bin/sh", None).unwrap(), Path::new("/bin/sh"));
        for missing in ["/no/such/shim", "/etc/passwd", "/"] {
            assert!(resolve_in(missing, None).unwrap_err().is_not_found());
        }
    }

    #[test]
    fn the_daemons_own_directory_comes_after_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("containerd-shim-ours-v9");
        let missing = resolve_in("x.ours.v9", Some(dir.path())).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "runtime \"x.ours.v9\" binary not installed \"containerd-shim-ours-v9\": not found"
        );
        std::fs::write(&binary, "").unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(resolve_in("x.ours.v9", Some(dir.path())).unwrap(), binary);
    }
}
