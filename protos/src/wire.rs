//! Values of `types` to messages and back. The only place, besides `client::convert`, that does.
//!
//! Invariant: what `to_wire` makes, `from_wire` reads back unchanged (tested for every type); what
//! a peer sends is validated by the newtypes of `types` on its way in.

pub mod network;
pub mod transfer;

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::types as domain;
use domain::{Error, Fields, Labels, Result};
use protobuf::MessageField;

use crate::types as proto;
use crate::well_known::{Any, FieldMask, Timestamp};

/// Seconds of a valid timestamp: the years 1 (Go's zero time) to 9999.
const SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// Paths of a field mask, and bytes of all of them: clients name a label for every child of a blob, and
/// an index can have thousands.
const MAX_PATHS: usize = 10_000;
const MAX_PATHS_TEXT: usize = 1 << 20;

/// A value that travels as a message.
pub trait Wire: Sized {
    /// The message.
    type Proto;

    /// The message that carries this value.
    fn to_wire(&self) -> Self::Proto;

    /// The value that a message carries.
    ///
    /// # Errors
    /// `InvalidArgument` when the message holds what the value cannot.
    fn from_wire(proto: Self::Proto) -> Result<Self>;
}

impl<T: Wire> Wire for Vec<T> {
    type Proto = Vec<T::Proto>;

    fn to_wire(&self) -> Self::Proto {
        self.iter().map(T::to_wire).collect()
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        proto.into_iter().map(T::from_wire).collect()
    }
}

/// An optional message field.
impl<T: Wire> Wire for Option<T> {
    type Proto = MessageField<T::Proto>;

    fn to_wire(&self) -> Self::Proto {
        self.as_ref().map(T::to_wire).into()
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        proto.into_option().map(T::from_wire).transpose()
    }
}

impl Wire for SystemTime {
    type Proto = Timestamp;

    fn to_wire(&self) -> Timestamp {
        let mut made = Timestamp::new();
        match self.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                made.seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
                made.nanos = nanos(after);
            }
            Err(before) => {
                // Nanoseconds count forward from the second below.
                let before = before.duration();
                let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                let part = nanos(before);
                made.seconds = -whole - i64::from(part > 0);
                made.nanos = if part > 0 { 1_000_000_000 - part } else { 0 };
            }
        }
        made
    }

    fn from_wire(proto: Timestamp) -> Result<Self> {
        let refused = || Error::invalid_argument("timestamp out of range");
        let part = u64::try_from(proto.nanos)
            .ok()
            .filter(|n| *n < 1_000_000_000);
        let part = Duration::from_nanos(part.ok_or_else(refused)?);
        if !SECONDS.contains(&proto.seconds) {
            return Err(refused());
        }
        let whole = Duration::from_secs(proto.seconds.unsigned_abs());
        let time = if proto.seconds < 0 {
            UNIX_EPOCH.checked_sub(whole)
        } else {
            UNIX_EPOCH.checked_add(whole)
        };
        time.and_then(|time| time.checked_add(part))
            .ok_or_else(refused)
    }
}

/// Nanoseconds below the second.
fn nanos(duration: Duration) -> i32 {
    i32::try_from(duration.subsec_nanos()).unwrap_or(0)
}

/// The time in a field; the epoch when there is none.
///
/// # Errors
/// `InvalidArgument` when it is out of range.
pub fn time(field: MessageField<Timestamp>) -> Result<SystemTime> {
    field
        .into_option()
        .map_or(Ok(UNIX_EPOCH), SystemTime::from_wire)
}

/// A length from the wire, where lengths are signed.
///
/// # Errors
/// `InvalidArgument` when it is negative.
pub fn length(field: &str, value: i64) -> Result<u64> {
    u64::try_from(value)
        .map_err(|_| Error::invalid_argument(format_args!("{field} {value} must not be negative")))
}

/// A length for the wire; what no disk can hold becomes the largest number.
#[must_use]
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Wire for Labels {
    type Proto = HashMap<String, String>;

    fn to_wire(&self) -> Self::Proto {
        self.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(proto.into_iter().collect())
    }
}

impl Wire for Fields {
    type Proto = FieldMask;

    fn to_wire(&self) -> FieldMask {
        let mut made = FieldMask::new();
        made.paths = self.iter().map(str::to_owned).collect();
        made
    }

    fn from_wire(proto: FieldMask) -> Result<Self> {
        let (count, bytes) = (proto.paths.len(), proto.paths.iter().map(String::len).sum());
        if count > MAX_PATHS || MAX_PATHS_TEXT < bytes {
            return Err(Error::invalid_argument(format_args!(
                "a field mask of {count} paths and {bytes} bytes, the limits are {MAX_PATHS} and {MAX_PATHS_TEXT}"
            )));
        }
        Ok(Self::new(proto.paths))
    }
}

/// The mask in a field; without one, all fields.
///
/// # Errors
/// `InvalidArgument` for more paths than there may be; else masks are checked against the record that they
/// update.
pub fn mask(field: MessageField<FieldMask>) -> Result<Fields> {
    Fields::from_wire(field.unwrap_or_default())
}

impl Wire for domain::Any {
    type Proto = Any;

    fn to_wire(&self) -> Any {
        let mut made = Any::new();
        made.type_url.clone_from(&self.type_url);
        made.value.clone_from(&self.value);
        made
    }

    fn from_wire(proto: Any) -> Result<Self> {
        Ok(Self {
            type_url: proto.type_url,
            value: proto.value,
        })
    }
}

/// Named typed values, as in extensions.
impl Wire for BTreeMap<String, domain::Any> {
    type Proto = HashMap<String, Any>;

    fn to_wire(&self) -> Self::Proto {
        self.iter().map(|(k, v)| (k.clone(), v.to_wire())).collect()
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        proto
            .into_iter()
            .map(|(k, v)| Ok((k, domain::Any::from_wire(v)?)))
            .collect()
    }
}

impl Wire for domain::Mount {
    type Proto = proto::Mount;

    fn to_wire(&self) -> proto::Mount {
        proto::Mount {
            type_: self.kind.clone(),
            source: self.source.clone(),
            target: self.target.clone(),
            options: self.options.clone(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::Mount) -> Result<Self> {
        Ok(Self {
            kind: proto.type_,
            source: proto.source,
            target: proto.target,
            options: proto.options,
        })
    }
}

impl Wire for domain::ActiveMount {
    type Proto = proto::ActiveMount;

    fn to_wire(&self) -> proto::ActiveMount {
        proto::ActiveMount {
            mount: Some(self.mount.to_wire()).into(),
            mounted_at: self.mounted_at.to_wire(),
            mount_point: self.mount_point.clone(),
            data: self.data.clone().into_iter().collect(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::ActiveMount) -> Result<Self> {
        Ok(Self {
            mount: domain::Mount::from_wire(proto.mount.unwrap_or_default())?,
            mounted_at: Option::from_wire(proto.mounted_at)?,
            mount_point: proto.mount_point,
            data: proto.data.into_iter().collect(),
        })
    }
}

impl Wire for domain::Activation {
    type Proto = proto::ActivationInfo;

    fn to_wire(&self) -> proto::ActivationInfo {
        proto::ActivationInfo {
            name: self.name.clone(),
            active: self.active.to_wire(),
            system: self.system.to_wire(),
            labels: self.labels.to_wire(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::ActivationInfo) -> Result<Self> {
        Ok(Self {
            name: proto.name,
            active: Vec::from_wire(proto.active)?,
            system: Vec::from_wire(proto.system)?,
            labels: Labels::from_wire(proto.labels)?,
        })
    }
}

impl Wire for domain::Descriptor {
    type Proto = proto::Descriptor;

    fn to_wire(&self) -> proto::Descriptor {
        proto::Descriptor {
            media_type: self.media_type.clone(),
            digest: self.digest.to_string(),
            size: signed(self.size),
            annotations: self.annotations.to_wire(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::Descriptor) -> Result<Self> {
        Ok(Self {
            media_type: proto.media_type,
            digest: proto.digest.parse()?,
            size: length("size", proto.size)?,
            annotations: Labels::from_wire(proto.annotations)?,
        })
    }
}

impl Wire for domain::Platform {
    type Proto = proto::Platform;

    fn to_wire(&self) -> proto::Platform {
        proto::Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::Platform) -> Result<Self> {
        Ok(Self {
            os: proto.os,
            architecture: proto.architecture,
            variant: proto.variant,
            os_version: proto.os_version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_the_epoch_round_trip() {
        for (time, seconds, nanos) in [
            (UNIX_EPOCH, 0, 0),
            (UNIX_EPOCH + Duration::new(5, 7), 5, 7),
            (UNIX_EPOCH - Duration::new(1, 250_000_000), -2, 750_000_000),
            (UNIX_EPOCH - Duration::from_secs(3), -3, 0),
        ] {
            let made = time.to_wire();
            assert_eq!((made.seconds, made.nanos), (seconds, nanos));
            assert_eq!(SystemTime::from_wire(made).unwrap(), time);
        }
    }

    #[test]
    fn a_mask_of_too_many_or_too_long_paths_is_refused() {
        let read = |count: usize, length: usize| {
            let mut made = FieldMask::new();
            made.paths = vec!["p".repeat(length); count];
            mask(MessageField::some(made))
        };
        read(MAX_PATHS, 50).unwrap();
        read(1, MAX_PATHS_TEXT).unwrap();
        for (count, length) in [(MAX_PATHS + 1, 1), (1, MAX_PATHS_TEXT + 1)] {
            let refused = read(count, length).unwrap_err();
            assert!(refused.is(domain::Code::InvalidArgument), "{refused}");
        }
    }

    #[test]
    fn times_out_of_range_are_refused() {
        for (seconds, nanos) in [
            (0, -1),
            (0, 1_000_000_000),
            (i64::MIN, 0),
            (253_402_300_800, 0),
        ] {
            let proto = Timestamp {
                seconds,
                nanos,
                ..Default::default()
            };
            assert!(SystemTime::from_wire(proto).is_err(), "{seconds} {nanos}");
        }
        assert_eq!(time(MessageField::none()).unwrap(), UNIX_EPOCH);
        let zero = Timestamp {
            seconds: *SECONDS.start(),
            ..Default::default()
        };
        assert_eq!(SystemTime::from_wire(zero.clone()).unwrap().to_wire(), zero);
    }

    #[test]
    fn small_values_round_trip() {
        let mount = domain::Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: "sub".into(),
            options: vec!["ro".into()],
        };
        assert_eq!(
            Vec::<domain::Mount>::from_wire(vec![mount.clone()].to_wire()).unwrap(),
            [mount]
        );
        let activation = domain::Activation {
            name: "a".into(),
            active: vec![domain::ActiveMount {
                mount: domain::Mount::default(),
                mounted_at: Some(SystemTime::UNIX_EPOCH),
                mount_point: "/point".into(),
                data: [("k".to_owned(), "v".to_owned())].into(),
            }],
            system: vec![domain::Mount::default()],
            labels: Labels::new().with("k", "v"),
        };
        assert_eq!(
            domain::Activation::from_wire(activation.to_wire()).unwrap(),
            activation
        );
        let descriptor = domain::Descriptor {
            media_type: domain::media_type::OCI_LAYER.into(),
            digest: format!("sha256:{}", "a".repeat(64)).parse().unwrap(),
            size: 12,
            annotations: Labels::new().with("k", "v"),
        };
        assert_eq!(
            Option::<domain::Descriptor>::from_wire(Some(descriptor.clone()).to_wire()).unwrap(),
            Some(descriptor)
        );
        let platform = domain::Platform {
            os: "linux".into(),
            architecture: "arm".into(),
            variant: "v7".into(),
            os_version: "1".into(),
        };
        assert_eq!(
            domain::Platform::from_wire(platform.to_wire()).unwrap(),
            platform
        );
        let any = domain::Any {
            type_url: "x".into(),
            value: vec![1, 2],
        };
        assert_eq!(domain::Any::from_wire(any.to_wire()).unwrap(), any);
        let fields = Fields::new(vec!["labels.a.b".into()]);
        assert_eq!(mask(MessageField::some(fields.to_wire())).unwrap(), fields);
        assert!(mask(MessageField::none()).unwrap().is_all());
    }

    #[test]
    fn a_descriptor_needs_a_digest_and_a_length() {
        let good = proto::Descriptor {
            digest: format!("sha256:{}", "a".repeat(64)),
            ..Default::default()
        };
        domain::Descriptor::from_wire(good.clone()).unwrap();
        for bad in [
            proto::Descriptor {
                size: -1,
                ..good.clone()
            },
            proto::Descriptor {
                digest: "sha256:short".into(),
                ..good
            },
        ] {
            let error = domain::Descriptor::from_wire(bad).unwrap_err();
            assert!(error.is(domain::Code::InvalidArgument), "{error}");
        }
    }
}
