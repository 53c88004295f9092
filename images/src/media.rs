//! What a media type says: index, manifest, config or layer.

use types::{Descriptor, media_type as mt};

/// True for an OCI index or a Docker manifest list.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, mt::OCI_INDEX | mt::DOCKER_INDEX)
}

/// True for an OCI manifest or a Docker manifest of schema 2.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, mt::OCI_MANIFEST | mt::DOCKER_MANIFEST)
}

/// True for the config of an image.
#[must_use]
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, mt::OCI_CONFIG | mt::DOCKER_CONFIG)
}

/// True for a layer of a root file system, whatever its compression or wrapping.
#[must_use]
pub fn is_layer(media_type: &str) -> bool {
    if media_type.starts_with("application/vnd.oci.image.layer.") {
        return true;
    }
    if mt::is_erofs(media_type) {
        return true;
    }
    let base = media_type.split('+').next().unwrap_or_default();
    matches!(
        base,
        mt::DOCKER_LAYER
            | mt::DOCKER_LAYER_GZIP
            | mt::DOCKER_LAYER_ZSTD
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// True for a layer that its owner does not let registries store.
#[must_use]
pub fn is_non_distributable(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// True for Docker's own types.
#[must_use]
pub fn is_docker(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.docker.")
}

/// The name of the ingest of `descriptor`, which is also what a progress display shows.
///
/// Parity: core/remotes/handlers.go: `ctr content active` and progress bars show these names.
#[must_use]
pub fn ref_key(descriptor: &Descriptor) -> String {
    let kind = match descriptor.media_type.as_str() {
        t if is_index(t) => "index",
        t if is_manifest(t) => "manifest",
        t if is_layer(t) => "layer",
        t if is_config(t) => "config",
        _ => "unknown",
    };
    format!("{kind}-{}", descriptor.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_of_one_kind() {
        for (media_type, kind) in [
            (mt::OCI_INDEX, "index"),
            (mt::DOCKER_INDEX, "index"),
            (mt::OCI_MANIFEST, "manifest"),
            (mt::DOCKER_MANIFEST, "manifest"),
            (mt::OCI_CONFIG, "config"),
            (mt::DOCKER_CONFIG, "config"),
            (mt::OCI_LAYER, "layer"),
            (mt::OCI_LAYER_ZSTD, "layer"),
            (mt::EROFS_LAYER, "layer"),
            ("application/vnd.erofs.layer.v1+zstd", "layer"),
            ("application/vnd.example.layer.v1.erofs", "layer"),
            ("application/vnd.example.erofs.thing", "unknown"),
            (mt::DOCKER_LAYER_GZIP, "layer"),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "layer",
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
                "layer",
            ),
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                "unknown",
            ),
            ("application/vnd.in-toto+json", "unknown"),
            ("", "unknown"),
        ] {
            let descriptor = Descriptor {
                media_type: media_type.into(),
                digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
                size: 1,
                annotations: types::Labels::new(),
            };
            let key = ref_key(&descriptor);
            assert_eq!(key.split_once('-').unwrap().0, kind, "{media_type}");
        }
    }

    #[test]
    fn foreign_layers_are_layers_that_are_not_distributed() {
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert!(is_layer(foreign) && is_non_distributable(foreign) && is_docker(foreign));
        assert!(!is_non_distributable(mt::OCI_LAYER));
    }
}
