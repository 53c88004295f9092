//! How a registry is reached, and who we are there: the client is asked over its stream.

use client::stream::Duplex;
use protos::wire::transfer::{auth_answer_from_any, auth_request_to_any};
use registry::{Credentials, Reference, RegistryOpts};
use types::transfer::{AuthAnswer, AuthRequest, Remote};
use types::{Context as _, Error, Result, Scope};

use super::Shared;
use crate::streams::Held;

/// How long a client may think: people type passwords.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

impl Shared {
    /// How to talk to the registry of `remote`. The stream for credentials stays open with the guard.
    ///
    /// # Errors
    /// `NotFound` for the stream; `InvalidArgument` for a bad reference or scheme; `NotImplemented`
    /// for what cannot be had here.
    pub(super) async fn registry(
        &self,
        scope: &Scope,
        remote: &Remote,
    ) -> Result<(RegistryOpts, Option<Held>)> {
        let refused = |what: &str| Err(Error::not_implemented(what));
        if !remote.headers.is_empty() {
            return refused("header fields for registries");
        }
        if remote.dump || remote.trace {
            return refused("dumps of what registries are asked");
        }
        let plain_http = match remote.default_scheme.as_str() {
            "" | "https" => false,
            "http" => true,
            scheme => {
                return Err(Error::invalid_argument(format_args!(
                    "scheme {scheme:?} of a registry"
                )));
            }
        };
        let mut opts = RegistryOpts {
            plain_http,
            ..RegistryOpts::default()
        };
        if remote.auth_stream.is_empty() {
            return Ok((opts, None));
        }
        let (stream, held) = self.streams.take(&scope.namespace, &remote.auth_stream)?;
        let reference: Reference = remote.reference.parse()?;
        let request = AuthRequest {
            host: reference.host().to_owned(),
            reference: remote.reference.clone(),
            challenges: Vec::new(),
        };
        opts.credentials = ask(stream, &request).await?;
        Ok((opts, Some(held)))
    }
}

/// Asks the client once.
async fn ask(mut stream: Duplex, request: &AuthRequest) -> Result<Option<Credentials>> {
    let asked = async {
        stream.send(auth_request_to_any(request)?).await?;
        let answer = stream.receive().await?;
        let nobody = || Error::unauthenticated("the client gives no credentials");
        auth_answer_from_any(&answer.ok_or_else(nobody)?)
    };
    let late = |_| Err(Error::deadline_exceeded(""));
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    let answer = answer.unwrap_or_else(late);
    Ok(
        match answer.ctx_with(|| format!("ask for credentials for {}", request.host))? {
            AuthAnswer::None => None,
            AuthAnswer::Password { user, secret } => Some(Credentials { user, secret }),
            AuthAnswer::Refresh(secret) => Some(Credentials {
                user: String::new(),
                secret,
            }),
            AuthAnswer::Header(_) => {
                return Err(Error::not_implemented("credentials as a header field"));
            }
        },
    )
}
