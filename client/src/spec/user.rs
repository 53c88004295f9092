//! Users and groups as the container's own `/etc/passwd` and `/etc/group` name them.
//!
//! Invariant: the files are resolved inside the root file system (a link cannot lead out) and at
//! most [`MAX_FILE`] of each is read: both come from whoever made the image.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::json;
use types::{Error, Result};

use super::Spec;

/// Largest user or group id: runc takes no larger one.
pub const MAX_ID: u32 = 0x7fff_ffff;
/// Most of `/etc/passwd` or `/etc/group` that is read.
const MAX_FILE: u64 = 1 << 20;

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Other groups.
    pub groups: Vec<u32>,
}

/// A user as flags and image configs name it: `name`, `uid`, `name:group`, `uid:gid`, …
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    text: String,
    user: Id,
    group: Option<Id>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Id {
    Number(u32),
    Name(String),
}

impl std::str::FromStr for UserSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad =
            |why: &str| Error::invalid_argument(format_args!("invalid USER value {text:?}{why}"));
        let (user, group) = match text.split(':').collect::<Vec<_>>()[..] {
            [user] => (user, None),
            [user, group] => (user, Some(group)),
            _ => return Err(bad("")),
        };
        if user.is_empty() {
            return Err(bad(""));
        }
        let user = id(user).map_err(|why| bad(&format!(": uid {why}")))?;
        let group = group.map(id).transpose();
        let group = group.map_err(|why| bad(&format!(": gid {why}")))?;
        Ok(Self {
            text: text.to_owned(),
            user,
            group,
        })
    }
}

/// A name or a number, or what is wrong with it. What is almost a number is no name: an entry of that name
/// in an image's own file would make somebody else of it.
fn id(text: &str) -> Result<Id, &'static str> {
    if text.starts_with(|c: char| c == '_' || c.is_alphabetic()) {
        return Ok(Id::Name(text.to_owned()));
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("is neither a name nor a number");
    }
    match text.parse::<u32>() {
        Ok(number) if number <= MAX_ID => Ok(Id::Number(number)),
        _ => Err("out of range"),
    }
}

impl UserSpec {
    /// Looks the user up below `root`. A number that no entry has stands for itself.
    ///
    /// # Errors
    /// `NotFound` for a name without an entry; `InvalidArgument` for an entry out of range, a file
    /// that is too long or none.
    pub fn resolve(&self, root: &Path) -> Result<User> {
        let passwd = read(root, "/etc/passwd")?;
        let group = read(root, "/etc/group")?;
        self.look_up(&passwd, &group)
    }

    fn look_up(&self, passwd: &str, group: &str) -> Result<User> {
        let entries = || passwd.lines().filter_map(Passwd::parse);
        let entry = match &self.user {
            Id::Number(uid) => entries().find(|e| e.uid == *uid),
            Id::Name(name) => entries().find(|e| e.name == name),
        };
        let uid = match (&self.user, &entry) {
            (Id::Number(uid), _) => *uid,
            (Id::Name(_), Some(entry)) => entry.uid,
            (Id::Name(_), None) => {
                return Err(Error::not_found(format_args!(
                    "no users found: user {:?} in /etc/passwd",
                    self.text
                )));
            }
        };
        let gid = match &self.group {
            Some(Id::Number(gid)) => *gid,
            Some(Id::Name(name)) => {
                let found = group
                    .lines()
                    .filter_map(Group::parse)
                    .find(|g| g.name == name);
                let missing = || {
                    Error::not_found(format_args!(
                        "no groups found: group {name:?} in /etc/group"
                    ))
                };
                found.ok_or_else(missing)?.gid
            }
            None => entry.as_ref().map_or(0, |e| e.gid),
        };
        for id in [uid, gid] {
            if id > MAX_ID {
                return Err(Error::invalid_argument(format_args!(
                    "user {:?}: id {id} out of range",
                    self.text
                )));
            }
        }
        let name = match (&self.user, &entry) {
            (Id::Name(name), _) => Some(name.as_str()),
            (Id::Number(_), entry) => entry.as_ref().map(|e| e.name),
        };
        Ok(User {
            uid,
            gid,
            groups: supplementary(name, gid, group),
        })
    }
}

/// The primary group and those that list the user, each once.
fn supplementary(name: Option<&str>, gid: u32, group: &str) -> Vec<u32> {
    let mut groups = vec![gid];
    let Some(name) = name else {
        return groups;
    };
    for entry in group.lines().filter_map(Group::parse) {
        let listed = entry.name != name && entry.members.split(',').any(|m| m.trim() == name);
        if listed && entry.gid <= MAX_ID && !groups.contains(&entry.gid) {
            groups.push(entry.gid);
        }
    }
    groups
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl<'a> Passwd<'a> {
    /// `name:password:uid:gid:…`; lines of another form are passed over.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    /// `name:password:gid:member,member`.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|n| !n.is_empty() && !n.starts_with('#'))?;
        fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }
}

/// A missing file is an empty one.
fn read(root: &Path, path: &str) -> Result<String> {
    let found = match sys::fs::resolve_in_root(root, Path::new(path)) {
        Ok(found) => found,
        Err(e) if e.errno().is_some_and(absent) => return Ok(String::new()),
        Err(e) => return Err(e),
    };
    // Reopening through the resolved descriptor cannot follow a link any more.
    let reopen = sys::fs::fd_path(&found);
    let kind = std::fs::metadata(&reopen).map_err(|e| Error::os(format_args!("stat {path}"), e))?;
    if !kind.is_file() {
        return Err(Error::invalid_argument(format_args!(
            "{path} is not a regular file"
        )));
    }
    let file = File::open(&reopen).map_err(|e| Error::os(format_args!("open {path}"), e))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_FILE + 1).read_to_end(&mut bytes);
    read.map_err(|e| Error::os(format_args!("read {path}"), e))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::invalid_argument(format_args!(
            "{path} is longer than {MAX_FILE} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `ENOENT` or `ENOTDIR`.
fn absent(errno: i32) -> bool {
    const ENOENT: i32 = 2;
    const ENOTDIR: i32 = 20;
    matches!(errno, ENOENT | ENOTDIR)
}

impl Spec {
    /// Runs the process as `user`.
    pub fn user(&mut self, user: &User) {
        let value = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups });
        self.set(&["process", "user"], value);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

    use super::*;

    const PASSWD: &str = "\
# comment:x:1:1
root:x:0:0:root:/root:/bin/sh
web:x:33:44::/srv:/bin/sh
broken:x:a:b
0x0:x:0:0::/:
1000x:x:0:0::/:
huge:x:4294967295:1::/:
";
    const GROUP: &str =
        "root:x:0:\nweb:x:44:web\naux:x:50:other, web\nroot2:x:60:root\nbig:x:3000000000:web\n";

    fn resolve(text: &str) -> Result<User> {
        text.parse::<UserSpec>()?.look_up(PASSWD, GROUP)
    }

    #[test]
    fn names_and_numbers_are_looked_up_as_go_does() {
        for (text, uid, gid, groups) in [
            ("root", 0, 0, &[0, 60][..]),
            ("0", 0, 0, &[0, 60]),
            ("web", 33, 44, &[44, 50]),
            ("33", 33, 44, &[44, 50]),
            ("33:7", 33, 7, &[7, 50]),
            ("web:aux", 33, 50, &[50]),
            ("1000", 1000, 0, &[0]),
            ("1000:1001", 1000, 1001, &[1001]),
            ("2147483647", MAX_ID, 0, &[0]),
        ] {
            let want = User {
                uid,
                gid,
                groups: groups.to_vec(),
            };
            assert_eq!(resolve(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_user_is_refused() {
        use types::Code::{InvalidArgument, NotFound};
        for (text, code) in [
            ("", InvalidArgument),
            (":", InvalidArgument),
            (":root", InvalidArgument),
            ("a:b:c", InvalidArgument),
            ("-1", InvalidArgument),
            ("2147483648", InvalidArgument),
            ("0:4294967295", InvalidArgument),
            ("99999999999999999999", InvalidArgument),
            ("4294967296 ", InvalidArgument),
            ("0x0", InvalidArgument),
            ("1000x", InvalidArgument),
            (" root", InvalidArgument),
            ("-", InvalidArgument),
            ("root:0x0", InvalidArgument),
            ("root:", InvalidArgument),
            ("huge", InvalidArgument),
            ("nobody", NotFound),
            ("broken", NotFound),
            ("_apt", NotFound),
            ("root:nogroup", NotFound),
        ] {
            assert_eq!(resolve(text).unwrap_err().code(), code, "{text:?}");
        }
    }

    #[test]
    fn files_are_read_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(dir.path().join("secret"), "evil:x:7:7::/:\n").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("etc/passwd")).unwrap();
        let evil = "evil".parse::<UserSpec>().unwrap();
        assert!(evil.resolve(&root).unwrap_err().is_not_found());
        let number = "7".parse::<UserSpec>().unwrap().resolve(&root).unwrap();
        assert_eq!((number.uid, number.gid), (7, 0));
    }

    /// Neither is waited for, nor read to its end.
    #[test]
    fn what_is_no_file_or_has_no_end_is_refused_at_once() {
        const SPARSE: u64 = 256 << 20;
        let length = |path: &Path, length| File::create(path).unwrap().set_len(length).unwrap();
        let make = |kind, path: &Path| match kind {
            "fifo" => node(path, FileType::Fifo, 0),
            "device" => node(path, FileType::CharacterDevice, makedev(1, 5)),
            "directory" => std::fs::create_dir(path).unwrap(),
            "sparse" => length(path, SPARSE),
            _ => length(path, MAX_FILE + 1),
        };
        for name in ["passwd", "group"] {
            for kind in ["fifo", "device", "directory", "sparse", "long"] {
                let dir = tempfile::tempdir().unwrap();
                std::fs::create_dir_all(dir.path().join("etc")).unwrap();
                make(kind, &dir.path().join("etc").join(name));
                let root = dir.path().to_owned();
                let (done, told) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    let user = "root:wheel".parse::<UserSpec>().unwrap();
                    done.send(user.resolve(&root))
                });
                let told = told.recv_timeout(Duration::from_secs(60));
                let error = told.expect("it waits").unwrap_err();
                assert!(error.is(types::Code::InvalidArgument), "{kind}: {error}");
                assert!(error.to_string().contains(name), "{kind}: {error}");
            }
        }
    }

    fn node(path: &Path, kind: FileType, device: u64) {
        mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    }
}
