//! Mounts that the daemon performs for its clients.

use grpc::mounts::MountsClient;
use protos::services::mounts as wire;
use protos::wire::Wire as _;
use types::{Activation, Code, Labels, Mount, Result};

use crate::again::Again;
use crate::call::{done, present};

super::service! {
    /// The activations of a namespace.
    Mounts, MountsClient<Again>
}

impl Mounts {
    /// Lets the daemon perform what of `mounts` only it can, under the name `name` and the caller's lease;
    /// what is left to mount. One of that name that is there already is taken as it is. A daemon that
    /// performs none leaves all of them.
    ///
    /// # Errors
    /// Those of the mounts.
    pub async fn activate(&self, name: &str, mounts: Vec<Mount>) -> Result<Vec<Mount>> {
        let message = wire::ActivateRequest {
            name: name.to_owned(),
            mounts: mounts.to_wire(),
            labels: Labels::new().to_wire(),
            ..Default::default()
        };
        let answer = done(self.stub().activate(self.caller.endless(message)?).await);
        let info = match answer {
            Ok(answer) => answer.info,
            Err(error) if error.is(Code::NotImplemented) => return Ok(mounts),
            Err(error) if error.is_already_exists() => {
                let message = wire::InfoRequest {
                    name: name.to_owned(),
                    ..Default::default()
                };
                done(self.stub().info(self.caller.request(message)?).await)?.info
            }
            Err(error) => return Err(error),
        };
        Ok(Activation::from_wire(present(info, "activation")?)?.system)
    }

    /// Takes the mounts of that name away, if there are any.
    ///
    /// # Errors
    /// Those of unmounting.
    pub async fn deactivate(&self, name: &str) -> Result<()> {
        let message = wire::DeactivateRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        match done(self.stub().deactivate(self.caller.endless(message)?).await) {
            Err(error) if !error.is_not_found() && !error.is(Code::NotImplemented) => Err(error),
            _ => Ok(()),
        }
    }
}
