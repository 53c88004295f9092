//! What kind of disk a path is on.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{major, minor};

/// Whether `path` is on a disk that turns, as far as the kernel knows: it takes many a virtual disk for
/// one, and file systems over several disks have none that it could ask.
#[must_use]
pub fn turns(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| device_turns(Path::new("/sys"), found.dev()))
}

fn device_turns(sys: &Path, device: u64) -> bool {
    let device = format!("dev/block/{}:{}", major(device), minor(device));
    let device = sys.join(device);
    // The second one is of the disk that a partition is on.
    let told = ["queue/rotational", "../queue/rotational"];
    let told = told.map(|name| std::fs::read_to_string(device.join(name)));
    told.iter().flatten().any(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;

    #[test]
    fn a_partition_turns_when_its_disk_does() {
        let sys = tempfile::tempdir().unwrap();
        let make = |disk: &str, minor: u32, turns: &str| {
            let path = sys.path().join("devices").join(disk);
            std::fs::create_dir_all(path.join("queue")).unwrap();
            std::fs::create_dir_all(path.join("part")).unwrap();
            std::fs::write(path.join("queue/rotational"), turns).unwrap();
            let devices = sys.path().join("dev/block");
            std::fs::create_dir_all(&devices).unwrap();
            std::os::unix::fs::symlink(&path, devices.join(format!("8:{minor}"))).unwrap();
            let part = devices.join(format!("8:{}", minor + 1));
            std::os::unix::fs::symlink(path.join("part"), part).unwrap();
        };
        make("turning", 0, "1\n");
        make("flash", 16, "0\n");
        for (minor, want) in [(0, true), (1, true), (16, false), (17, false), (32, false)] {
            let found = device_turns(sys.path(), makedev(8, minor));
            assert_eq!(found, want, "8:{minor}");
        }
        assert!(!turns(Path::new("/proc")));
    }
}
