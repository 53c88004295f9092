//! OCI descriptor: what a blob is, how long, and its digest.

use crate::{Digest, Labels};

/// Reference to a blob (OCI image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// Annotations.
    pub annotations: Labels,
}

/// Media types of images and layers (OCI image-spec media-types.md; Docker image manifest v2.2).
pub mod media_type {
    /// Archive of the directory that CRIU dumped a task into.
    pub const CHECKPOINT: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
    /// Spec of the container that was checkpointed, as an encoded `Any`.
    pub const CHECKPOINT_CONFIG: &str =
        "application/vnd.containerd.container.checkpoint.config.v1+proto";
    /// Options that a checkpoint was made with, as an encoded `Any`.
    pub const CHECKPOINT_OPTIONS: &str =
        "application/vnd.containerd.container.checkpoint.options.v1+proto";
    /// Options of the container's runtime, as an encoded `Any`.
    pub const CHECKPOINT_RUNTIME_OPTIONS: &str =
        "application/vnd.containerd.container.checkpoint.runtime.options+proto";
    /// OCI index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Uncompressed OCI layer.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// gzip OCI layer.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// zstd OCI layer.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Uncompressed Docker layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// gzip Docker layer.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// zstd Docker layer.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
    /// Layer that is an EROFS image.
    pub const EROFS_LAYER: &str = "application/vnd.erofs.layer.v1";

    /// True for a layer that is an EROFS image, whatever it is packed in (`+zstd`).
    ///
    /// Parity: internal/erofsutils: the types of before it had one of its own end in `.erofs`.
    #[must_use]
    pub fn is_erofs(media_type: &str) -> bool {
        let base = media_type.split('+').next().unwrap_or_default();
        base.ends_with(".erofs") || base.starts_with("application/vnd.erofs.layer.")
    }
}
