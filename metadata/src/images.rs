//! The store of images.

use std::time::SystemTime;

use types::{
    Digest, Error, Event, Fields, Filter, Identifier, Image, ImageRef, Resource, Result, Scope,
    gc_label,
};

use crate::db::WriteTx;
use crate::key::{Bucket, all, names, own};
use crate::kv::{Flow, Read};
use crate::record::{get_image, put_image, view_image};
use crate::{Metadata, gc, leases, mask};

/// The images of one namespace.
#[derive(Clone, Debug)]
pub struct Images {
    metadata: Metadata,
    scope: Scope,
}

impl Images {
    pub(crate) fn new(metadata: Metadata, scope: Scope) -> Self {
        Self { metadata, scope }
    }

    /// The image of this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, name: &str) -> Result<Image> {
        load(&self.metadata.0.db.kv.read()?, &self.scope, name)
    }

    /// Shows the images that pass the filter, ordered by name, where they are: for those who only hand
    /// them on. Ends early when `see` says so.
    ///
    /// # Errors
    /// I/O.
    pub fn visit(&self, filter: &Filter, see: &mut dyn FnMut(&ImageRef<'_>) -> bool) -> Result<()> {
        let snapshot = self.metadata.0.db.kv.read()?;
        let prefix = all(Bucket::Image, &self.scope.namespace);
        snapshot.scan(&prefix, &mut |rest, record| {
            let [name] = names(rest)?;
            let passes = filter.is_empty() || filter.matches(&get_image(name, record)?);
            if passes && !see(&view_image(name, record)?) {
                return Ok(Flow::Break(()));
            }
            Ok(Flow::Continue(()))
        })
    }

    /// Makes an image. The store stamps it: now, or `epoch` for reproducible results.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument`; `NotFound` for the scope's lease.
    pub async fn create(&self, image: Image, epoch: Option<SystemTime>) -> Result<Image> {
        validate(&image)?;
        let scope = self.scope.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let mut image = image;
            let at = own(Bucket::Image, &scope.namespace, &image.name);
            tx.touch(&scope.namespace)?;
            join_lease(tx, &scope, &image)?;
            if tx.has(&at)? {
                return Err(Error::already_exists(format_args!(
                    "image {:?}",
                    image.name
                )));
            }
            image.created_at = epoch.unwrap_or_else(SystemTime::now);
            image.updated_at = image.created_at;
            image = tidy(image);
            tx.put(at, put_image(&image));
            tx.expires(gc::due(&image.labels));
            tx.event(
                &scope.namespace,
                Event::ImageCreate {
                    name: image.name.clone(),
                    labels: image.labels.clone(),
                },
            );
            Ok(image)
        };
        self.metadata.0.db.write(change).await
    }

    /// Changes what the mask names: `labels`, `labels.<key>`, `target`, `annotations`,
    /// `annotations.<key>`; everything without a mask.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument`.
    pub async fn update(
        &self,
        image: Image,
        fields: &Fields,
        epoch: Option<SystemTime>,
    ) -> Result<Image> {
        if image.name.is_empty() {
            return Err(Error::invalid_argument("image name is required for update"));
        }
        let scope = self.scope.clone();
        let fields = fields.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let current = load(&**tx, &scope, &image.name)?;
            let created_at = current.created_at;
            let before = (current.target.digest.clone(), current.labels.clone());
            let mut updated = apply(current, image, &fields)?;
            validate(&updated)?;
            join_lease(tx, &scope, &updated)?;
            updated.created_at = created_at;
            updated.updated_at = epoch.unwrap_or_else(SystemTime::now);
            updated = tidy(updated);
            // Another target or other references: what was kept may be garbage now.
            if before != (updated.target.digest.clone(), updated.labels.clone()) {
                tx.mark();
            }
            let at = own(Bucket::Image, &scope.namespace, &updated.name);
            tx.put(at, put_image(&updated));
            tx.expires(gc::due(&updated.labels));
            tx.event(
                &scope.namespace,
                Event::ImageUpdate {
                    name: updated.name.clone(),
                    labels: updated.labels.clone(),
                },
            );
            Ok(updated)
        };
        self.metadata.0.db.write(change).await
    }

    /// Removes an image; with `target` only when it still names that. `sync` also collects before
    /// the answer.
    ///
    /// # Errors
    /// `NotFound`, also when the target is another one.
    pub async fn delete(&self, name: &str, target: Option<&Digest>, sync: bool) -> Result<()> {
        let scope = self.scope.clone();
        let name = name.to_owned();
        let target = target.cloned();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let image = load(&**tx, &scope, &name)?;
            if let Some(target) = target
                && target != image.target.digest
            {
                return Err(Error::not_found(format_args!(
                    "image {name:?} has target {}, not {target}",
                    image.target.digest
                )));
            }
            leases::drop_resource(tx, &scope, &Resource::Image(name.clone()));
            tx.remove(own(Bucket::Image, &scope.namespace, &name));
            tx.mark();
            tx.event(&scope.namespace, Event::ImageDelete { name });
            Ok(())
        };
        self.metadata.0.db.write(change).await?;
        if sync {
            self.metadata.gc().await?;
        }
        Ok(())
    }
}

fn load(tx: &dyn Read, scope: &Scope, name: &str) -> Result<Image> {
    let missing = || Error::not_found(format_args!("image {name:?}"));
    if name.contains('\0') {
        return Err(missing());
    }
    let record = tx.get(&own(Bucket::Image, &scope.namespace, name))?;
    get_image(name, &record.ok_or_else(missing)?)
}

/// An image that can expire lives as long as its lease at least.
fn join_lease(tx: &mut WriteTx<'_, '_>, scope: &Scope, image: &Image) -> Result<()> {
    if image.labels.contains_key(gc_label::EXPIRE) {
        leases::add_resource(tx, scope, &Resource::Image(image.name.clone()))?;
    }
    Ok(())
}

fn tidy(mut image: Image) -> Image {
    image.labels = image.labels.without_empty();
    image.target.annotations = image.target.annotations.without_empty();
    image
}

fn validate(image: &Image) -> Result<()> {
    Identifier::check_free(&image.name, "image name")?;
    image.labels.validate().map_err(|e| e.ctx("image.Labels"))?;
    if image.target.size == 0 {
        return Err(Error::invalid_argument(
            "target.Size must be greater than zero",
        ));
    }
    if image.target.media_type.is_empty() {
        return Err(Error::invalid_argument("target.MediaType must be set"));
    }
    Ok(())
}

fn apply(mut current: Image, new: Image, fields: &Fields) -> Result<Image> {
    if fields.is_all() {
        return Ok(new);
    }
    for (path, split) in fields.iter().zip(fields.split()) {
        match split {
            ("labels", None) => current.labels.clone_from(&new.labels),
            ("labels", Some(key)) => mask::set(&mut current.labels, key, &new.labels),
            ("target", None) => current.target.clone_from(&new.target),
            ("annotations", None) => {
                current
                    .target
                    .annotations
                    .clone_from(&new.target.annotations);
            }
            ("annotations", Some(key)) => mask::set(
                &mut current.target.annotations,
                key,
                &new.target.annotations,
            ),
            _ => return Fields::refuse(path, &format!("image {:?}", current.name)),
        }
    }
    Ok(current)
}

#[cfg(test)]
mod tests;
