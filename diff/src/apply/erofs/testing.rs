//! Images for tests, as Debian's `mkfs.erofs` makes them of a directory.

use std::path::Path;

use sys::process::Spawn;

/// The image of a directory that `fill` fills.
pub(crate) fn image(fill: impl FnOnce(&Path)) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| temp.path().join(name));
    std::fs::create_dir(&from).unwrap();
    fill(&from);
    let mkfs = Spawn::new(super::MKFS).args(["--quiet", "-d2"]);
    let said = mkfs
        .arg(&to)
        .arg(&from)
        .output(&[], 1 << 16, std::time::Duration::from_secs(60));
    let said = said.unwrap();
    assert!(said.status.is_success(), "{said:?}");
    std::fs::read(&to).unwrap()
}
