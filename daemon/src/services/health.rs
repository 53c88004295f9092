//! `grpc.health.v1.Health`: clients ask it before anything else. Who is answered is served.

use async_trait::async_trait;
use grpc::health::Health as Service;
use grpc::{ResponseStream, serve_unscoped, serve_unscoped_stream};
use protos::health::health_check_response::ServingStatus;
use protos::health::{HealthCheckRequest, HealthCheckResponse};
use tonic::{Request, Response, Status};
use types::{Error, Result};

/// Answers for the whole server (the empty name); single services have no health of their own.
#[derive(Debug)]
pub(crate) struct Health;

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
        ..Default::default()
    }
}

#[async_trait]
impl Service for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        serve_unscoped(request, |request| async move {
            match request.service.as_str() {
                "" => Ok(answer(ServingStatus::SERVING)),
                _ => Err(Error::not_found("unknown service")),
            }
        })
        .await
    }

    type WatchStream = ResponseStream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        serve_unscoped_stream(request, |request, sender| async move {
            let status = match request.service.as_str() {
                "" => ServingStatus::SERVING,
                _ => ServingStatus::SERVICE_UNKNOWN,
            };
            sender.send(answer(status)).await?;
            // Nothing changes until the connection ends.
            sender.closed().await;
            Ok(())
        })
    }
}
