//! A differ at the other end of a socket. It works on the daemon's own content store, which it finds by
//! the caller's namespace: the store that the traits pass is the same one seen from here, and is not used.

use std::sync::Arc;

use ::diff::{Applier, ApplyOpts, CompareOpts, Comparer};
use async_trait::async_trait;
use content::ContentStore;
use grpc::diff::DiffClient;
use protos::MessageField;
use protos::services::diff as wire;
use protos::wire::Wire as _;
use types::{Descriptor, Mount, Result, Scope};

use crate::again::Again;
use crate::call::{Caller, done, present};

/// The diff service of a daemon.
#[derive(Clone, Debug)]
pub struct RemoteDiff {
    caller: Caller,
    settles: bool,
}

impl RemoteDiff {
    /// The differ that `caller` reaches.
    #[must_use]
    pub fn new(caller: Caller) -> Self {
        Self {
            caller,
            settles: false,
        }
    }

    /// The same, when layers may be given to it without their parents.
    #[must_use]
    pub fn with_settling(self, settles: bool) -> Self {
        Self { settles, ..self }
    }

    /// Who calls: on behalf of `scope`, if that is said.
    fn caller(&self, scope: Option<Scope>) -> Caller {
        scope.map_or_else(|| self.caller.clone(), |scope| self.caller.scoped(scope))
    }

    fn stub(&self) -> DiffClient<Again> {
        DiffClient::new(self.caller.channel())
    }
}

#[async_trait]
impl Applier for RemoteDiff {
    async fn apply(
        &self,
        _store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        let message = wire::ApplyRequest {
            diff: MessageField::some(layer.to_wire()),
            mounts: mounts.iter().map(Mount::to_wire).collect(),
            payloads: opts
                .payloads
                .iter()
                .map(|(id, any)| (id.clone(), any.to_wire()))
                .collect(),
            sync_fs: opts.sync,
            ..Default::default()
        };
        let caller = self.caller(opts.scope);
        let answer = done(self.stub().apply(caller.endless(message)?).await)?;
        Descriptor::from_wire(present(answer.applied, "descriptor")?)
    }

    fn settles(&self) -> bool {
        self.settles
    }
}

#[async_trait]
impl Comparer for RemoteDiff {
    async fn compare(
        &self,
        _store: &Arc<dyn ContentStore>,
        lower: &[Mount],
        upper: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor> {
        let message = wire::DiffRequest {
            left: lower.iter().map(Mount::to_wire).collect(),
            right: upper.iter().map(Mount::to_wire).collect(),
            media_type: opts.media_type,
            ref_: opts.reference.map(|r| r.to_string()).unwrap_or_default(),
            labels: opts.labels.to_wire(),
            source_date_epoch: opts.source_date_epoch.to_wire(),
            ..Default::default()
        };
        let caller = self.caller(opts.scope);
        let answer = done(self.stub().diff(caller.endless(message)?).await)?;
        Descriptor::from_wire(present(answer.diff, "descriptor")?)
    }
}
