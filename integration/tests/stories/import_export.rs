//! Import and export: archives that others read, over files and pipes.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use integration::{Host, IMAGE, Oci, Whose, bin_dir, until};

use crate::push::{digest, inspect};

#[test]
fn others_read_what_we_export_and_digests_stay() {
    let host = Host::new("export");
    host.image();
    let want = digest(&host, IMAGE);
    let files = ["there.tar", "here.tar"].map(|name| host.path(name));
    for (flags, file) in [(&[][..], &files[0]), (&["--local"], &files[1])] {
        let export = host.ctr_program().args(["images", "export"]).args(flags);
        drop(export.args([file.as_os_str(), IMAGE.as_ref()]).run().ok());
        assert_eq!(inspect(&format!("oci-archive:{}", file.display())), want);
    }
    let data = files
        .each_ref()
        .map(|file| std::fs::read(file).expect("read"));
    assert!(data[0] == data[1], "both ways give the same archive");
    let debian = Host::mixed("export-debian", Oci::Runc, Whose::Debian, Whose::Debian);
    let import = debian.go_ctr_program().args(["images", "import"]);
    drop(import.args([&files[0]]).run().ok());
    assert!(debian.go_ctr(["images", "ls"]).ok().contains(&want));
    debian.finish();
    drop(host.ctr(["images", "rm", "--sync", IMAGE]).ok());
    let import = host.ctr_program().args(["images", "import"]);
    let told = import.args([&files[0]]).run().ok();
    assert!(told.contains(&format!("{IMAGE}: saved")), "{told}");
    assert!(told.contains("Completed import"), "{told}");
    assert_eq!(digest(&host, IMAGE), want);
    let out = host.ctr(["run", "--rm", IMAGE, "x", "echo", "back"]).ok();
    assert_eq!(out, "back\n");
    host.finish();
}

#[test]
fn an_image_goes_through_a_pipe() {
    let host = Host::new("export-pipe");
    host.image();
    let want = digest(&host, IMAGE);
    let ctr = |args: &[&str]| {
        let mut command = Command::new(bin_dir().join("ctr"));
        command.arg("--address").arg(host.address());
        command.args(["-n", host.namespace()]).args(args);
        command
    };
    for local in [None, Some("--local")] {
        let mut export = vec!["images", "export"];
        export.extend(local);
        export.extend(["-", IMAGE]);
        let mut import = vec!["images", "import", "--base-name", "piped", "--digests"];
        import.extend(local);
        import.push("-");
        let mut first = ctr(&export).stdout(Stdio::piped()).spawn().expect("export");
        let pipe = first.stdout.take().expect("stdout");
        let second = ctr(&import).stdin(pipe).output().expect("import");
        assert!(first.wait().expect("wait").success());
        let errors = String::from_utf8_lossy(&second.stderr);
        assert!(second.status.success(), "{errors}");
        let by_digest = format!("piped@{want}");
        assert_eq!(digest(&host, &by_digest), want);
        drop(host.ctr(["images", "rm", "--sync", &by_digest]).ok());
    }
    host.finish();
}

#[test]
fn an_archive_holds_several_images_and_names_only_those_without_a_name_by_digest() {
    let host = Host::new("export-several");
    host.image();
    let want = digest(&host, IMAGE);
    let other = "other.test/a:2";
    drop(host.ctr(["images", "tag", IMAGE, other]).ok());
    let file = host.path("both.tar");
    let file = file.to_str().expect("a path");
    for local in [None, Some("--local")] {
        let ctr = |words: &[&str]| {
            let ctr = host.ctr_program().args(["images", words[0]]).args(local);
            drop(ctr.args(&words[1..]).run().ok());
        };
        let names = || {
            let all = host.ctr(["images", "ls", "-q"]).ok();
            all.lines().map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let remove = || {
            for name in names() {
                drop(host.ctr(["images", "rm", "--sync", &name]).ok());
            }
        };
        ctr(&["export", file, IMAGE, other]);
        for (flags, by_digest) in [
            (&["--digests"][..], true),
            (&["--digests", "--skip-digest-for-named"], false),
        ] {
            remove();
            ctr(&[&["import", "--base-name", "base"], flags, &[file]].concat());
            let made = names();
            for name in [IMAGE, other] {
                assert!(made.contains(name), "{made:?}");
                assert_eq!(digest(&host, name), want);
            }
            let named = made.contains(&format!("base@{want}"));
            assert_eq!(named, by_digest, "{made:?}");
        }
    }
    host.finish();
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let host = Host::new("import-int");
    let mut import = Command::new(bin_dir().join("ctr"));
    import.arg("--address").arg(host.address());
    import.args(["-n", host.namespace(), "images", "import", "-"]);
    let mut import = import
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("import");
    let mut stdin = import.stdin.take().expect("stdin");
    let archive = std::fs::read(integration::archive()).expect("archive");
    let half = &archive[..archive.len() / 2];
    std::io::Write::write_all(&mut stdin, half).expect("write");
    until("an ingest has begun", || {
        !host.ctr(["content", "active"]).ok().trim().is_empty()
            && host.ctr(["content", "active"]).ok().lines().count() > 1
    });
    let pid = rustix::process::Pid::from_child(&import);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupt");
    assert!(!import.wait().expect("wait").success());
    drop(stdin);
    until("nothing is left", || {
        let active = host.ctr(["content", "active"]).ok().lines().count() <= 1;
        let leases = host.ctr(["leases", "ls", "-q"]).ok().trim().is_empty();
        active && leases
    });
    assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), "");
    host.finish();
}

#[test]
fn a_second_index_and_bad_archives_are_told() {
    let host = Host::new("import-bad");
    let import = ["images", "import", "--index-name", "whole.test/all:1"];
    let import = host.ctr_program().args(import);
    drop(import.args([integration::archive()]).run().ok());
    let names = host.ctr(["images", "ls", "-q"]).ok();
    assert!(
        names.contains("whole.test/all:1") && names.contains(IMAGE),
        "{names}"
    );
    let file = host.path("bad.tar");
    std::fs::write(&file, "no archive").expect("write");
    for flags in [&[][..], &["--local"]] {
        let import = host.ctr_program().args(["images", "import"]).args(flags);
        let told = import.args([&file]).run().err();
        assert!(told.contains("unrecognized image format"), "{told}");
    }
    let missing = host
        .ctr(["images", "export", "/nonexistent/x.tar", IMAGE])
        .err();
    assert!(missing.contains("no such file"), "{missing}");
    let none = host.path("none.tar");
    let export = host.ctr_program().args(["images", "export"]);
    let told = export
        .args([none.as_os_str(), "nobody".as_ref()])
        .run()
        .err();
    assert!(told.contains("not found") && !none.exists(), "{told}");
    for flags in [&[][..], &["--local"]] {
        std::fs::write(&file, "an earlier archive").expect("write");
        let export = host.ctr_program().args(["images", "export"]).args(flags);
        drop(
            export
                .args([file.as_os_str(), "nobody".as_ref()])
                .run()
                .err(),
        );
        let left = std::fs::read(&file).expect("read");
        assert_eq!(left, b"an earlier archive");
        let export = host.ctr_program().args(["images", "export"]).args(flags);
        drop(export.args([none.as_os_str(), IMAGE.as_ref()]).run().ok());
        assert!(std::fs::metadata(&none).expect("stat").len() > 1024);
        std::fs::remove_file(&none).expect("remove");
    }
    host.finish();
}

#[test]
fn layers_of_an_import_go_when_they_are_unpacked_and_not_wanted() {
    let host = Host::new("import-discard");
    let archive = integration::archive();
    let refused = |flags: &[&str], why: &str| {
        let import = host.ctr_program().args(["images", "import"]).args(flags);
        let said = import.args([archive.as_os_str()]).run().err();
        assert!(said.contains(why), "{said}");
    };
    let discard = "--discard-unpacked-layers";
    refused(&[discard], "requires \"--local\" flag");
    refused(&["--local", "--no-unpack", discard], "cannot be used with");
    let import = ["images", "import", "--local", "--sync-fs", discard];
    let import = host.ctr_program().args(import);
    drop(import.args([archive.as_os_str()]).run().ok());
    drop(host.ctr(["images", "tag", IMAGE, "b.test/name:1"]).ok());
    // The collector runs.
    drop(host.ctr(["images", "rm", "--sync", "b.test/name:1"]).ok());
    let check = host.ctr(["images", "check"]).ok();
    assert!(check.contains("incomplete (1/2)"), "{check}");
    assert!(check.contains(" true"), "{check}");
    let out = host.ctr(["run", "--rm", IMAGE, "x", "echo", "runs"]).ok();
    assert_eq!(out, "runs\n");
    host.finish();
}

#[test]
fn flags_of_go_s_ctr_are_taken_or_refused_by_name() {
    let host = Host::new("image-flags");
    host.image();
    let registry = integration::Registry::start();
    let reference = registry.reference();
    for more in ["--sync-fs", "--all-metadata"] {
        let pull = ["images", "pull", "--plain-http", more, &reference];
        drop(host.ctr(pull).ok());
    }
    for (flags, why) in [
        (
            &["convert", "--erofs", "raw", IMAGE, "c"][..],
            "not implemented",
        ),
        (
            &["pull", "--max-concurrent-downloads", "2", IMAGE],
            "--local",
        ),
        (&["pull", "--skip-verify", IMAGE], "--local"),
        (
            &["push", "--allow-non-distributable-blobs", IMAGE],
            "--local",
        ),
        (
            &["pull", "--all-platforms", "--platform", "x", IMAGE],
            "cannot be used with",
        ),
    ] {
        let said = host.ctr_program().args(["images"]).args(flags).run().err();
        assert!(said.contains(why), "{flags:?}: {said}");
    }
    host.finish();
}
