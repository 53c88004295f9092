//! `containerd.services.diff.v1.Diff` over any differ.

use async_trait::async_trait;
use diff::{ApplyOpts, CompareOpts};
use grpc::diff::Diff as Service;
use grpc::serve;
use protos::MessageField;
use protos::services::diff::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use protos::wire::Wire as _;
use tonic::{Request, Response, Status};
use types::{Any, Descriptor, Labels, Mount, Result, Scope};

/// What the service asks: a differ with a content store for each namespace.
#[async_trait]
pub trait Differs: Clone + Send + Sync + 'static {
    /// Applies a layer, as [`diff::Applier::apply`].
    ///
    /// # Errors
    /// Those of the differ.
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor>;

    /// Makes a layer, as [`diff::Comparer::compare`].
    ///
    /// # Errors
    /// Those of the differ.
    async fn compare(
        &self,
        scope: &Scope,
        lower: &[Mount],
        upper: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor>;
}

/// The service.
#[derive(Clone, Debug)]
pub struct Diff<D>(pub D);

#[async_trait]
impl<D: Differs> Service for Diff<D> {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let differs = self.0.clone();
        serve(request, |scope, request| async move {
            let layer = Descriptor::from_wire(request.diff.unwrap_or_default())?;
            let mounts = Vec::<Mount>::from_wire(request.mounts)?;
            let payloads = request.payloads.into_iter();
            let payloads = payloads.map(|(id, any)| Ok((id, Any::from_wire(any)?)));
            let opts = ApplyOpts {
                payloads: payloads.collect::<Result<_>>()?,
                sync: request.sync_fs,
                scope: Some(scope.clone()),
                ..ApplyOpts::default()
            };
            let applied = differs.apply(&scope, &layer, &mounts, opts).await?;
            let applied = MessageField::some(applied.to_wire());
            Ok(ApplyResponse {
                applied,
                ..Default::default()
            })
        })
        .await
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let differs = self.0.clone();
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
                scope: Some(scope.clone()),
            };
            let made = differs.compare(&scope, &left, &right, opts).await?;
            Ok(DiffResponse {
                diff: MessageField::some(made.to_wire()),
                ..Default::default()
            })
        })
        .await
    }
}
