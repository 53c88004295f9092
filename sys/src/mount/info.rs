//! `/proc/<pid>/mountinfo`: a pure parser and its loader.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use types::{Error, Result};

use crate::error::at;

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Mount id.
    pub id: u32,
    /// Id of the mount that this one lies on.
    pub parent: u32,
    /// Directory of the file system that is the mount's root.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Propagation fields: `shared:N`, `master:N`, …
    pub optional: Vec<String>,
    /// File system type.
    pub kind: String,
    /// Source.
    pub source: String,
    /// Options of the file system.
    pub super_options: String,
}

impl MountInfo {
    /// A mount of a hierarchy of control groups, as far as finding groups in it needs.
    pub(crate) fn of_group(kind: &str, mount_point: PathBuf, super_options: &str) -> Self {
        Self {
            id: 0,
            parent: 0,
            root: PathBuf::from("/"),
            mount_point,
            options: String::new(),
            optional: Vec::new(),
            kind: kind.to_owned(),
            source: kind.to_owned(),
            super_options: super_options.to_owned(),
        }
    }
}

/// The mounts of this process.
///
/// # Errors
/// The errno of reading, `Internal` for a line of an unknown form.
pub fn load() -> Result<Vec<MountInfo>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path).map_err(|e| at("read", path, e))?;
    parse(&String::from_utf8_lossy(&text))
}

/// The mount of this process that has this id.
///
/// # Errors
/// As [`load`].
pub(super) fn of(id: u64) -> Result<Option<MountInfo>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path).map_err(|e| at("read", path, e))?;
    // The others are not looked into: there may be thousands.
    let start = format!("{id} ");
    let mut lines = text.split(|byte| *byte == b'\n');
    let Some(line) = lines.find(|line| line.starts_with(start.as_bytes())) else {
        return Ok(None);
    };
    Ok(parse(&String::from_utf8_lossy(line))?.pop())
}

/// Parses the whole text.
///
/// # Errors
/// `Internal` with the line that does not have the documented form.
pub fn parse(text: &str) -> Result<Vec<MountInfo>> {
    text.lines()
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                Error::internal(format_args!("mountinfo line {line:?} not understood"))
            })
        })
        .collect()
}

fn parse_line(line: &str) -> Option<MountInfo> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    fields.next()?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let options = fields.next()?.to_owned();
    let optional = fields
        .filter(|f| !f.is_empty())
        .map(str::to_owned)
        .collect();
    let mut rest = filesystem.splitn(3, ' ');
    Some(MountInfo {
        id,
        parent,
        root: root.into(),
        mount_point: mount_point.into(),
        options,
        optional,
        kind: rest.next()?.to_owned(),
        source: unescape(rest.next()?).to_string_lossy().into_owned(),
        super_options: rest.next().unwrap_or_default().to_owned(),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &str) -> OsString {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|d| bytes[at] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)))
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        if let Some(byte) = octal {
            out.push(byte);
            at += 4;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_lines_are_understood() {
        let text = "\
22 28 0:20 / /proc rw,nosuid shared:13 master:2 - proc proc rw
90 28 8:1 /var/lib/x /mnt/with\\040space\\134 ro,relatime - ext4 /dev/sda1 rw,errors=remount-ro
91 28 0:50 / /merged rw - overlay overlay rw,lowerdir=/a:/b
92 28 0:51 / /empty rw -  none rw
";
        let got = parse(text).unwrap();
        assert_eq!(got[0].optional, ["shared:13", "master:2"]);
        assert_eq!(got[1].mount_point, Path::new("/mnt/with space\\"));
        assert_eq!(
            (got[1].root.as_path(), got[1].options.as_str()),
            (Path::new("/var/lib/x"), "ro,relatime")
        );
        assert_eq!(got[2].super_options, "rw,lowerdir=/a:/b");
        assert_eq!((got[3].kind.as_str(), got[3].source.as_str()), ("", "none"));
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = parse("22 28 0:20 / /proc").unwrap_err();
        assert!(error.to_string().contains("0:20"), "{error}");
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(
            load()
                .unwrap()
                .iter()
                .any(|m| m.mount_point == Path::new("/"))
        );
    }
}
