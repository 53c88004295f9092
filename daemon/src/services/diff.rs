//! `containerd.services.diff.v1.Diff`: layers onto mounts and back.

use std::sync::Arc;

use async_trait::async_trait;
use diff::{ApplyOpts, CompareOpts};
use grpc::diff::Diff as Service;
use grpc::serve;
use metadata::Metadata;
use protos::MessageField;
use protos::services::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use protos::wire::Wire as _;
use tonic::{Request, Response, Status};
use types::{Any, Descriptor, Labels, Mount, Result};

use crate::engine::Differs;

/// Asks the differs in their order.
#[derive(Clone, Debug)]
pub(crate) struct Diff {
    /// The namespace's content comes from here.
    pub(crate) metadata: Metadata,
    /// Who can do it.
    pub(crate) differs: Arc<Differs>,
}

#[async_trait]
impl Service for Diff {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let diff = self.clone();
        serve(request, |scope, request| async move {
            let layer = Descriptor::from_wire(request.diff.unwrap_or_default())?;
            let mounts = Vec::<Mount>::from_wire(request.mounts)?;
            let payloads = request.payloads.into_iter();
            let payloads = payloads.map(|(id, any)| Ok((id, Any::from_wire(any)?)));
            let opts = ApplyOpts {
                payloads: payloads.collect::<Result<_>>()?,
                sync: request.sync_fs,
                ..ApplyOpts::default()
            };
            let store = diff.metadata.scoped(&scope).content();
            let _applying = diff.metadata.applying(&mounts);
            let applied = diff.differs.apply(&store, &layer, &mounts, opts).await?;
            let applied = MessageField::some(applied.to_wire());
            Ok(ApplyResponse {
                applied,
                ..Default::default()
            })
        })
        .await
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let diff = self.clone();
        serve(request, |scope, request| async move {
            let (left, right) = (
                Vec::<Mount>::from_wire(request.left)?,
                Vec::<Mount>::from_wire(request.right)?,
            );
            let reference = Some(request.ref_).filter(|reference| !reference.is_empty());
            let opts = CompareOpts {
                media_type: request.media_type,
                reference: reference.map(TryInto::try_into).transpose()?,
                labels: Labels::from_wire(request.labels)?,
                source_date_epoch: Option::from_wire(request.source_date_epoch)?,
            };
            let store = diff.metadata.scoped(&scope).content();
            let made = diff.differs.compare(&store, &left, &right, opts).await?;
            Ok(DiffResponse {
                diff: MessageField::some(made.to_wire()),
                ..Default::default()
            })
        })
        .await
    }
}
