//! Index, manifest and config, parsed from JSON.
//!
//! Invariant: a value of these types came from a document that is what its media type says. Unknown
//! keys are ignored, a missing list is an empty one, a negative size or a bad digest is an error.

use serde::Deserialize;
use serde::de::IgnoredAny;
use types::{Context as _, Descriptor, Digest, Error, Labels, Platform, Result, bound_json};

use crate::few::{Few, FewNamed};
use crate::media::{is_index, is_manifest};

/// A descriptor in an index, with the platform it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The descriptor.
    pub descriptor: Descriptor,
    /// The platform, when the index names one.
    pub platform: Option<Platform>,
}

impl From<Descriptor> for Entry {
    fn from(descriptor: Descriptor) -> Self {
        Self {
            descriptor,
            platform: None,
        }
    }
}

/// A list of manifests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Its entries, in order.
    pub manifests: Vec<Entry>,
    /// Annotations.
    pub annotations: Labels,
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Annotations.
    pub annotations: Labels,
}

/// What a container of an image starts with unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessDefaults {
    /// User, as `name`, `uid`, `name:group` or `uid:gid`; may be empty.
    pub user: String,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Arguments of the entry point, or the command when there is none.
    pub cmd: Vec<String>,
    /// Working directory; may be empty.
    pub working_dir: String,
    /// Paths that want volumes.
    pub volumes: Vec<String>,
    /// Signal that stops it; may be empty.
    pub stop_signal: String,
    /// Labels of the image.
    pub labels: Labels,
}

/// The config of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Platform, normalised.
    pub platform: Platform,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// Process defaults.
    pub process: ProcessDefaults,
}

impl Index {
    /// Parses an index of type `media_type`.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not JSON, not an index, both an index and a manifest, or has a list
    /// of more than [`crate::MAX_CHILDREN`].
    pub fn parse(text: &[u8], media_type: &str) -> Result<Self> {
        let document = Document::parse(text, media_type)?;
        let manifests = document.manifests.unwrap_or_default().0;
        Ok(Self {
            manifests: manifests
                .into_iter()
                .map(RawDescriptor::entry)
                .collect::<Result<_>>()?,
            annotations: labels(document.annotations),
        })
    }
}

impl Manifest {
    /// Parses a manifest of type `media_type`.
    ///
    /// # Errors
    /// `InvalidArgument` when it is not JSON, not a manifest, or both an index and a manifest.
    pub fn parse(text: &[u8], media_type: &str) -> Result<Self> {
        let document = Document::parse(text, media_type)?;
        let Some(config) = document.config else {
            return Err(Error::invalid_argument("manifest has no config"));
        };
        let layers = document.layers.unwrap_or_default().0;
        Ok(Self {
            config: config.entry()?.descriptor,
            layers: layers
                .into_iter()
                .map(|layer| layer.entry().map(|e| e.descriptor))
                .collect::<Result<_>>()?,
            annotations: labels(document.annotations),
        })
    }
}

impl Config {
    /// Parses an image config.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let raw: RawConfig = json(text, "image config")?;
        let diff_ids = raw.rootfs.and_then(|r| r.diff_ids).unwrap_or_default().0;
        let run = raw.config.unwrap_or_default();
        let platform = RawPlatform {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant,
            os_version: raw.os_version,
        };
        Ok(Self {
            platform: platform.platform().normalized(),
            diff_ids: diff_ids
                .iter()
                .map(|id| id.parse())
                .collect::<Result<_>>()?,
            process: ProcessDefaults {
                user: run.user.unwrap_or_default(),
                env: run.env.unwrap_or_default().0,
                entrypoint: run.entrypoint.unwrap_or_default().0,
                cmd: run.cmd.unwrap_or_default().0,
                working_dir: run.working_dir.unwrap_or_default(),
                volumes: run.volumes.unwrap_or_default().0.into_keys().collect(),
                stop_signal: run.stop_signal.unwrap_or_default(),
                labels: labels(run.labels),
            },
        })
    }
}

/// Parses foreign JSON of a bounded number of values; `what` names it in the error. serde_json stops
/// at 128 levels of nesting.
///
/// # Errors
/// `InvalidArgument`; `ResourceExhausted` beyond [`types::MAX_JSON`].
pub fn json<'a, T: Deserialize<'a>>(text: &'a [u8], what: &str) -> Result<T> {
    bound_json(text).ctx_with(|| what.to_owned())?;
    serde_json::from_slice(text)
        .map_err(|error| Error::invalid_argument(format_args!("{what}: {error}")))
}

/// An index or a manifest, not yet told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Few<RawDescriptor>>,
    manifests: Option<Few<RawDescriptor>>,
    fs_layers: Option<IgnoredAny>,
    annotations: Option<FewNamed<String>>,
}

impl Document {
    /// Refuses a document that two readers could take for two things (GHSA-5j5w-g665-5m35).
    fn parse(text: &[u8], media_type: &str) -> Result<Self> {
        let document: Self = json(text, media_type)?;
        let own = document.media_type.as_deref().unwrap_or_default();
        if document.fs_layers.is_some() {
            return Err(Error::invalid_argument(
                "media-type: schema 1 not supported",
            ));
        }
        if is_manifest(media_type) && (document.manifests.is_some() || is_index(own)) {
            return Err(Error::invalid_argument(format_args!(
                "media-type: expected manifest but found index ({media_type})"
            )));
        }
        let manifest_parts = document.config.is_some() || document.layers.is_some();
        if is_index(media_type) && (manifest_parts || is_manifest(own)) {
            return Err(Error::invalid_argument(format_args!(
                "media-type: expected index but found manifest ({media_type})"
            )));
        }
        Ok(document)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    annotations: Option<FewNamed<String>>,
    platform: Option<RawPlatform>,
}

impl RawDescriptor {
    fn entry(self) -> Result<Entry> {
        Ok(Entry {
            descriptor: Descriptor {
                media_type: self.media_type,
                digest: self.digest.parse()?,
                size: self.size,
                annotations: labels(self.annotations),
            },
            platform: self.platform.map(|p| p.platform().normalized()),
        })
    }
}

#[derive(Default, Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
}

impl RawPlatform {
    fn platform(self) -> Platform {
        Platform {
            os: self.os.unwrap_or_default(),
            architecture: self.architecture.unwrap_or_default(),
            variant: self.variant.unwrap_or_default(),
            os_version: self.os_version.unwrap_or_default(),
        }
    }
}

/// The platform's fields stand here again: flattening would hold everything unknown in memory.
#[derive(Deserialize)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    rootfs: Option<RawRootfs>,
    config: Option<RawRun>,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Option<Few<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    user: Option<String>,
    env: Option<Few<String>>,
    entrypoint: Option<Few<String>>,
    cmd: Option<Few<String>>,
    working_dir: Option<String>,
    volumes: Option<FewNamed<IgnoredAny>>,
    stop_signal: Option<String>,
    labels: Option<FewNamed<String>>,
}

fn labels(map: Option<FewNamed<String>>) -> Labels {
    map.unwrap_or_default().0.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_CHILDREN;
    use proptest::prelude::*;
    use types::{Code, media_type as mt};

    fn descriptor() -> String {
        format!(
            r#"{{"mediaType":"x","digest":"sha256:{}","size":3}}"#,
            "a".repeat(64)
        )
    }

    #[test]
    fn an_index_keeps_platforms_and_annotations() {
        let d = descriptor();
        let one = format!(
            r#"{},"annotations":{{"k":"v"}},"platform":{{"os":"Linux","architecture":"x86_64"}}}}"#,
            &d[..d.len() - 1]
        );
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{one},{d}]}}"#);
        let index = Index::parse(text.as_bytes(), mt::OCI_INDEX).unwrap();
        let platform = index.manifests[0].platform.clone().unwrap();
        assert_eq!(platform.to_string(), "linux/amd64");
        assert_eq!(index.manifests[0].descriptor.annotations["k"], "v");
        assert_eq!(index.manifests[1].platform, None);
    }

    #[test]
    fn documents_that_are_two_things_are_refused() {
        let d = descriptor();
        let manifest = [mt::OCI_MANIFEST, mt::DOCKER_MANIFEST];
        let index = [mt::OCI_INDEX, mt::DOCKER_INDEX];
        for (text, types) in [
            (
                format!(r#"{{"config":{d},"layers":[],"manifests":[]}}"#),
                manifest,
            ),
            (
                format!(r#"{{"config":{d},"mediaType":"{}"}}"#, mt::OCI_INDEX),
                manifest,
            ),
            (format!(r#"{{"manifests":[{d}],"layers":[]}}"#), index),
            (format!(r#"{{"manifests":[{d}],"config":{d}}}"#), index),
            (
                format!(
                    r#"{{"manifests":[{d}],"mediaType":"{}"}}"#,
                    mt::OCI_MANIFEST
                ),
                index,
            ),
            (format!(r#"{{"config":{d},"fsLayers":[]}}"#), manifest),
            (r#"{"layers":[]}"#.to_owned(), manifest),
        ] {
            for media_type in types {
                let error = if is_index(media_type) {
                    Index::parse(text.as_bytes(), media_type)
                        .map(drop)
                        .unwrap_err()
                } else {
                    Manifest::parse(text.as_bytes(), media_type)
                        .map(drop)
                        .unwrap_err()
                };
                assert!(error.is(Code::InvalidArgument), "{media_type} {text}");
            }
        }
    }

    #[test]
    fn bad_values_are_errors_and_null_lists_are_empty() {
        let good = format!(r#"{{"config":{},"layers":null}}"#, descriptor());
        let manifest = Manifest::parse(good.as_bytes(), mt::OCI_MANIFEST).unwrap();
        assert!(manifest.layers.is_empty());
        for (from, to) in [
            ("\"size\":3", "\"size\":-3"),
            ("\"size\":3", "\"size\":\"3\""),
            ("\"size\":3", "\"size\":1e40"),
            ("sha256:aa", "md5:aa"),
            ("sha256:aa", "sha256:../"),
            ("null", "{}"),
            ("null", "[null]"),
        ] {
            let bad = good.replacen(from, to, 1);
            let error = Manifest::parse(bad.as_bytes(), mt::OCI_MANIFEST).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}");
        }
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        // What is ignored is skipped without recursion, whatever its depth.
        assert_eq!(
            Index::parse(deep.as_bytes(), mt::OCI_INDEX).unwrap(),
            Index::default()
        );
        let deep = deep.replace("\"x\"", "\"manifests\"");
        Index::parse(deep.as_bytes(), mt::OCI_INDEX).unwrap_err();
    }

    #[test]
    fn lists_and_maps_have_an_end() {
        let manifest = |layers: usize, notes: usize| {
            let d = descriptor();
            let layers = vec![d.as_str(); layers].join(",");
            let notes: Vec<_> = (0..notes).map(|n| format!("\"{n}\":\"\"")).collect();
            let text = format!(
                r#"{{"config":{d},"layers":[{layers}],"annotations":{{{}}}}}"#,
                notes.join(",")
            );
            Manifest::parse(text.as_bytes(), mt::OCI_MANIFEST)
        };
        let most = manifest(MAX_CHILDREN, MAX_CHILDREN).unwrap();
        assert_eq!(most.layers.len(), MAX_CHILDREN);
        assert_eq!(most.annotations.len(), MAX_CHILDREN);
        for (layers, notes) in [(MAX_CHILDREN + 1, 0), (0, MAX_CHILDREN + 1)] {
            let error = manifest(layers, notes).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
            assert!(error.to_string().contains("more than 4096"), "{error}");
        }
        let ids = vec!["\"x\""; MAX_CHILDREN + 1].join(",");
        let text = format!(r#"{{"rootfs":{{"diff_ids":[{ids}]}}}}"#);
        let error = Config::parse(text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("more than 4096"), "{error}");
    }

    #[test]
    fn many_small_maps_have_an_end_together() {
        let notes: Vec<_> = (0..1000).map(|n| format!("\"{n:x}\":\"\"")).collect();
        let digest = format!("sha256:{}", "a".repeat(64));
        let layer = format!(
            r#"{{"digest":"{digest}","size":1,"annotations":{{{}}}}}"#,
            notes.join(",")
        );
        let text = format!(
            r#"{{"config":{},"layers":[{}]}}"#,
            descriptor(),
            vec![layer; 400].join(",")
        );
        assert!((text.len() as u64) < crate::MAX_MANIFEST);
        let error = Manifest::parse(text.as_bytes(), mt::OCI_MANIFEST).unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
    }

    #[test]
    fn a_config_gives_process_defaults() {
        let text = format!(
            r#"{{"architecture":"arm64","variant":"v8","os":"linux","created":null,
            "config":{{"Env":["A=b"],"Cmd":["sh"],"Entrypoint":null,"Volumes":{{"/v":{{}}}},
            "WorkingDir":"/w","User":"1:2","Labels":{{"l":"x"}}}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
            "b".repeat(64)
        );
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!(config.diff_ids.len(), 1);
        assert_eq!(config.process.cmd, ["sh"]);
        assert_eq!(config.process.volumes, ["/v"]);
        assert_eq!(config.process.user, "1:2");
        Config::parse(br#"{"rootfs":{"diff_ids":["x"]}}"#).unwrap_err();
        assert_eq!(Config::parse(b"{}").unwrap(), Config::default());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(Index::parse(&text, mt::OCI_INDEX));
            drop(Manifest::parse(&text, mt::OCI_MANIFEST));
            drop(Config::parse(&text));
        }
    }
}
