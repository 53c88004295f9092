//! `containerd.services.flight.v1.Flights`: what is going on. Ours; docs/seen.md.

use async_trait::async_trait;
use grpc::flight::Flights as Service;
use grpc::serve_unscoped_cancellable;
use protos::services::flight::{ListFlightsRequest, ListFlightsResponse};
use tonic::{Request, Response, Status};
use types::Error;

use crate::flights::{self, Wanted};

/// Tells what the recorder has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flights;

#[async_trait]
impl Service for Flights {
    async fn list(
        &self,
        request: Request<ListFlightsRequest>,
    ) -> Result<Response<ListFlightsResponse>, Status> {
        serve_unscoped_cancellable(request, |request| async move {
            let wanted = Wanted {
                subject: request.subject,
                namespace: request.namespace,
                finished: request.finished,
                standing: request.standing,
            };
            // It reads of every process that is waited for.
            let told = tokio::task::spawn_blocking(move || flights::tell(&wanted)).await;
            told.map_err(Error::internal)
        })
        .await
    }
}
