//! Asking verifiers whether an image may come in.

use std::sync::Arc;

use images::Verifier;
use types::{Context as _, Descriptor, Error, Result};

/// Asks all of them; each must agree.
///
/// # Errors
/// `PermissionDenied` with the reason of the one that does not; that of one which cannot tell.
pub async fn verify(
    verifiers: &[Arc<dyn Verifier>],
    name: &str,
    target: &Descriptor,
) -> Result<()> {
    for verifier in verifiers {
        let judgement = verifier.verify(name, target).await.ctx_with(|| {
            format!(
                "blocking pull of {name} with digest {}: image verifier",
                target.digest
            )
        })?;
        if !judgement.ok {
            tracing::warn!(name, digest = %target.digest, reason = judgement.reason, "image blocked");
            return Err(Error::permission_denied(format_args!(
                "image verifier blocked pull of {name} with digest {} for reason: {}",
                target.digest, judgement.reason
            )));
        }
        tracing::debug!(name, reason = judgement.reason, "image allowed");
    }
    Ok(())
}
