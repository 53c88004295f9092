//! Ends, progress and credentials of transfers, and the frames of byte streams: all of them travel as
//! `Any`.

use ::types::transfer::{
    AuthAnswer, AuthRequest, Endpoint, ExportStream, ImportStream, NameRule, Remote, Store,
    TransferEvent, Unpack,
};
use ::types::{Any, Descriptor, Error, Labels, Platform, Result};
use bytes::Bytes;
use protobuf::{EnumOrUnknown, MessageField};

use super::{Wire, signed};
use crate::any::{is, pack, unpack};
use crate::services::streaming::StreamInit;
use crate::transfer as proto;

/// What the server says when a stream is registered; an empty message has no bytes.
const EMPTY: &str = "google.protobuf.Empty";

/// The first frame of a stream: its name.
///
/// # Errors
/// `Internal`: never in practice.
pub fn stream_init_to_any(id: &str) -> Result<Any> {
    let message = StreamInit {
        id: id.to_owned(),
        ..Default::default()
    };
    pack(&message)
}

/// The name in the first frame of a stream.
///
/// # Errors
/// `InvalidArgument` for another frame.
pub fn stream_init_from_any(any: &Any) -> Result<String> {
    Ok(unpack::<StreamInit>(any)?.id)
}

/// The frame by which the server says that a stream is open.
#[must_use]
pub fn stream_opened() -> crate::well_known::Any {
    let mut any = crate::well_known::Any::new();
    any.type_url = EMPTY.to_owned();
    any
}

/// A frame of a byte stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes.
    Data(Bytes),
    /// The other end takes so many bytes more.
    Window(u32),
    /// Something newer, which readers pass over.
    Other(String),
}

impl Frame {
    /// The frame as it travels.
    ///
    /// # Errors
    /// `Internal` for data beyond what a message holds.
    pub fn to_any(&self) -> Result<Any> {
        match self {
            Self::Data(data) => pack(&proto::Data {
                data: data.clone(),
                ..Default::default()
            }),
            Self::Window(more) => pack(&proto::WindowUpdate {
                update: i32::try_from(*more).unwrap_or(i32::MAX),
                ..Default::default()
            }),
            Self::Other(name) => Ok(Any {
                type_url: name.clone(),
                value: Vec::new(),
            }),
        }
    }

    /// The frame that came.
    ///
    /// # Errors
    /// `InvalidArgument` when it is damaged or takes bytes back.
    pub fn from_any(any: &Any) -> Result<Self> {
        if is::<proto::Data>(any) {
            return Ok(Self::Data(unpack::<proto::Data>(any)?.data));
        }
        if !is::<proto::WindowUpdate>(any) {
            return Ok(Self::Other(any.type_url.clone()));
        }
        let update = unpack::<proto::WindowUpdate>(any)?.update;
        let refused = |_| Error::invalid_argument(format_args!("window update of {update} bytes"));
        u32::try_from(update).map(Self::Window).map_err(refused)
    }
}

/// An end of a transfer, as it travels.
///
/// # Errors
/// `Internal`: never in practice.
pub fn endpoint_to_any(endpoint: &Endpoint) -> Result<Any> {
    match endpoint {
        Endpoint::Registry(remote) => pack(&registry(remote)),
        Endpoint::Store(store) => pack(&image_store(store)),
        Endpoint::Import(import) => pack(&proto::ImageImportStream {
            stream: import.stream.clone(),
            media_type: import.media_type.clone(),
            force_compress: import.force_compress,
            ..Default::default()
        }),
        Endpoint::Export(export) => pack(&proto::ImageExportStream {
            stream: export.stream.clone(),
            media_type: export.media_type.clone(),
            platforms: export.platforms.to_wire(),
            all_platforms: export.all_platforms,
            skip_compatibility_manifest: export.skip_compatibility_manifest,
            skip_non_distributable: export.skip_non_distributable,
            ..Default::default()
        }),
        Endpoint::Other(name) => Ok(Any {
            type_url: name.clone(),
            value: Vec::new(),
        }),
    }
}

/// The end that a message names; of a type that is not known, its name.
///
/// # Errors
/// `InvalidArgument` for a damaged message and one that holds what cannot be.
pub fn endpoint_from_any(any: &Any) -> Result<Endpoint> {
    if is::<proto::OCIRegistry>(any) {
        return Ok(Endpoint::Registry(remote(unpack(any)?)?));
    }
    if is::<proto::ImageStore>(any) {
        return Ok(Endpoint::Store(store(unpack(any)?)?));
    }
    if is::<proto::ImageImportStream>(any) {
        let import: proto::ImageImportStream = unpack(any)?;
        return Ok(Endpoint::Import(ImportStream {
            stream: import.stream,
            media_type: import.media_type,
            force_compress: import.force_compress,
        }));
    }
    if is::<proto::ImageExportStream>(any) {
        let export: proto::ImageExportStream = unpack(any)?;
        return Ok(Endpoint::Export(ExportStream {
            stream: export.stream,
            media_type: export.media_type,
            platforms: Vec::from_wire(export.platforms)?,
            all_platforms: export.all_platforms,
            skip_compatibility_manifest: export.skip_compatibility_manifest,
            skip_non_distributable: export.skip_non_distributable,
        }));
    }
    Ok(Endpoint::Other(any.type_name().to_owned()))
}

fn registry(remote: &Remote) -> proto::OCIRegistry {
    let http_debug = match (remote.dump, remote.trace) {
        (false, false) => proto::HTTPDebug::DISABLED,
        (true, false) => proto::HTTPDebug::DEBUG,
        (false, true) => proto::HTTPDebug::TRACE,
        (true, true) => proto::HTTPDebug::BOTH,
    };
    let resolver = proto::RegistryResolver {
        auth_stream: remote.auth_stream.clone(),
        headers: remote.headers.to_wire(),
        host_dir: remote.host_dir.clone(),
        default_scheme: remote.default_scheme.clone(),
        http_debug: http_debug.into(),
        logs_stream: remote.logs_stream.clone(),
        ..Default::default()
    };
    proto::OCIRegistry {
        reference: remote.reference.clone(),
        resolver: MessageField::some(resolver),
        ..Default::default()
    }
}

fn remote(message: proto::OCIRegistry) -> Result<Remote> {
    let resolver = message.resolver.unwrap_or_default();
    let (dump, trace) = match resolver.http_debug.enum_value() {
        Ok(proto::HTTPDebug::DISABLED) => (false, false),
        Ok(proto::HTTPDebug::DEBUG) => (true, false),
        Ok(proto::HTTPDebug::TRACE) => (false, true),
        Ok(proto::HTTPDebug::BOTH) => (true, true),
        Err(number) => {
            return Err(Error::invalid_argument(format_args!(
                "http debug {number} is not known"
            )));
        }
    };
    Ok(Remote {
        reference: message.reference,
        auth_stream: resolver.auth_stream,
        headers: Labels::from_wire(resolver.headers)?,
        host_dir: resolver.host_dir,
        default_scheme: resolver.default_scheme,
        dump,
        trace,
        logs_stream: resolver.logs_stream,
    })
}

fn image_store(store: &Store) -> proto::ImageStore {
    proto::ImageStore {
        name: store.name.clone(),
        labels: store.labels.to_wire(),
        platforms: store.platforms.to_wire(),
        all_metadata: store.all_metadata,
        manifest_limit: u32::try_from(store.manifest_limit).unwrap_or(u32::MAX),
        extra_references: store.references.to_wire(),
        unpacks: store.unpacks.to_wire(),
        ..Default::default()
    }
}

fn store(message: proto::ImageStore) -> Result<Store> {
    Ok(Store {
        name: message.name,
        labels: Labels::from_wire(message.labels)?,
        platforms: Vec::from_wire(message.platforms)?,
        all_metadata: message.all_metadata,
        manifest_limit: usize::try_from(message.manifest_limit).unwrap_or(usize::MAX),
        references: Vec::from_wire(message.extra_references)?,
        unpacks: Vec::from_wire(message.unpacks)?,
    })
}

impl Wire for NameRule {
    type Proto = proto::ImageReference;

    fn to_wire(&self) -> proto::ImageReference {
        proto::ImageReference {
            name: self.name.clone(),
            is_prefix: self.is_prefix,
            allow_overwrite: self.allow_overwrite,
            add_digest: self.add_digest,
            skip_named_digest: self.skip_named_digest,
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::ImageReference) -> Result<Self> {
        Ok(Self {
            name: proto.name,
            is_prefix: proto.is_prefix,
            allow_overwrite: proto.allow_overwrite,
            add_digest: proto.add_digest,
            skip_named_digest: proto.skip_named_digest,
        })
    }
}

impl Wire for Unpack {
    type Proto = proto::UnpackConfiguration;

    fn to_wire(&self) -> proto::UnpackConfiguration {
        proto::UnpackConfiguration {
            platform: MessageField::some(self.platform.to_wire()),
            snapshotter: self.snapshotter.clone(),
            ..Default::default()
        }
    }

    fn from_wire(proto: proto::UnpackConfiguration) -> Result<Self> {
        Ok(Self {
            platform: Platform::from_wire(proto.platform.unwrap_or_default())?,
            snapshotter: proto.snapshotter,
        })
    }
}

/// A line of progress as it travels.
///
/// # Errors
/// `Internal`: never in practice.
pub fn event_to_any(event: &TransferEvent) -> Result<Any> {
    pack(&proto::Progress {
        event: event.event.clone(),
        name: event.name.clone(),
        parents: event.parents.clone(),
        progress: signed(event.progress),
        total: signed(event.total),
        desc: event.descriptor.to_wire(),
        ..Default::default()
    })
}

/// A line of progress that came; its numbers are for show, so odd ones become 0.
///
/// # Errors
/// `InvalidArgument` for something else.
pub fn event_from_any(any: &Any) -> Result<TransferEvent> {
    let progress: proto::Progress = unpack(any)?;
    Ok(TransferEvent {
        event: progress.event,
        name: progress.name,
        parents: progress.parents,
        progress: u64::try_from(progress.progress).unwrap_or(0),
        total: u64::try_from(progress.total).unwrap_or(0),
        descriptor: Option::<Descriptor>::from_wire(progress.desc)?,
    })
}

/// A question for credentials as it travels.
///
/// # Errors
/// `Internal`: never in practice.
pub fn auth_request_to_any(request: &AuthRequest) -> Result<Any> {
    pack(&proto::AuthRequest {
        host: request.host.clone(),
        reference: request.reference.clone(),
        wwwauthenticate: request.challenges.clone(),
        ..Default::default()
    })
}

/// A question for credentials that came.
///
/// # Errors
/// `InvalidArgument` for something else.
pub fn auth_request_from_any(any: &Any) -> Result<AuthRequest> {
    let request: proto::AuthRequest = unpack(any)?;
    Ok(AuthRequest {
        host: request.host,
        reference: request.reference,
        challenges: request.wwwauthenticate,
    })
}

/// Credentials as they travel.
///
/// # Errors
/// `Internal`: never in practice.
pub fn auth_answer_to_any(answer: &AuthAnswer) -> Result<Any> {
    let (kind, user, secret) = match answer {
        AuthAnswer::None => (proto::AuthType::NONE, "", ""),
        AuthAnswer::Password { user, secret } => {
            (proto::AuthType::CREDENTIALS, user.as_str(), secret.as_str())
        }
        AuthAnswer::Refresh(secret) => (proto::AuthType::REFRESH, "", secret.as_str()),
        AuthAnswer::Header(secret) => (proto::AuthType::HEADER, "", secret.as_str()),
    };
    pack(&proto::AuthResponse {
        authType: EnumOrUnknown::new(kind),
        username: user.to_owned(),
        secret: secret.to_owned(),
        ..Default::default()
    })
}

/// Credentials that came. Parity: core/transfer/registry: Go's client says REFRESH with no secret
/// when it has none.
///
/// # Errors
/// `InvalidArgument` for something else and for a kind that is not known.
pub fn auth_answer_from_any(any: &Any) -> Result<AuthAnswer> {
    let answer: proto::AuthResponse = unpack(any)?;
    Ok(match answer.authType.enum_value() {
        Ok(proto::AuthType::NONE) => AuthAnswer::None,
        Ok(_) if answer.secret.is_empty() && answer.username.is_empty() => AuthAnswer::None,
        Ok(proto::AuthType::CREDENTIALS) => AuthAnswer::Password {
            user: answer.username,
            secret: answer.secret,
        },
        Ok(proto::AuthType::REFRESH) => AuthAnswer::Refresh(answer.secret),
        Ok(proto::AuthType::HEADER) => AuthAnswer::Header(answer.secret),
        Err(number) => {
            return Err(Error::invalid_argument(format_args!(
                "credentials of kind {number} are not known"
            )));
        }
    })
}

#[cfg(test)]
mod tests;
