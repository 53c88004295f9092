//! Bad input: a clear one-line error with its class, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::{Host, IMAGE, Output, Program, archive, bin_dir};

/// The one line that a failed client printed.
fn line(out: Output) -> String {
    let text = out.err();
    let lines: Vec<&str> = text.trim_end().lines().collect();
    assert_eq!(lines.len(), 1, "not one line: {text}");
    assert!(lines[0].starts_with("ctr: "), "{text}");
    lines[0].to_owned()
}

fn repack(from: &Path, change: &str, to: &Path) {
    let dir = tempfile::tempdir().expect("directory");
    let script = format!(
        "tar -xf {} && {change} && tar -cf {} .",
        from.display(),
        to.display()
    );
    let script = format!("cd {} && {script}", dir.path().display());
    drop(Program::new("sh").args(["-c", &script]).run().ok());
}

/// The largest blob is the layer.
const LAYER: &str = "layer=$(ls -S blobs/sha256/* | head -1)";

#[test]
fn archives_that_are_no_images() {
    let host = Host::new("bad-archive");
    let none = host.path("none.tar");
    drop(
        Program::new("tar")
            .args(["-cf", &none.to_string_lossy(), "/etc/hostname"])
            .run()
            .ok(),
    );
    let cases = [
        (
            "truncated",
            format!("{LAYER} && head -c 5000 $layer > x && mv x $layer"),
        ),
        (
            "flipped",
            format!("{LAYER} && printf x | dd of=$layer bs=1 seek=4000 conv=notrunc 2>/dev/null"),
        ),
        ("no index", "rm index.json".to_owned()),
        ("index is no json", "echo nonsense > index.json".to_owned()),
    ];
    let error = line(host.ctr(["images", "import", &none.to_string_lossy()]));
    assert!(error.contains("unrecognized image format"), "{error}");
    for (name, change) in cases {
        let path = host.path("bad.tar");
        repack(&archive(), &change, &path);
        let error = line(host.ctr(["images", "import", &path.to_string_lossy()]));
        let classes = [
            "failed precondition",
            "invalid argument",
            "not found",
            "unrecognized",
        ];
        assert!(classes.iter().any(|c| error.contains(c)), "{name}: {error}");
    }
    let missing = line(host.ctr(["images", "import", "/no/such/file"]));
    assert!(missing.contains("no such file"), "{missing}");
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), "");
    assert_eq!(host.ctr(["snapshots", "ls"]).ok().lines().count(), 1);
    host.finish();
}

/// Layers that are archives, and would do harm.
#[test]
fn hostile_layers_leave_nothing_of_their_image() {
    let host = Host::new("bad-layers");
    let long = "n".repeat(10_000);
    let name = |to: &str| format!("echo x >f; tar -P --transform 's,^f$,{to},' -cf $OUT f");
    let cases = [
        (
            "a hard link to outside",
            "echo x >f; ln f g; tar -P --transform 'flags=h;s,^f$,../../../../etc/passwd,' -cf $OUT f g"
                .to_owned(),
        ),
        ("a whiteout of the root", name(".wh.")),
        ("a whiteout of what is above", name(".wh...")),
        ("a name of 10,000 bytes", name(&long)),
        (
            "a file for a directory",
            "echo x >f; tar -cf $OUT f; tar -P --transform 's,^f$,f/f,' -rf $OUT f".to_owned(),
        ),
    ];
    for (what, script) in cases {
        let layout = host.path("hostile");
        let [tree, out, image] =
            ["hostile-tree", "hostile.tar", "image.tar"].map(|name| host.path(name));
        fs::create_dir(&tree).expect("make the tree");
        let script = format!("set -e; cd {}; {script}", tree.display());
        let pack = Program::new("bash").args(["-c", &script]).env("OUT", &out);
        drop(pack.run().ok());
        let hostile = fs::read(&out).expect("read");
        // One that is fine lies below it: nothing of that stays either.
        let fine = crate::layout::archive(&host.path(""), &[("fine", b"fine".to_vec())]);
        let layers = vec![fine, hostile];
        let architecture = types::Platform::host().architecture;
        let _bytes = crate::layout::of(&layout, "{}", &architecture, layers);
        let made = Program::new("tar").args(["-C"]).args([&layout]);
        drop(made.args(["-cf"]).args([&image]).args(["."]).run().ok());
        for flags in [&[][..], &["--local"]] {
            let import = host.ctr_program().args(["images", "import"]).args(flags);
            let error = line(import.args([&image]).run());
            assert!(error.contains("invalid argument"), "{what}: {error}");
            integration::until("no snapshot is left", || {
                host.ctr(["snapshots", "ls"]).ok().lines().count() == 1
            });
        }
        for path in [&tree, &layout] {
            fs::remove_dir_all(path).expect("remove");
        }
    }
    host.finish();
}

#[test]
fn names_that_cannot_be() {
    let host = Host::new("bad-names");
    host.image();
    for id in ["a/b", "..", "../x", "a..b", "-", "x y"] {
        let out = host.ctr(["run", "--rm", IMAGE, "--", id, "true"]);
        assert_ne!(out.code, 0, "{id}");
    }
    let slash = line(host.ctr(["run", "--rm", IMAGE, "a/b", "true"]));
    assert!(slash.contains("invalid argument"), "{slash}");
    for unknown in [
        vec!["containers", "info", "nobody"],
        vec!["tasks", "kill", "nobody"],
        vec!["tasks", "exec", "--exec-id", "e", "nobody", "true"],
        vec!["run", "--rm", "example.test/none:1", "x", "true"],
        vec!["content", "get", &format!("sha256:{}", "0".repeat(64))],
        vec!["images", "label", "example.test/none:1", "a=b"],
    ] {
        let error = line(host.ctr(&unknown));
        assert!(error.contains("not found"), "{unknown:?}: {error}");
    }
    let digest = line(host.ctr(["content", "get", "sha256:../../etc/passwd"]));
    assert!(digest.contains("invalid"), "{digest}");
    let namespace = Program::new(bin_dir().join("ctr"))
        .args([
            "--address",
            &host.address().to_string_lossy(),
            "-n",
            "a/b",
            "containers",
            "ls",
        ])
        .run();
    assert!(line(namespace).contains("invalid argument"));
    assert_eq!(host.ctr(["snapshots", "ls"]).ok().lines().count(), 2);
    host.finish();
}

#[test]
fn runtimes_and_commands_that_do_not_exist() {
    let host = Host::new("bad-runtime");
    host.image();
    let runtime = [
        "run",
        "--rm",
        "--runtime",
        "io.containerd.none.v1",
        IMAGE,
        "x",
        "true",
    ];
    let error = line(host.ctr(runtime));
    assert!(error.contains("containerd-shim-none-v1"), "{error}");
    let binary = [
        "run",
        "--rm",
        "--runc-binary",
        "/no/such/runc",
        IMAGE,
        "x",
        "true",
    ];
    let error = line(host.ctr(binary));
    assert!(
        error.contains("/no/such/runc") && error.contains("no such file"),
        "{error}"
    );
    let command = line(host.ctr(["run", "--rm", IMAGE, "x", "/no/such/command"]));
    assert!(command.contains("/no/such/command"), "{command}");
    // The id is free, the snapshot too.
    assert_eq!(host.run(&["--rm"], "x", &["echo", "fine"]).ok(), "fine\n");
    assert_eq!(host.ctr(["snapshots", "ls"]).ok().lines().count(), 2);
    host.finish();
}

/// The daemon must end by itself, at once, with one line.
fn refused(mut command: Command) -> String {
    let out = command.output().expect("start the daemon");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success(),
        "it should have refused to start: {text}"
    );
    let errors: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("containerd: "))
        .collect();
    assert_eq!(errors.len(), 1, "{text}");
    errors[0].to_owned()
}

fn daemon(dir: &Path, address: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.arg("60").arg(bin_dir().join("containerd"));
    command
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--state")
        .arg(dir.join("state"));
    command.arg("--address").arg(address);
    command
}

#[test]
fn daemons_that_cannot_start() {
    let host = Host::new("bad-daemon");
    let other = tempfile::tempdir().expect("directory");
    let used = refused(daemon(other.path(), &host.address()));
    assert!(
        used.contains("c.sock") && used.contains("another daemon"),
        "{used}"
    );
    let root = refused(daemon(host.dir(), &other.path().join("x.sock")));
    assert!(root.contains(&*host.root().to_string_lossy()), "{root}");
    let file = other.path().join("file");
    fs::write(&file, "").expect("write");
    let unwritable = refused(daemon(&file, &other.path().join("y.sock")));
    assert!(unwritable.contains("not a directory"), "{unwritable}");
    let mut config = daemon(other.path(), &other.path().join("z.sock"));
    config.args(["--config", "/no/such/config.toml"]);
    assert!(refused(config).contains("/no/such/config.toml"));
    let bad = other.path().join("bad.toml");
    fs::write(&bad, "version = 2\n[grpc]\nuid = \"nobody\"\n").expect("write");
    let mut config = daemon(other.path(), &other.path().join("z.sock"));
    config.arg("--config").arg(&bad);
    assert!(refused(config).contains("bad.toml"));
    // The first daemon did not notice.
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), "");
    host.finish();
}
