//! Registries: references, and pulling over the OCI distribution protocol.
//!
//! Invariant: this is the only crate that speaks HTTP or TLS to the outside. Every answer has a size
//! limit and every wait a deadline; credentials never leave the origin that they are for, except to
//! the token server that this very origin names. Called by `transfer`.
//!
//! ```text
//! Repository: resolve, open -> Call (retries, redirects, challenges) -> Http (one request)
//! BlobReader: chunks, resumed by Range when the connection breaks
//! WideReader: BlobReaders side by side where one is slow
//! ```

mod auth;
mod base64;
mod blame;
mod body;
mod budget;
mod call;
mod challenge;
mod connect;
mod credentials;
pub mod docker_config;
mod health;
mod host;
pub mod hosts;
mod http;
mod listing;
mod opts;
mod proxy;
mod push;
mod race;
mod reader;
mod reference;
mod repository;
mod silence;
mod socks;
#[cfg(any(test, feature = "testsuite"))]
pub mod testsuite;
mod thought;
mod tls;
mod upload;
mod url;
mod watch;
mod wide;

#[cfg(test)]
mod tests;

pub use body::{BlobSource, OnSent};
pub use budget::Budget;
pub use credentials::{Answer, Authenticator, Credentials, Question};
pub use docker_config::DockerConfig;
pub use health::Health;
pub use listing::Referrer;
pub use opts::{Limits, RegistryOpts, TlsFiles, Wide};
pub use proxy::Proxies;
pub use push::Pushed;
pub use reader::BlobReader;
pub use reference::Reference;
pub use repository::Repository;
pub use watch::Watch;
pub use wide::WideReader;

/// Largest manifest.
pub const MAX_MANIFEST: u64 = 4 << 20;
