//! Images and what is in containers: archives, copies, differences, commits, builds, and what is cleared
//! away.

use std::fs;

use integration::{Docker, Host};

use super::{prints, runs, story};

#[test]
fn images_are_saved_loaded_committed_and_built() {
    story("docker-images", |docker, host| {
        about(docker, host);
        archives(docker);
        contents(docker);
        build(docker);
        clear(docker);
    });
}

/// Which containerd it is, and how it is used.
fn about(docker: &Docker, host: &Host) {
    let template = "{{range .Server.Components}}{{.Name}}={{.Version}} {{end}}";
    let versions = docker.run(["version", "-f", template]).ok();
    let of = |word: &str| word.strip_prefix("containerd=").map(str::to_owned);
    let version = versions
        .split_whitespace()
        .find_map(of)
        .expect("containerd");
    let ours = host.ctr(["version"]).ok();
    let server = ours.split("Server:").nth(1).expect("a server");
    let line = server.lines().find(|l| l.trim().starts_with("Version:"));
    assert!(
        line.expect("a version").ends_with(&*version),
        "{versions}{ours}"
    );
    let template = "{{.Driver}} {{.DefaultRuntime}} {{.CgroupDriver}} {{.Containers}} {{.Images}}";
    let want = "overlay2 runc cgroupfs 0 1\n";
    prints(docker, &["info", "-f", template], want, 0);
}

fn archives(docker: &Docker) {
    let archive = docker.home().join("saved.tar");
    let file = archive.to_string_lossy();
    prints(docker, &["save", "-o", &file, "busybox"], "", 0);
    assert!(
        docker
            .ok("rmi busybox")
            .contains("Untagged: busybox:latest")
    );
    prints(docker, &["images", "-q"], "", 0);
    prints(
        docker,
        &["load", "-i", &file],
        "Loaded image: busybox:latest\n",
        0,
    );
    fs::remove_file(archive).expect("remove the archive");
    runs(docker, "", "echo loaded", "loaded\n", 0);
    let format = "{{.Repository}}:{{.Tag}}";
    prints(
        docker,
        &["images", "--format", format],
        "busybox:latest\n",
        0,
    );
}

/// Files of a container, from outside and of an image made of it.
fn contents(docker: &Docker) {
    let script = "echo made >/made; rm /etc/passwd";
    let args = ["run", "--name", "files", "busybox", "sh", "-c", script];
    prints(docker, &args, "", 0);
    let changes = docker.ok("diff files");
    let mut changes: Vec<_> = changes.lines().collect();
    changes.sort_unstable();
    assert_eq!(changes, ["A /made", "C /etc", "D /etc/passwd"]);
    let (from, to) = (docker.home().join("from"), docker.home().join("to"));
    fs::write(&from, "from outside\n").expect("write");
    prints(
        docker,
        &["cp", &from.to_string_lossy(), "files:/given"],
        "",
        0,
    );
    prints(docker, &["cp", "files:/made", &to.to_string_lossy()], "", 0);
    assert_eq!(fs::read_to_string(to).expect("read"), "made\n");
    assert!(docker.ok("commit files committed").starts_with("sha256:"));
    let args = ["run", "--rm", "committed", "cat", "/made", "/given"];
    prints(docker, &args, "made\nfrom outside\n", 0);
    let template = "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}} {{.State.OOMKilled}}";
    assert_eq!(docker.inspect("files", template), "exited 0 0 false");
    // The one that runs is copied from and to as well.
    docker.script("", "live", "echo made >/made; exec sleep 1000");
    prints(
        docker,
        &["cp", &from.to_string_lossy(), "live:/given"],
        "",
        0,
    );
    prints(
        docker,
        &["exec", "live", "cat", "/given"],
        "from outside\n",
        0,
    );
    prints(docker, &["rm", "-f", "live"], "live\n", 0);
}

/// The classic builder: each step is a container.
fn build(docker: &Docker) {
    let dir = docker.home().join("build");
    fs::create_dir(&dir).expect("make a directory");
    fs::write(dir.join("file"), "copied\n").expect("write");
    let steps = "FROM busybox\nCOPY file /file\nRUN cat /file >/twice && cat /file >>/twice\n\
                 CMD [\"cat\", \"/twice\"]\n";
    fs::write(dir.join("Dockerfile"), steps).expect("write");
    let told = docker
        .run(["build", "-t", "built", &dir.to_string_lossy()])
        .ok();
    assert!(
        told.ends_with("Successfully tagged built:latest\n"),
        "{told}"
    );
    prints(docker, &["run", "--rm", "built"], "copied\ncopied\n", 0);
    let bad = "FROM busybox\nRUN exit 5\n";
    fs::write(dir.join("Dockerfile"), bad).expect("write");
    let told = docker
        .run(["build", "--force-rm", &dir.to_string_lossy()])
        .err();
    assert!(told.contains("returned a non-zero code: 5"), "{told}");
}

fn clear(docker: &Docker) {
    docker.script("", "stays", "exec sleep 1000");
    let told = docker.ok("system prune -f");
    assert!(told.contains("Deleted Containers:"), "{told}");
    prints(
        docker,
        &["ps", "-a", "--format", "{{.Names}}"],
        "stays\n",
        0,
    );
    prints(docker, &["rm", "-f", "stays"], "stays\n", 0);
}
