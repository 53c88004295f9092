//! Which names an image gets in the store.
//!
//! Parity: core/transfer/image/imagestore.go: clients know their images by these names afterwards.

use std::time::SystemTime;

use images::name::{ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, Prefix};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::transfer::NameRule;
use types::{Descriptor, Digest, Error, Labels, Result, gc_label};

/// One name of what is stored as a whole, and rules for what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Name of the whole; may be empty.
    pub name: String,
    /// More names.
    pub rules: Vec<NameRule>,
}

impl Names {
    /// The names of an image in an archive, by what its descriptor says of itself.
    #[must_use]
    pub fn of(&self, image: &Descriptor) -> Vec<String> {
        let mut names = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.is_prefix) {
            let prefix = if rule.allow_overwrite {
                Prefix::Add(rule.name.clone())
            } else {
                Prefix::Filter(rule.name.clone())
            };
            let name = annotated(&image.annotations, &prefix);
            if rule.add_digest && !(name.is_some() && rule.skip_named_digest) {
                names.push(prefix.by_digest(&image.digest));
            }
            names.extend(name);
        }
        names
    }

    /// The names of the whole, the main one first.
    #[must_use]
    pub fn whole(&self, digest: &Digest) -> Vec<String> {
        let main = Some(self.name.clone()).filter(|name| !name.is_empty());
        let more = self.rules.iter().filter_map(|rule| {
            if rule.add_digest {
                Some(format!("{}@{digest}", rule.name))
            } else {
                (!rule.is_prefix).then(|| rule.name.clone())
            }
        });
        main.into_iter().chain(more).collect()
    }

    /// The labels of the record `name`. One beside the main name goes with that: it has expired from
    /// the start, and the main record keeps it.
    ///
    /// # Errors
    /// `Internal`: never in practice.
    pub fn labels(&self, name: &str, labels: &Labels) -> Result<Labels> {
        if self.name.is_empty() || self.name == name {
            return Ok(labels.clone());
        }
        let now = OffsetDateTime::from(SystemTime::now()).format(&Rfc3339);
        let now = now.map_err(|e| Error::internal("time as text").with_source(e))?;
        Ok(labels
            .clone()
            .with(gc_label::BREF_IMAGE, &self.name)
            .with(gc_label::EXPIRE, now))
    }
}

/// The name that an image brings with it: a full one as it is, a tag behind the prefix.
fn annotated(annotations: &Labels, prefix: &Prefix) -> Option<String> {
    let full = annotations.get(ANNOTATION_IMAGE_NAME);
    if let Some(name) = full.filter(|name| !name.is_empty()) {
        return Some(name.clone());
    }
    prefix.name(annotations.get(ANNOTATION_REF_NAME)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::media_type as mt;

    fn image(annotations: &[(&str, &str)]) -> Descriptor {
        Descriptor {
            media_type: mt::OCI_MANIFEST.into(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            size: 1,
            annotations: annotations.iter().copied().collect(),
        }
    }

    fn rule(flags: &str) -> NameRule {
        NameRule {
            name: "r.test/a".into(),
            is_prefix: flags.contains('p'),
            allow_overwrite: flags.contains('o'),
            add_digest: flags.contains('d'),
            skip_named_digest: flags.contains('s'),
        }
    }

    #[test]
    fn rules_name_images_by_tag_name_and_digest() {
        let by_digest = format!("r.test/a@sha256:{}", "a".repeat(64));
        let by_digest = by_digest.as_str();
        let (tag, full) = ((ANNOTATION_REF_NAME, "1"), (ANNOTATION_IMAGE_NAME, "b:2"));
        for (flags, annotations, want) in [
            ("p", &[tag][..], &["r.test/a:1"][..]),
            ("p", &[], &[]),
            ("p", &[tag, full], &["b:2"]),
            ("p", &[(ANNOTATION_REF_NAME, "c.test/x:1")], &[]),
            (
                "po",
                &[(ANNOTATION_REF_NAME, "c.test/x:1")],
                &["c.test/x:1"],
            ),
            ("pd", &[tag], &[by_digest, "r.test/a:1"]),
            ("pd", &[], &[by_digest]),
            ("pds", &[tag], &["r.test/a:1"]),
            ("pds", &[], &[by_digest]),
            ("", &[tag], &[]),
        ] {
            let names = Names {
                rules: vec![rule(flags)],
                ..Names::default()
            };
            assert_eq!(
                names.of(&image(annotations)),
                want,
                "{flags} {annotations:?}"
            );
        }
    }

    #[test]
    fn the_whole_has_its_name_and_those_that_need_no_tag() {
        let digest = image(&[]).digest;
        let names = Names {
            name: "main".into(),
            rules: ["p", "pd", ""].map(rule).to_vec(),
        };
        let by_digest = format!("r.test/a@{digest}");
        assert_eq!(names.whole(&digest), ["main", &by_digest, "r.test/a"]);
        assert!(Names::default().whole(&digest).is_empty());
    }

    #[test]
    fn a_name_beside_the_main_one_goes_with_it() {
        let mut names = Names {
            name: "main".into(),
            rules: Vec::new(),
        };
        let own = Labels::new().with("k", "v");
        assert_eq!(names.labels("main", &own).unwrap(), own);
        let other = names.labels("other", &own).unwrap();
        assert_eq!(other[gc_label::BREF_IMAGE], "main");
        assert!(other.contains_key(gc_label::EXPIRE) && other["k"] == "v");
        names.name.clear();
        assert_eq!(names.labels("other", &own).unwrap(), own);
    }
}
