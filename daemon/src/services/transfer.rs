//! `containerd.services.transfer.v1.Transfer`: images from one place to another.

use async_trait::async_trait;
use grpc::serve_cancellable;
use grpc::transfer::Transfer as Service;
use protos::services::transfer::TransferRequest;
use protos::well_known::Empty;
use protos::wire::Wire as _;
use protos::wire::transfer::endpoint_from_any;
use tonic::{Request, Response, Status};
use types::{Any, Result};

use crate::transfers::Transfers;

/// Moves images.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    /// What does it.
    pub(crate) transfers: Transfers,
}

#[async_trait]
impl Service for Transfer {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<Empty>, Status> {
        let transfers = self.transfers.clone();
        // Dropped with the call: what came in stays for a resume, nothing else does.
        serve_cancellable(request, |scope, request| async move {
            let source = Any::from_wire(request.source.unwrap_or_default())?;
            let destination = Any::from_wire(request.destination.unwrap_or_default())?;
            let (source, destination) = (
                endpoint_from_any(&source)?,
                endpoint_from_any(&destination)?,
            );
            let progress = request.options.unwrap_or_default().progress_stream;
            let work = transfers.run(scope, source, destination, &progress);
            Box::pin(work).await.map(|()| Empty::new())
        })
        .await
    }
}
