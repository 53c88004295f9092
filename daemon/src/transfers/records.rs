//! Image records of a namespace, as transfers write them.

use ::transfer::{Deps, Names};
use async_trait::async_trait;
use images::{ImageStore, PlatformSet};
use metadata::Images;
use types::transfer::Store;
use types::{Context as _, Descriptor, Error, Image, Labels, Result};

use super::report::Report;

/// The names that a destination asks for.
pub(super) fn names(store: &Store) -> Names {
    Names {
        name: store.name.clone(),
        rules: store.references.clone(),
    }
}

/// The records of a scope.
#[derive(Debug)]
pub(super) struct Records(pub(super) Images);

impl Records {
    /// Writes a record for each name of the whole.
    ///
    /// # Errors
    /// `NotFound` when there is no name.
    pub(super) async fn put_all(
        &self,
        names: &Names,
        target: &Descriptor,
        labels: &Labels,
    ) -> Result<Vec<Image>> {
        let all = names.whole(&target.digest);
        if all.is_empty() {
            return Err(Error::not_found("no image name found"));
        }
        let mut made = Vec::with_capacity(all.len());
        for name in all {
            let labels = names.labels(&name, labels)?;
            made.push(self.put(&name, target.clone(), labels).await?);
        }
        Ok(made)
    }
}

#[async_trait]
impl ImageStore for Records {
    /// When another client makes or removes the record between the two steps, they are tried again.
    async fn put(&self, name: &str, target: Descriptor, labels: Labels) -> Result<Image> {
        let (image, fields) = images::record(name, target, labels);
        match self.0.create(image.clone(), None).await {
            Err(e) if e.is_already_exists() => {}
            made => return made,
        }
        match self
            .0
            .update(image.clone(), &fields, None)
            .await
            .absent_ok()?
        {
            Some(updated) => Ok(updated),
            None => self.0.create(image, None).await,
        }
    }
}

/// Takes a pulled image: unpacks what is left to unpack, then writes its records.
#[derive(Debug)]
pub(super) struct Storer {
    pub(super) images: Images,
    pub(super) names: Names,
    pub(super) labels: Labels,
    pub(super) later: Vec<(Deps, PlatformSet)>,
    pub(super) report: Report,
}

#[async_trait]
impl ImageStore for Storer {
    async fn put(&self, _reference: &str, target: Descriptor, _labels: Labels) -> Result<Image> {
        for (deps, wanted) in &self.later {
            let found = images::manifests(deps.content.as_ref(), &target, wanted).await?;
            if found.is_empty() {
                tracing::warn!(?wanted, "image has nothing to unpack for this platform");
                continue;
            }
            let listener = self.report.listener();
            ::transfer::unpack_image(deps, &target, wanted, &listener).await?;
        }
        let records = Records(self.images.clone());
        let made = records.put_all(&self.names, &target, &self.labels).await?;
        for image in &made {
            self.report.saved(&image.name, &image.target);
        }
        let first = made.into_iter().next();
        first.ok_or_else(|| Error::not_found("no image name found"))
    }
}
