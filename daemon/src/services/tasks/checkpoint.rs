//! From a running task to a directory of the client's, or to blobs in the content store.

use protos::Message as _;
use protos::any::{is, unpack};
use protos::runc::CheckpointOptions;
use protos::wire::Wire as _;
use runtime_v2::{Status, Task};
use types::{Any, Descriptor, Error, Result, Scope};

use super::Tasks;
use crate::checkpoints::Private;

/// Writes a checkpoint: into the directory that the options name, else into the content store, as
/// archive and spec of the container.
///
/// # Errors
/// `InvalidArgument` for options of another type; what the runtime says; those of the store.
pub(super) async fn write(
    tasks: &Tasks,
    scope: &Scope,
    task: &dyn Task,
    options: Option<Any>,
) -> Result<Vec<Descriptor>> {
    let options = options.filter(|options| !options.is_empty());
    let path = path(options.as_ref())?;
    if !path.is_empty() {
        task.checkpoint(&path, options).await?;
        return Ok(Vec::new());
    }
    let container = tasks.metadata.containers(scope).get(task.id()).await?;
    let private = tasks.checkpoints.private()?;
    let spec = container.spec.unwrap_or_default();
    let error = match stored(tasks, scope, task, options, &private, spec).await {
        Ok(blobs) => return Ok(blobs),
        Err(error) => error,
    };
    // What there is may be all that is left of it.
    match task.state(None).await {
        Ok(state) if state.status == Status::Stopped => match private.keep() {
            Ok(kept) => Err(error.ctx(format!(
                "the task has ended, its checkpoint is in {}",
                kept.display()
            ))),
            Err(lost) => Err(error.ctx(lost.to_string())),
        },
        _ => Err(error),
    }
}

async fn stored(
    tasks: &Tasks,
    scope: &Scope,
    task: &dyn Task,
    options: Option<Any>,
    private: &Private,
    spec: Any,
) -> Result<Vec<Descriptor>> {
    let path = private.path().display().to_string();
    task.checkpoint(&path, options).await?;
    let store = tasks.metadata.scoped(scope).content();
    let image = tasks.checkpoints.pack(&store, private).await?;
    // Parity: services/tasks/local.go: the spec as a message, the way records hold it.
    let spec = spec.to_wire().write_to_bytes().map_err(Error::internal)?;
    let config = tasks.checkpoints.put_config(&store, private, spec).await?;
    Ok(vec![image, config])
}

/// Where a checkpoint is to be written; empty for the content store.
fn path(options: Option<&Any>) -> Result<String> {
    match options {
        None => Ok(String::new()),
        Some(options) if is::<CheckpointOptions>(options) => {
            Ok(unpack::<CheckpointOptions>(options)?.image_path)
        }
        Some(other) => Err(Error::invalid_argument(format_args!(
            "checkpoint options of type {:?}",
            other.type_url
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_may_name_a_directory() {
        let with = CheckpointOptions {
            image_path: "/c".into(),
            ..CheckpointOptions::default()
        };
        let with = protos::any::pack(&with).unwrap();
        assert_eq!(path(Some(&with)).unwrap(), "/c");
        assert_eq!(path(None).unwrap(), "");
        let other = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: Vec::new(),
        };
        let error = path(Some(&other)).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
    }
}
