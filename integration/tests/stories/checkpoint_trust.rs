//! A checkpoint from elsewhere, of whose making nobody here knows.

use std::fs;
use std::path::{Path, PathBuf};

use content::Hasher;
use integration::{Host, IMAGE, need, until};
use serde_json::{Value, json};
use types::{Algorithm, Any, Digest, media_type as mt};

const NAME: &str = "elsewhere.test/saved:1";

/// An OCI layout on its way to become an archive.
struct Layout(PathBuf);

impl Layout {
    fn new(host: &Host, name: &str) -> Self {
        let dir = host.path(name);
        fs::create_dir_all(dir.join("blobs/sha256")).expect("mkdir");
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        fs::write(dir.join("oci-layout"), layout.to_string()).expect("write");
        Self(dir)
    }

    /// Puts a blob and says what an index says of it.
    fn put(&self, media_type: &str, data: &[u8]) -> Value {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(data);
        let digest: Digest = hasher.finish().expect("a digest");
        fs::write(self.0.join("blobs/sha256").join(digest.hex()), data).expect("write");
        json!({"mediaType": media_type, "digest": digest.as_str(), "size": data.len()})
    }

    fn archive(&self) -> String {
        let file = self.0.with_extension("tar");
        let tar = integration::Program::new(need("tar")).args(["-cf"]);
        let tar = tar.args([&file]).args(["-C"]).args([&self.0]);
        drop(tar.args(["."]).run().ok());
        file.to_string_lossy().into_owned()
    }
}

/// An archive of a checkpoint with this spec.
fn saved(host: &Host, name: &str, spec: &Value) -> String {
    let layout = Layout::new(host, name);
    let spec = Any {
        type_url: types::SPEC_URL.into(),
        value: spec.to_string().into_bytes(),
    };
    let spec = client::any_to_bytes(&spec).expect("encode");
    let spec = layout.put(mt::CHECKPOINT_CONFIG, &spec);
    let dump = layout.put(mt::CHECKPOINT, b"whatever CRIU would read");
    let index = json!({
        "schemaVersion": 2,
        "mediaType": mt::OCI_INDEX,
        "manifests": [spec, dump],
        "annotations": {
            "org.opencontainers.image.ref.name": IMAGE,
            "io.containerd.checkpoint.runtime": "io.containerd.runc.v2",
            "io.containerd.checkpoint.snapshotter": "overlayfs",
        },
    });
    let mut index = layout.put(mt::OCI_INDEX, index.to_string().as_bytes());
    index["annotations"] = json!({"io.containerd.image.name": NAME});
    let top = json!({"schemaVersion": 2, "manifests": [index]});
    fs::write(layout.0.join("index.json"), top.to_string()).expect("write");
    layout.archive()
}

/// What a container has by default, running `sleep`.
fn usual(host: &Host) -> Value {
    let text = host.ctr(["oci", "spec"]).ok();
    let mut spec: Value = serde_json::from_str(&text).expect("JSON");
    spec["process"]["args"] = json!(["sleep", "1000"]);
    spec["process"]["env"] = json!(["PATH=/bin"]);
    spec["linux"]["cgroupsPath"] = json!(format!("/{}/was", host.namespace()));
    spec
}

fn import(host: &Host, archive: &str) {
    let import = [
        "images",
        "import",
        "--no-unpack",
        "--all-platforms",
        archive,
    ];
    drop(host.ctr(import).ok());
}

fn goes(host: &Host) {
    assert!(host.task("b", "RUNNING").is_some());
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "b"]).ok());
    until("it ends", || host.task("b", "STOPPED").is_some());
    drop(host.ctr(["tasks", "rm", "b"]));
    drop(host.ctr(["containers", "rm", "b"]).ok());
    drop(host.ctr(["images", "rm", "--sync", NAME]).ok());
}

/// Whoever has written an image would otherwise be root on the host that restores it.
#[test]
fn a_checkpoint_gets_nothing_of_the_host_without_the_user_s_word() {
    let host = Host::new("checkpoint-trust");
    host.image();
    let mark = host.path("mark");
    let log = format!("file://{}", host.path("b.log").display());
    let restore = ["containers", "restore", "--log-uri", &log];
    let restore = |flags: &[&str]| host.ctr_program().args(restore).args(flags);

    import(&host, &saved(&host, "usual", &usual(&host)));
    let told = restore(&["--live", "b", NAME]).run().err();
    for want in ["--live", "--trust-spec", "permission denied"] {
        assert!(told.contains(want), "{want}: {told}");
    }
    assert_eq!(host.ctr(["containers", "ls", "-q"]).ok(), "");
    drop(restore(&["b", NAME]).run().ok());
    goes(&host);

    let mut spec = usual(&host);
    spec["hooks"] = json!({"createRuntime": [touch(&mark)]});
    spec["mounts"].as_array_mut().expect("mounts").push(json!({
        "destination": "/host", "type": "bind", "source": "/", "options": ["rbind"],
    }));
    import(&host, &saved(&host, "hostile", &spec));
    let told = restore(&["b", NAME]).run().err();
    for want in [
        "hook \"createRuntime\"",
        "bind mount of \"/\"",
        "--trust-spec",
    ] {
        assert!(told.contains(want), "{want}: {told}");
    }
    assert!(!mark.exists());
    assert_eq!(host.ctr(["containers", "ls", "-q"]).ok(), "");
    assert!(host.ctr(["snapshots", "info", "b"]).code != 0);

    drop(restore(&["--trust-spec", "b", NAME]).run().ok());
    assert!(mark.exists());
    goes(&host);
    host.finish();
}

fn touch(mark: &Path) -> Value {
    let program = need("touch");
    json!({"path": program, "args": ["touch", mark]})
}
