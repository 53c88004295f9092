//! What the daemon says that it is.

/// Version, as `Version.Version` answers it.
pub(crate) const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
/// Revision of the sources, when the build knew it.
pub(crate) const REVISION: &str = match option_env!("CONTAINERD_REVISION") {
    Some(revision) => revision,
    None => "",
};
/// What `--version` prints after the program's name: package, version.
pub(crate) const LINE: &str = concat!("containerd v", env!("CARGO_PKG_VERSION"));
