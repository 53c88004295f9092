//! The bare runtime on the same bundle: the floor. It is started as the shim starts it, without the
//! cost of copying a large process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use sys::process::Spawn;

use crate::group::Group;
use crate::life::Life;
use crate::spec;

/// The bare runtime, with a place for its bundles.
#[derive(Debug)]
pub(crate) struct Raw {
    dir: PathBuf,
    rootfs: PathBuf,
    /// The bench itself is in it: what its threads do for the runtime is the floor's.
    pub(crate) group: Group,
}

/// As long as it lives, processes that lose their parent become the bench's children.
#[derive(Debug)]
pub(crate) struct Adopting;

impl Adopting {
    pub(crate) fn start() -> Self {
        let yes = rustix::process::Pid::from_raw(1);
        rustix::process::set_child_subreaper(yes).expect("subreaper");
        Self
    }
}

impl Drop for Adopting {
    fn drop(&mut self) {
        let _same = rustix::process::set_child_subreaper(None);
    }
}

impl Raw {
    pub(crate) fn new(dir: &Path) -> Self {
        let group = Group::make("raw");
        group.join("bench", std::process::id());
        Self {
            dir: dir.to_owned(),
            rootfs: spec::rootfs(dir),
            group,
        }
    }

    /// Runs a container whose output goes into a plain pipe, and hands the other end to `read`.
    pub(crate) fn piped<T>(&self, binary: &Path, args: &[&str], read: fn(fs::File) -> T) -> T {
        let (bundle, root) = (self.dir.join("b-piped"), self.dir.join("raw"));
        self.bundle(&bundle, args, "piped");
        let (ours, theirs) = sys::pipe::new().expect("a pipe");
        let spawn = Spawn::new(binary).arg("--root").arg(root);
        let spawn = spawn.arg("run").arg("--bundle").arg(&bundle).arg("piped");
        let child = spawn.stdout(theirs).spawn().expect("run the runtime");
        let result = read(ours.into());
        assert!(child.wait().expect("wait").is_success(), "the container");
        fs::remove_dir_all(&bundle).expect("remove the bundle");
        result
    }

    fn bundle(&self, bundle: &Path, args: &[&str], id: &str) {
        fs::create_dir(bundle).expect("make the bundle");
        let group = format!("/{}/{id}", self.group.name());
        let text = spec::container(args, &self.rootfs.to_string_lossy(), &group);
        fs::write(bundle.join("config.json"), text.to_string()).expect("write the spec");
    }

    /// create, start, wait, delete without any daemon. An [`Adopting`] must be alive.
    pub(crate) fn life(&self, binary: &Path, id: &str) -> Life {
        let (bundle, root) = (self.dir.join(format!("b-{id}")), self.dir.join("raw"));
        let begin = Instant::now();
        self.bundle(&bundle, &["/bin/true"], id);
        let (bundle_text, pid_file) = (bundle.to_string_lossy(), bundle.join("pid"));
        let pid_text = pid_file.to_string_lossy();
        let create = [
            "create",
            "--bundle",
            &bundle_text,
            "--pid-file",
            &pid_text,
            id,
        ];
        run(binary, &root, &create);
        let pid = fs::read_to_string(&pid_file).expect("pid file");
        let init = sys::pidfd::open(pid.trim().parse().expect("a pid")).expect("the init");
        run(binary, &root, &["start", id]);
        let running = begin.elapsed();
        sys::pidfd::wait(&init).expect("wait");
        run(binary, &root, &["delete", id]);
        fs::remove_dir_all(&bundle).expect("remove the bundle");
        Life {
            running,
            whole: begin.elapsed(),
            laps: Vec::new(),
        }
    }
}

/// Runs the runtime once; it must succeed.
pub(crate) fn run(binary: &Path, root: &Path, args: &[&str]) {
    let spawn = Spawn::new(binary).arg("--root").arg(root).args(args);
    let child = spawn.spawn().expect("run the runtime");
    let status = child.wait().expect("wait");
    assert!(status.is_success(), "{} {args:?}", binary.display());
}
