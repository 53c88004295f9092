//! What a transfer goes between, and what it tells: the values of the transfer service.

use std::fmt;

use crate::{Descriptor, Labels, Platform};

/// A source or a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An image in a registry.
    Registry(Remote),
    /// Images in the store.
    Store(Store),
    /// An archive that the client streams in.
    Import(ImportStream),
    /// An archive that is streamed out to the client.
    Export(ExportStream),
    /// Something else, by its type.
    Other(String),
}

/// An image in a registry, and how to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Full reference.
    pub reference: String,
    /// Stream on which the daemon asks for credentials; empty: nobody is asked.
    pub auth_stream: String,
    /// Header fields of every request.
    pub headers: Labels,
    /// Directory with a directory per host; empty: the daemon's own.
    pub host_dir: String,
    /// `http` or `https`; empty: https.
    pub default_scheme: String,
    /// Requests and answers are logged.
    pub dump: bool,
    /// What happens on connections is logged.
    pub trace: bool,
    /// Stream for these logs; empty: the daemon's own log.
    pub logs_stream: String,
}

/// Images in the store: which to read, or how to name what is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// Name; may be empty when there are references.
    pub name: String,
    /// Labels of new records.
    pub labels: Labels,
    /// Which platforms; empty: all.
    pub platforms: Vec<Platform>,
    /// Keep the documents of the other platforms, too.
    pub all_metadata: bool,
    /// Most manifests of an index; 0: all.
    pub manifest_limit: usize,
    /// More names.
    pub references: Vec<NameRule>,
    /// What to unpack.
    pub unpacks: Vec<Unpack>,
}

/// A rule that names images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRule {
    /// Name, or its beginning.
    pub name: String,
    /// It is a beginning: a tag or a digest completes it.
    pub is_prefix: bool,
    /// A full name in the archive counts though it begins otherwise.
    pub allow_overwrite: bool,
    /// Also name images by digest.
    pub add_digest: bool,
    /// But not those that have another name.
    pub skip_named_digest: bool,
}

/// Layers of one platform into one snapshotter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpack {
    /// Platform.
    pub platform: Platform,
    /// Snapshotter; empty: the daemon chooses.
    pub snapshotter: String,
}

/// An archive that comes over a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportStream {
    /// The stream.
    pub stream: String,
    /// What is in it; empty: look.
    pub media_type: String,
    /// Compress layers that are not.
    pub force_compress: bool,
}

/// An archive that goes over a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportStream {
    /// The stream.
    pub stream: String,
    /// What is wanted; empty: an OCI layout.
    pub media_type: String,
    /// Which platforms; empty: the daemon's.
    pub platforms: Vec<Platform>,
    /// All platforms.
    pub all_platforms: bool,
    /// Leave out `manifest.json`, which only Docker needs.
    pub skip_compatibility_manifest: bool,
    /// Leave out layers that their owners do not let others distribute.
    pub skip_non_distributable: bool,
}

/// One line of progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferEvent {
    /// What happens, in words that displays know.
    pub event: String,
    /// To what; empty: to the transfer as a whole.
    pub name: String,
    /// Names of what it is part of.
    pub parents: Vec<String>,
    /// Bytes done.
    pub progress: u64,
    /// Bytes in all.
    pub total: u64,
    /// What it is.
    pub descriptor: Option<Descriptor>,
}

/// What a registry asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthRequest {
    /// The host that asks.
    pub host: String,
    /// The image.
    pub reference: String,
    /// Its challenges.
    pub challenges: Vec<String>,
}

/// Credentials for a host. Their text shows nothing of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum AuthAnswer {
    /// None.
    #[default]
    None,
    /// A user and a password.
    Password {
        /// User.
        user: String,
        /// Password.
        secret: String,
    },
    /// A refresh token.
    Refresh(String),
    /// The whole value of the `Authorization` field.
    Header(String),
}

impl fmt::Debug for AuthAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password { .. } => "Password(..)",
            Self::Refresh(_) => "Refresh(..)",
            Self::Header(_) => "Header(..)",
        })
    }
}

/// Parity: core/transfer/registry, core/transfer/image: the names by which progress lines and errors
/// know both ends.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(remote) => write!(f, "OCI Registry ({})", remote.reference),
            Self::Store(store) => write!(f, "Local Image Store ({})", store.name),
            Self::Import(_) => f.write_str("an archive that comes in"),
            Self::Export(_) => f.write_str("an archive that goes out"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        let password = AuthAnswer::Password {
            user: "me".into(),
            secret: "hush".into(),
        };
        for answer in [
            password,
            AuthAnswer::Refresh("hush".into()),
            AuthAnswer::Header("Bearer hush".into()),
        ] {
            let shown = format!("{answer:?}");
            assert!(!shown.contains("hush") && !shown.contains("me"), "{shown}");
        }
    }

    #[test]
    fn both_ends_have_go_s_names() {
        let remote = Remote {
            reference: "r.test/a:1".into(),
            ..Remote::default()
        };
        let shown = Endpoint::Registry(remote).to_string();
        assert_eq!(shown, "OCI Registry (r.test/a:1)");
        let store = Store {
            name: "a".into(),
            ..Store::default()
        };
        let shown = Endpoint::Store(store).to_string();
        assert_eq!(shown, "Local Image Store (a)");
    }
}
