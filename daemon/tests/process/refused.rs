//! Daemons that cannot start: the reason in one line, and a code for scripts.

use std::os::unix::net::UnixStream;
use std::path::Path;

use sys::process::{Spawn, Status};

use super::{BINARY, Daemon, SOON, run};

/// Tries to start one with this configuration, root, state and socket; exit status and what it said.
fn refused(config: &Path, root: &Path, state: &Path, sock: &Path) -> (Status, String) {
    let flag = Path::new;
    let (status, text) = run(&[
        flag("-l"),
        flag("error"),
        flag("-c"),
        config,
        flag("--root"),
        root,
        flag("--state"),
        state,
        flag("-a"),
        sock,
    ]);
    assert!(text.starts_with("containerd: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    (status, text)
}

#[test]
fn what_another_daemon_has_is_named_at_once() {
    let living = Daemon::start();
    let free = tempfile::tempdir().unwrap();
    let at = |name: &str| free.path().join(name);
    let good = at("good.toml");
    std::fs::write(&good, "version = 2\n").unwrap();
    let (theirs, in_use) = (
        |name: &str| living.path(name),
        "is in use by another containerd",
    );
    for (root, state, sock, part) in [
        (theirs("root"), at("state"), at("c.sock"), in_use),
        (at("root"), theirs("state"), at("c.sock"), in_use),
        (
            at("root"),
            at("state"),
            theirs("c.sock"),
            "another daemon is serving at",
        ),
    ] {
        let (status, text) = refused(&good, &root, &state, &sock);
        assert_eq!(status, Status::Exited(75), "{text}");
        assert!(text.contains(part), "{part}: {text}");
        assert!(!at("c.sock").exists(), "{part}");
    }
    UnixStream::connect(living.path("c.sock")).unwrap();
    assert_eq!(living.child.try_wait().unwrap(), None);
}

/// The other sockets of a daemon are as good as the main one, and so is the code.
#[test]
fn what_another_daemon_has_of_its_other_sockets_is_named_as_well() {
    let living = Daemon::configured(|path| {
        format!("[debug]\naddress = '{}'\n", path("debug.sock").display())
    });
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let (theirs, served) = (
        |name: &str| living.path(name).display().to_string(),
        "another daemon is serving at",
    );
    for (section, part) in [
        (
            format!("[debug]\naddress = '{}'", theirs("debug.sock")),
            served,
        ),
        (
            format!("[ttrpc]\naddress = '{}'", theirs("c.sock.ttrpc")),
            served,
        ),
        (
            format!("[debug]\naddress = 'unix://{}'", theirs("c.sock")),
            served,
        ),
        (
            format!("[metrics]\naddress = '{port}'"),
            "another process is serving at 127.0.0.1:",
        ),
    ] {
        let free = tempfile::tempdir().unwrap();
        let at = |name: &str| free.path().join(name);
        std::fs::write(at("c.toml"), format!("version = 2\n{section}\n")).unwrap();
        let (status, text) = refused(&at("c.toml"), &at("root"), &at("state"), &at("c.sock"));
        assert_eq!(status, Status::Exited(75), "{section}: {text}");
        assert!(text.contains(part), "{part}: {text}");
        assert!(!at("c.sock").exists(), "{section}");
    }
    for name in ["debug.sock", "c.sock", "c.sock.ttrpc"] {
        UnixStream::connect(living.path(name)).unwrap();
    }
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let free = tempfile::tempdir().unwrap();
    let at = |name: &str| free.path().join(name);
    let write = |name: &str, text: &str| std::fs::write(at(name), text).unwrap();
    write("file", "");
    write("good.toml", "version = 2\n");
    write("bad.toml", "version = 2\nroot = 5\n");
    write("syntax.toml", "version = 2\nroot = '/x\n");
    write("new.toml", "version = 9\n");
    let long = "x".repeat(110);
    write(
        "long.toml",
        &format!("version = 2\n[debug]\nlevel = 'info'\naddress = '/{long}'\n"),
    );
    write(
        "cri.toml",
        "version = 2\nrequired_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
    );
    for (code, config, root, sock, part) in [
        (1, "good.toml", "file/root", "c.sock", "not a directory"),
        (1, "good.toml", "/proc/root", "c.sock", "mkdir /proc/root"),
        (1, "cri.toml", "root", "c.sock", "required plugin"),
        (
            78,
            "good.toml",
            "state",
            "c.sock",
            "root and state must be different paths",
        ),
        (
            78,
            "none.toml",
            "root",
            "c.sock",
            "no such file or directory",
        ),
        (
            78,
            "bad.toml",
            "root",
            "c.sock",
            "bad.toml: line 2: root: invalid type",
        ),
        (78, "syntax.toml", "root", "c.sock", "syntax.toml: line 2: "),
        (
            78,
            "new.toml",
            "root",
            "c.sock",
            "new.toml: line 1: unsupported config version 9",
        ),
        (78, "good.toml", "root", &long, "is longer than 106 bytes"),
        (
            78,
            "long.toml",
            "root",
            "c.sock",
            "long.toml: line 4: debug address",
        ),
    ] {
        let (status, text) = refused(&at(config), &at(root), &at("state"), &at(sock));
        assert_eq!(status, Status::Exited(code), "{text}");
        assert!(text.contains(part), "{part}: {text}");
        assert!(!at("c.sock").exists(), "{part}");
    }
}

#[test]
fn a_disk_that_cannot_be_written_is_named_with_a_code_of_its_own() {
    let full = "cat /dev/zero >fill 2>/dev/null";
    for (options, fill, said, (root, state)) in [
        ("ro", "true", "mkdir", ("disk/root", "state")),
        ("ro", "true", "mkdir", ("root", "disk/state")),
        // Room for directories and for nothing in them: all that the state needs before there is a container.
        (
            "size=4k",
            full,
            "no space left on device",
            ("disk/root", "state"),
        ),
    ] {
        let free = tempfile::tempdir().unwrap();
        let disk = free.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        std::fs::write(free.path().join("c.toml"), "version = 2\n").unwrap();
        let script = format!(
            "cd {0} && mount -t tmpfs -o {options} none disk && (cd disk; {fill}; true) && \
             exec {BINARY} -l error -c c.toml --root {root} --state {state} -a c.sock",
            free.path().display()
        );
        let output = Spawn::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .output(b"", 1 << 20, SOON)
            .unwrap();
        let text = String::from_utf8(output.text).unwrap();
        assert_eq!(output.status, Status::Exited(73), "{text}");
        assert!(text.contains(said) && text.contains("disk/"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!free.path().join("c.sock").exists());
    }
}
