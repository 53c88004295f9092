//! Whether a shim answers at all.

use protos::shim::task as wire;

use super::{Client, Failure};

impl Client {
    /// Waits for any answer, however long it takes. Safe to cancel.
    ///
    /// # Errors
    /// `Lost` when the connection ends; an error is an answer.
    pub(crate) async fn answers(&self) -> Result<(), Failure> {
        let request = wire::ConnectRequest {
            id: self.id.to_string(),
            ..Default::default()
        };
        let request = self.request("Connect", &request, None)?;
        self.connection.call(&request).await.map(drop)
    }
}
