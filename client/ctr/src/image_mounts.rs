//! `ctr images mount`, `unmount`: the root file system of an image at a path.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::images::PlatformSet;
use client::Client;
use transfer::OnProgress;
use types::{Context as _, Error, Labels, LeaseId, Platform, Result, SnapshotKey};

use crate::context::Context;
use crate::pull::{deps, interruptible};
use crate::{out, text};

/// Mount an image to a target path
#[derive(Debug, clap::Args)]
pub(crate) struct Mount {
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Enable write support on the mount
    #[arg(long)]
    rw: bool,
    /// Mount the image for the specified platform
    #[arg(long)]
    platform: Option<Platform>,
    /// Flush what is unpacked; that is done with and without it
    #[arg(long)]
    sync_fs: bool,
    /// After this time the snapshot may be collected
    #[arg(short = 'x', long, value_parser = text::duration, default_value = "1h")]
    expiration: Duration,
    /// Image
    image: String,
    /// Where to mount; without it the mount is only prepared
    target: Option<PathBuf>,
}

/// Unmount the image from the target
#[derive(Debug, clap::Args)]
pub(crate) struct Unmount {
    /// Snapshotter name; empty for the namespace's default
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "")]
    snapshotter: String,
    /// Remove the snapshot after a successful unmount
    #[arg(long)]
    rm: bool,
    /// Where it is mounted
    target: PathBuf,
}

/// Parity: cmd/ctr/commands/images/mount.go: lease and snapshot are named by the target, and the first
/// line is the chain id, the second the target or what to mount.
pub(crate) async fn mount(ctx: &Context, args: Mount) -> Result<u8> {
    let client = ctx.client().await?;
    let name = client.snapshotter_name(&args.snapshotter).await?;
    let key = match &args.target {
        Some(target) => shown(target)?.to_owned(),
        None => format!("ctr-images-mount-{:016x}", rand::random::<u64>()),
    };
    let lease: LeaseId = key.parse()?;
    let leases = client.leases();
    let made = leases
        .create(&lease, Labels::new(), Some(args.expiration))
        .await;
    let is_ours = match made {
        Ok(_) => true,
        Err(error) if error.is_already_exists() => false,
        Err(error) => return Err(error),
    };
    let work = prepare(client.leased(lease.clone()), &name, &args, &key);
    let done = interruptible(work).await;
    if done.is_err() && is_ours {
        // It would expire; the failure is the news.
        drop(leases.delete(&lease, false).await);
    }
    done.map(|()| 0)
}

async fn prepare(client: Client, snapshotter: &str, args: &Mount, key: &str) -> Result<()> {
    let image = client.images().get(&args.image).await?;
    let wanted = match &args.platform {
        Some(platform) => PlatformSet::Only(vec![platform.clone()]),
        None => PlatformSet::default(),
    };
    let deps = deps(&client, snapshotter);
    let quiet = OnProgress::default();
    let chain = transfer::unpack_image(&deps, &image.target, &wanted, &quiet)
        .await
        .ctx("error unpacking image")?;
    let parent = match &chain {
        Some(chain) => Some(chain.as_str().parse::<SnapshotKey>()?),
        None => None,
    };
    let key: SnapshotKey = key.parse()?;
    let store = client.snapshotter(snapshotter);
    let made = if args.rw {
        store.prepare(&key, parent.as_ref(), Labels::new()).await
    } else {
        store.view(&key, parent.as_ref(), Labels::new()).await
    };
    let mounts = match made {
        Err(error) if error.is_already_exists() => store.mounts(&key).await?,
        made => made?,
    };
    if let Some(chain) = chain {
        out::line(&chain)?;
    }
    let Some(target) = &args.target else {
        return out::json(
            &mounts
                .iter()
                .map(|m| {
                    serde_json::json!({
                        "Type": m.kind,
                        "Source": m.source,
                        "Target": m.target,
                        "Options": m.options,
                    })
                })
                .collect::<Vec<_>>(),
        );
    };
    // Some snapshotters ask for mounts that only the daemon performs; they are held by the lease.
    let name = shown(target)?;
    let left = client.mounts().activate(name, mounts).await;
    let done = left.and_then(|mounts| sys::mount::mount_all(&mounts, target));
    if let Err(error) = done {
        // A snapshot that nobody mounted is nobody's.
        drop(client.mounts().deactivate(name).await);
        drop(store.remove(&key).await);
        return Err(error.ctx("mount image"));
    }
    out::line(name)
}

pub(crate) async fn unmount(ctx: &Context, args: Unmount) -> Result<u8> {
    let target = shown(&args.target)?;
    sys::mount::unmount_all(&args.target)?;
    let client = ctx.client().await;
    if let Ok(client) = &client {
        let deactivated = client.mounts().deactivate(target).await;
        deactivated.ctx("unmount what the daemon has mounted")?;
    }
    if args.rm {
        let client = client?;
        let name = client.snapshotter_name(&args.snapshotter).await?;
        let lease: LeaseId = target.parse()?;
        let deleted = client.leases().delete(&lease, false).await;
        deleted.absent_ok().ctx("error deleting lease")?;
        let key: SnapshotKey = target.parse()?;
        let removed = client.snapshotter(&name).remove(&key).await;
        removed.absent_ok().ctx("error removing snapshot")?;
    }
    out::line(target)?;
    Ok(0)
}

/// A path as a name: ids are text.
fn shown(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| Error::invalid_argument(format_args!("{} is no text", path.display())))
}
