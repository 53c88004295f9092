//! What is installed on a machine: the unit is one that systemd understands, and the Debian package
//! installs, runs and goes without a trace.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use integration::{Output, Program, bin_dir, need, script, until};

/// A file of the repository.
fn ours(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

#[test]
fn the_unit_file_is_one() {
    let dir = tempfile::tempdir().expect("make a directory");
    let text = fs::read_to_string(ours("scripts/containerd.service")).expect("a unit");
    let binary = bin_dir().join("containerd");
    let text = text.replace("@PREFIX@/bin/containerd", &binary.display().to_string());
    let unit = dir.path().join("containerd.service");
    let verify = |text: &str| {
        fs::write(&unit, text).expect("write");
        Program::new(need("systemd-analyze"))
            .args(["verify"])
            .args([&unit])
            .run()
    };
    let told = verify(&text);
    assert_eq!((told.code, told.stderr.as_str()), (0, ""));
    // It would say so.
    let told = verify(&text.replace("Type=notify", "Type=notifies\nNonsense=yes"));
    assert!(told.stderr.contains("Nonsense"), "{told:?}");
    assert_eq!(settings(&text), SETTINGS);
}

/// What the unit asks systemd for, each with somebody who stands on it: the watchdog and the notices that the
/// daemon sends, shims and containers that outlive it, cgroups that are theirs, limits that are none, and an
/// end that comes late when memory runs out.
const SETTINGS: [&str; 17] = [
    "Delegate=yes",
    "ExecReload=/bin/kill -HUP $MAINPID",
    "ExecStartPre=-/sbin/modprobe overlay",
    "KeyringMode=private",
    "KillMode=process",
    "LimitCORE=infinity",
    "LimitNOFILE=infinity",
    "LimitNPROC=infinity",
    "NotifyAccess=main",
    "OOMPolicy=continue",
    "OOMScoreAdjust=-999",
    "Restart=always",
    "RestartPreventExitStatus=2 78",
    "RestartSec=2",
    "TasksMax=infinity",
    "Type=notify",
    "WatchdogSec=60",
];

/// The lines of the service's section but for its program, in order. What binds containers as well as the
/// daemon must not come in without a thought.
fn settings(unit: &str) -> Vec<&str> {
    let (_, section) = unit.split_once("[Service]\n").expect("a service");
    let (section, _) = section.split_once("\n[").expect("another section");
    let lines = section.lines().filter(|line| {
        !line.is_empty() && !line.starts_with('#') && !line.starts_with("ExecStart=")
    });
    let mut lines: Vec<_> = lines.collect();
    lines.sort_unstable();
    lines
}

/// `make install` with binaries that are there already.
fn make(target: &str, destination: &Path) {
    let made = Program::new(need("make"))
        .args(["-C"])
        .args([ours("")])
        .args(["-o", "deps-build", "-o", "binaries-release", target])
        .args([format!("DESTDIR={}", destination.display())])
        .args([format!("RELEASE={}", bin_dir().display())])
        // Nothing is built here.
        .args(["PREFIX=/opt/containerd", "CARGO=true"]);
    drop(made.run().ok());
}

#[test]
fn make_install_puts_what_is_used_below_destdir_and_uninstall_takes_it_away() {
    let dir = tempfile::tempdir().expect("make a directory");
    let root = dir.path().join("machine");
    make("install", &root);
    let prefix = root.join("opt/containerd");
    assert_eq!(
        files(&root),
        [
            "opt/containerd/bin/containerd",
            "opt/containerd/bin/containerd-shim-runc-v2",
            "opt/containerd/bin/ctr",
            "opt/containerd/lib/systemd/system/containerd.service",
        ]
    );
    for name in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        let mode = fs::metadata(prefix.join("bin").join(name)).expect("stat");
        assert_eq!(mode.permissions().mode() & 0o7777, 0o755, "{name}");
    }
    let unit = prefix.join("lib/systemd/system/containerd.service");
    let unit = fs::read_to_string(unit).expect("a unit");
    let line = "ExecStart=/opt/containerd/bin/containerd\n";
    assert!(unit.contains(line) && !unit.contains('@'), "{unit}");
    assert_eq!(settings(&unit), SETTINGS);
    it_runs(&prefix.join("bin"), dir.path());
    make("uninstall", &root);
    assert_eq!(files(&root), Vec::<String>::new());
}

/// dpkg on a directory instead of the machine.
fn dpkg(root: &Path, args: &[&str]) -> Output {
    Program::new(need("dpkg"))
        .args(["--force-script-chrootless", "--force-depends"])
        .args([format!("--root={}", root.display())])
        .args([format!("--log={}", root.join("dpkg.log").display())])
        .args(args)
        .run()
}

/// All files below, but for dpkg's own.
fn files(root: &Path) -> Vec<String> {
    let found = Program::new("find")
        .args([root])
        .args(["-type", "f", "-printf", "%P\n"])
        .run()
        .ok();
    let is_dpkg = |name: &&str| name.starts_with("var/lib/dpkg/") || *name == "dpkg.log";
    let mut names: Vec<_> = found
        .lines()
        .filter(|n| !is_dpkg(n))
        .map(str::to_owned)
        .collect();
    names.sort();
    names
}

#[test]
fn the_package_installs_starts_and_goes_without_a_trace() {
    let dir = tempfile::tempdir().expect("make a directory");
    let made = Program::new(ours("scripts/deb"))
        // Binaries of developers are large, and this one is read once.
        .env("DEB_FLAGS", "-Znone")
        .args([bin_dir()])
        .args([dir.path()])
        .run()
        .ok();
    let package = made.trim();
    let info = Program::new(need("dpkg-deb"))
        .args(["--info", package])
        .run()
        .ok();
    for line in [
        "Package: containerd-rs",
        "Provides: containerd (= ",
        "Conflicts: containerd",
    ] {
        assert!(info.contains(line), "{info}");
    }
    let root = dir.path().join("machine");
    for directory in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        fs::create_dir_all(root.join(directory)).expect("mkdir");
    }
    for file in ["status", "available"] {
        fs::write(root.join("var/lib/dpkg").join(file), "").expect("write");
    }
    drop(dpkg(&root, &["-i", package]).ok());
    assert_eq!(
        files(&root),
        [
            "lib/systemd/system/containerd.service",
            "usr/bin/containerd",
            "usr/bin/containerd-shim-runc-v2",
            "usr/bin/ctr",
            "usr/share/doc/containerd-rs/copyright",
            "usr/share/doc/containerd-rs/upgrade.md",
        ]
    );
    let unit = root.join("lib/systemd/system/containerd.service");
    let unit = fs::read_to_string(unit).expect("a unit");
    assert!(unit.contains("ExecStart=/usr/bin/containerd\n"), "{unit}");
    it_runs(&root.join("usr/bin"), dir.path());
    an_upgrade_that_fails_is_no_success(package, dir.path());
    // Twice is an upgrade.
    drop(dpkg(&root, &["-i", package]).ok());
    drop(dpkg(&root, &["-r", "containerd-rs"]).ok());
    drop(dpkg(&root, &["-P", "containerd-rs"]).ok());
    assert_eq!(files(&root), Vec::<String>::new());
}

/// A `systemctl` that shows what its files say, and does with a signal what the test wants.
const SYSTEMCTL: &str = r#"#!/bin/sh
case "$*" in
*MainPID*) echo "MainPID=$(cat "$FAKE/pid")" ;;
*ActiveState*)
    echo "ActiveState=$(head -n 1 "$FAKE/states")"
    # The next state for the next time, the last one for ever.
    [ "$(wc -l <"$FAKE/states")" -le 1 ] || sed -i 1d "$FAKE/states"
    ;;
kill*) echo "$*" >>"$FAKE/done"; cat "$FAKE/next" >"$FAKE/pid" ;;
esac
"#;

/// One that only notes what it was asked.
const NOTES: &str = "#!/bin/sh\necho \"$(basename \"$0\") $*\" >>\"$FAKE/done\"\n";

/// Runs the package's script as on a machine with systemd; what it says, and what it did.
fn postinst(scripts: &Path, words: &str, next: &str, states: &str) -> (Output, String) {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        if text.starts_with("#!") {
            drop(script(&path, text));
        } else {
            fs::write(path, text).expect("write");
        }
    };
    for (name, text) in [
        ("systemctl", SYSTEMCTL),
        ("deb-systemd-invoke", NOTES),
        ("deb-systemd-helper", NOTES),
        // Nothing here takes its time.
        ("sleep", "#!/bin/sh\n"),
        ("pid", "7\n"),
        ("next", next),
        ("states", states),
        ("done", ""),
    ] {
        file(name, text);
    }
    // In a mount namespace of its own, where systemd seems to run.
    let line = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec {} {words}",
        scripts.join("postinst").display()
    );
    let path = std::env::var("PATH").unwrap_or_default();
    let told = Program::new("unshare")
        .args(["-m", "sh", "-c", &line])
        .env("FAKE", dir.path())
        .env("PATH", format!("{}:{path}", dir.path().display()))
        .run();
    let done = fs::read_to_string(dir.path().join("done")).expect("notes");
    (told, done)
}

/// The scripts tell the truth about the daemon that runs.
fn an_upgrade_that_fails_is_no_success(package: &str, dir: &Path) {
    let scripts = dir.join("scripts");
    let unpack = Program::new(need("dpkg-deb"))
        .args(["--control", package])
        .args([&scripts]);
    drop(unpack.run().ok());
    let (told, done) = postinst(&scripts, "configure 1.0", "8\n", "reloading\n");
    assert_eq!(told.code, 0, "{told:?}");
    assert!(done.contains("kill --signal=USR2"), "{done}");
    // The one that goes on tells systemd so; one that hangs does not.
    for states in ["reloading\nactive\n", "reloading\n", "active\n", "failed\n"] {
        let (told, _) = postinst(&scripts, "configure 1.0", "7\n", states);
        assert_eq!(told.code, 1, "{states}: {told:?}");
        assert!(told.stderr.contains("which goes on"), "{told:?}");
    }
    for words in ["configure ''", "abort-remove"] {
        let (told, done) = postinst(&scripts, words, "7\n", "inactive\n");
        assert_eq!(told.code, 0, "{told:?}");
        let start = "deb-systemd-invoke start containerd.service";
        assert!(done.contains(start) && !done.contains("USR2"), "{done}");
    }
}

/// The daemon that was installed answers the client that was installed.
fn it_runs(bin: &Path, dir: &Path) {
    let address = dir.join("c.sock");
    fs::write(dir.join("c.toml"), "version = 3\n").expect("write");
    let mut daemon = std::process::Command::new(bin.join("containerd"))
        .args(["-l", "error", "-c"])
        .arg(dir.join("c.toml"))
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--state")
        .arg(dir.join("state"))
        .arg("--address")
        .arg(&address)
        .spawn()
        .expect("start the daemon");
    let ctr = || {
        let ctr = Program::new(bin.join("ctr"))
            .args(["--address"])
            .args([&address]);
        ctr.args(["version"]).run().code
    };
    until("the daemon answers", || ctr() == 0);
    daemon.kill().expect("kill");
    daemon.wait().expect("wait");
}
