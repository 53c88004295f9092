//! `containerd.services.attach.v1.Attach`: where a task's shim listens. Ours; docs/attach.md.

use std::sync::Arc;

use async_trait::async_trait;
use grpc::attach::Attach as Service;
use grpc::serve;
use protos::services::attach::{EndpointRequest, EndpointResponse};
use runtime_v2::TaskManager;
use tonic::{Request, Response, Status};

use super::known;

/// Tells clients whom to attach to.
#[derive(Clone, Debug)]
pub(crate) struct Attach {
    /// Keeps the tasks.
    pub(crate) manager: Arc<dyn TaskManager>,
}

#[async_trait]
impl Service for Attach {
    async fn endpoint(
        &self,
        request: Request<EndpointRequest>,
    ) -> Result<Response<EndpointResponse>, Status> {
        let manager = Arc::clone(&self.manager);
        serve(request, |scope, request| async move {
            let id = known(&request.container_id, "task")?;
            let task = manager.get(&scope.namespace, &id).await?;
            Ok(EndpointResponse {
                address: task.endpoint()?,
                ..Default::default()
            })
        })
        .await
    }
}
