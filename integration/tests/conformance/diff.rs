//! Differ: layers onto mounts and back.

mod apply;
mod compare;
mod processed;
mod same;

use std::fs;
use std::path::Path;

use grpc::diff::DiffClient;
use integration::Program;
use protos::MessageField;
use protos::services::diff::{ApplyRequest, DiffRequest};
use protos::types::{Descriptor, Mount};
use tonic::Status;
use tonic::transport::Channel;

use crate::content::{Content, digest};
use crate::peer::{NAMESPACE, Peer, labels, scoped, within};
use crate::stock;

/// A layer that is not compressed.
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
/// One that is.
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// One that is compressed otherwise.
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Label that names the digest of what is in a compressed layer.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// A mount of a directory.
fn bind(directory: &Path) -> Mount {
    Mount {
        type_: "bind".into(),
        source: directory.display().to_string(),
        options: vec!["rbind".into(), "rw".into()],
        ..Mount::default()
    }
}

/// A new directory of the rule's.
fn directory(peer: &Peer, name: &str) -> std::path::PathBuf {
    let path = peer.host.path(name);
    fs::create_dir(&path).expect("mkdir");
    path
}

/// An archive of files, as `(path, text)`.
fn archive(peer: &Peer, files: &[(&str, &str)]) -> Vec<u8> {
    let tree = directory(peer, "tree");
    for (path, text) in files {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        fs::write(path, text).expect("write");
    }
    let made = peer.host.path("made.tar");
    let program = Program::new("tar").args(["--numeric-owner", "--owner=0", "--group=0", "-cf"]);
    let program = program.args([&made]).args(["-C"]).args([&tree]).args(["."]);
    drop(program.run().ok());
    fs::remove_dir_all(&tree).expect("remove");
    fs::read(&made).expect("read")
}

/// What a program makes of some bytes.
fn filtered(peer: &Peer, program: &str, data: &[u8]) -> Vec<u8> {
    let (from, to) = (peer.host.path("from"), peer.host.path("to"));
    fs::write(&from, data).expect("write");
    let line = format!("{program} < {} > {}", from.display(), to.display());
    drop(Program::new("sh").args(["-c", &line]).run().ok());
    fs::read(&to).expect("read")
}

/// The paths in a compressed archive, in order.
fn listed(peer: &Peer, data: &[u8]) -> Vec<String> {
    let text = filtered(peer, "tar -tzf -", data);
    let text = String::from_utf8(text).expect("text");
    let mut paths: Vec<_> = text.lines().map(str::to_owned).collect();
    paths.sort();
    paths
}

/// A descriptor of a layer.
fn layer(media_type: &str, digest: &str, size: usize) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: digest.into(),
        size: i64::try_from(size).expect("small"),
        ..Descriptor::default()
    }
}

/// Puts a layer into the store, unless it is there.
async fn stored(peer: &Peer, media_type: &str, data: &[u8]) -> Descriptor {
    let (mut content, digest) = (Content::of(peer), digest(data));
    if !content.has(&digest).await {
        content.put(data).await;
    }
    layer(media_type, &digest, data.len())
}

struct Differ(DiffClient<Channel>);

impl Differ {
    fn of(peer: &Peer) -> Self {
        Self(DiffClient::new(peer.channel()))
    }

    async fn apply(&mut self, layer: Descriptor, mounts: Vec<Mount>) -> Result<Descriptor, Status> {
        self.apply_in(NAMESPACE, layer, mounts).await
    }

    async fn apply_in(
        &mut self,
        namespace: &str,
        layer: Descriptor,
        mounts: Vec<Mount>,
    ) -> Result<Descriptor, Status> {
        let request = ApplyRequest {
            diff: MessageField::some(layer),
            mounts,
            ..ApplyRequest::default()
        };
        let answer = self.0.apply(within(namespace, request)).await?;
        Ok(answer.into_inner().applied.unwrap_or_default())
    }

    async fn diff(&mut self, request: DiffRequest) -> Result<Descriptor, Status> {
        let answer = self.0.diff(scoped(request)).await?;
        Ok(answer.into_inner().diff.unwrap_or_default())
    }
}

/// A comparison of two mounted trees, whose result no collection takes away.
fn comparison(left: Vec<Mount>, right: Vec<Mount>) -> DiffRequest {
    DiffRequest {
        left,
        right,
        labels: labels(&[(stock::ROOT, "yes")]),
        ..DiffRequest::default()
    }
}
