//! `containerd.services.version.v1.Version`.

use async_trait::async_trait;
use grpc::version::Version as Service;
use protos::services::version::VersionResponse;
use protos::well_known::Empty;
use tonic::{Request, Response, Status};

use crate::version::{REVISION, VERSION};

/// Says what runs.
#[derive(Debug)]
pub(crate) struct Version;

#[async_trait]
impl Service for Version {
    async fn version(&self, request: Request<Empty>) -> Result<Response<VersionResponse>, Status> {
        grpc::serve_unscoped(request, |_| async {
            Ok(VersionResponse {
                version: VERSION.into(),
                revision: REVISION.into(),
                ..Default::default()
            })
        })
        .await
    }
}
