//! TLS: whom we trust and who we are.
//!
//! Files are read when the first TLS connection is made, so that a host which is never asked cannot
//! spoil a pull.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use types::{Error, Result};

/// Largest file of certificates or keys.
const MAX_FILE: u64 = 8 << 20;

/// Whom we trust, and who we are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    /// Accept any certificate.
    pub(crate) skip_verify: bool,
    /// Trust these files instead of the system's roots.
    pub(crate) only: Vec<PathBuf>,
    /// Trust these files as well.
    pub(crate) also: Vec<PathBuf>,
    /// Client certificates, each with the file of its key if that is another one.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
}

impl Trust {
    /// Who a proxy on the way to the same host has to be: its certificate counts, whatever may be passed
    /// over of the host's, as it gets a password of its own. We show none of ours.
    pub(crate) fn of_proxies(&self) -> Self {
        Self {
            also: self.only.iter().chain(&self.also).cloned().collect(),
            ..Self::default()
        }
    }
}

/// The TLS configuration of a client. Reads files: blocks for a moment.
pub(crate) fn config(trust: &Trust) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::internal(format_args!("tls: {error}")))?;
    let builder = if trust.skip_verify {
        let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
        builder
            .dangerous()
            .with_custom_certificate_verifier(verifier)
    } else {
        builder.with_root_certificates(roots(trust)?)
    };
    if trust.client.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let mut keys = Vec::new();
    for (cert, key) in &trust.client {
        let chain = certificates(cert)?;
        let file = key.as_ref().unwrap_or(cert);
        let key = PrivateKeyDer::from_pem_slice(&read(file)?)
            .map_err(|error| bad(file, "no private key", &error))?;
        let made = CertifiedKey::from_der(chain, key, &provider)
            .map_err(|error| bad(cert, "certificate and key", &error))?;
        keys.push(Arc::new(made));
    }
    Ok(builder.with_client_cert_resolver(Arc::new(OurKeys(keys))))
}

fn roots(trust: &Trust) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    if trust.only.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "root certificates of this host");
        }
        // Damaged ones among a hundred others are no reason to trust none.
        let (added, ignored) = store.add_parsable_certificates(found.certs);
        tracing::debug!(added, ignored, "root certificates of this host");
    }
    for file in trust.only.iter().chain(&trust.also) {
        for cert in certificates(file)? {
            store
                .add(cert)
                .map_err(|error| bad(file, "unable to load CA cert", &error))?;
        }
    }
    Ok(store)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let data = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&data).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(bad(file, "no certificate", &"no PEM section")),
        Err(error) => Err(bad(file, "no certificate", &error)),
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let failed = |error| Error::os(format_args!("read {}", file.display()), error);
    let mut data = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut data))
        .map_err(failed)?;
    if data.len() as u64 > MAX_FILE {
        return Err(Error::resource_exhausted(format_args!(
            "{} is larger than {MAX_FILE} bytes",
            file.display()
        )));
    }
    Ok(data)
}

fn bad(file: &Path, what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::invalid_argument(format_args!("{}: {what}: {error}", file.display()))
}

/// Our certificates: the one whose issuer the server names, or else the first.
#[derive(Debug)]
struct OurKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for OurKeys {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut fitting = self
            .0
            .iter()
            .filter(|key| key.key.choose_scheme(schemes).is_some());
        // The issuer's encoded name stands in the certificate as it is in the hint.
        let named = |key: &&Arc<CertifiedKey>| {
            let mut chain = key.cert.iter();
            chain.any(|cert| hints.iter().any(|hint| contains(cert, hint)))
        };
        let found = fitting.clone().find(named).or_else(|| fitting.next());
        found.map(Arc::clone)
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

fn contains(cert: &[u8], name: &[u8]) -> bool {
    !name.is_empty() && cert.windows(name.len()).any(|part| part == name)
}

/// `--skip-verify`: any certificate will do, as long as its key signed the handshake.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
