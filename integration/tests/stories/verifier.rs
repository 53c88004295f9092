//! Image verifiers: programs that are asked before anything of an image is fetched.

use std::path::Path;

use integration::{Host, Registry, Whose, script};

fn program(directory: &Path, text: &str) {
    // Another name first: the one before may still run.
    let made = directory.with_file_name("made");
    drop(script(&made, &format!("#!/bin/sh\n{text}\n")));
    std::fs::rename(&made, directory.join("judge")).expect("rename");
}

#[test]
fn an_image_that_is_not_welcome_is_not_fetched() {
    let dir = tempfile::tempdir().expect("directory");
    let programs = dir.path().join("bin");
    std::fs::create_dir(&programs).expect("directory");
    let sections = format!(
        "[plugins.\"io.containerd.image-verifier.v1.bindir\"]\n\
         bin_dir = \"{}\"\nper_verifier_timeout = \"10s\"\n",
        programs.display()
    );
    let host = Host::configured("verifier", Whose::Ours, &sections);
    let registry = Registry::start();
    let reference = registry.reference();
    let seen = dir.path().join("seen");
    let pull = || host.ctr(["images", "pull", "--plain-http", &reference]);
    let record = format!("(echo \"$@\"; cat) > {}", seen.display());
    for (end, want) in [
        ("echo not signed; exit 1", "not signed"),
        ("exec sleep 100", "deadline exceeded"),
        ("kill -9 $$", "signal 9"),
    ] {
        program(&programs, &format!("{record}; {end}"));
        let told = pull().err();
        assert!(told.contains(want) && told.contains("judge"), "{told}");
        assert_eq!(host.ctr(["content", "ls", "-q"]).ok(), "");
        assert_eq!(host.ctr(["images", "ls", "-q"]).ok(), "");
    }
    program(&programs, &format!("{record}; echo fine"));
    drop(pull().ok());
    let seen = std::fs::read_to_string(&seen).expect("what the program saw");
    let (line, descriptor) = seen.split_once('\n').expect("two lines");
    let digest = crate::push::digest(&host, &reference);
    let want = format!(
        "-name {reference} -digest {digest} \
         -stdin-media-type application/vnd.oci.descriptor.v1+json"
    );
    assert_eq!(line, want);
    let descriptor: serde_json::Value = serde_json::from_str(descriptor).expect("JSON");
    assert_eq!(descriptor["digest"], digest.as_str());
    assert!(descriptor["size"].as_u64().is_some_and(|size| size > 0));
    host.finish();
}
