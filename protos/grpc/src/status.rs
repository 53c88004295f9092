//! The gRPC error table: [`types::Code`] to [`tonic::Code`] and back, total both ways.
//!
//! The message is exactly `Display` of the error, because Go clients match on its class suffix. Errors
//! that are joined to another one travel as details besides, each with its class.

use protos::Message as _;
use protos::rpc;
use tonic::Status;
use types::{Code, Error};

/// Status of an error.
#[must_use]
pub fn from_error(error: &Error) -> Status {
    let (code, text) = (code_to_wire(error.code()), error.to_string());
    if error.joined().is_empty() {
        return Status::new(code, text);
    }
    // The message is in them once more, for who reads nothing else: Go's clients. Both are headers, whose
    // length clients limit.
    let details = rpc::Status {
        code: code as i32,
        message: protos::status::shortened(&text).into_owned(),
        details: protos::status::details(error),
        ..rpc::Status::default()
    };
    // Nothing in such a message can fail to be written.
    let details = details.write_to_bytes().unwrap_or_default();
    Status::with_details(code, text, details.into())
}

/// Error of a status that came over the wire.
#[must_use]
pub fn to_error(status: &Status) -> Error {
    let sized = too_large(status);
    let status = sized.as_ref().unwrap_or(status);
    let details = rpc::Status::parse_from_bytes(status.details()).unwrap_or_default();
    let details = details.details.iter();
    let details = details.map(|any| (any.type_url.as_str(), any.value.as_slice()));
    protos::status::decode(code_from_wire(status.code()), status.message(), details)
}

/// Go's answer in place of tonic's to a message over the limit, which tonic calls out of range.
pub(crate) fn too_large(status: &Status) -> Option<Status> {
    if status.code() != tonic::Code::OutOfRange {
        return None;
    }
    let (way, sizes) = status
        .message()
        .strip_prefix("Error, ")?
        .split_once(" message length too large: found ")?;
    let (size, limit) = sizes
        .strip_suffix(" bytes")?
        .split_once(" bytes, the limit is: ")?;
    let what = match way {
        "decoded" => "received message",
        _ => "trying to send message",
    };
    let text = format!("grpc: {what} larger than max ({size} vs. {limit})");
    Some(Status::resource_exhausted(text))
}

/// Wire code of a class.
#[must_use]
pub const fn code_to_wire(code: Code) -> tonic::Code {
    match code {
        Code::Cancelled => tonic::Code::Cancelled,
        Code::Unknown => tonic::Code::Unknown,
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::NotFound => tonic::Code::NotFound,
        Code::AlreadyExists => tonic::Code::AlreadyExists,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::FailedPrecondition | Code::Conflict | Code::NotModified => {
            tonic::Code::FailedPrecondition
        }
        Code::Aborted => tonic::Code::Aborted,
        Code::OutOfRange => tonic::Code::OutOfRange,
        Code::NotImplemented => tonic::Code::Unimplemented,
        Code::Internal => tonic::Code::Internal,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::DataLoss => tonic::Code::DataLoss,
        Code::Unauthenticated => tonic::Code::Unauthenticated,
    }
}

/// Class of a wire code; a failure with code OK is of no known class.
#[must_use]
pub const fn code_from_wire(code: tonic::Code) -> Code {
    match code {
        tonic::Code::Ok | tonic::Code::Unknown => Code::Unknown,
        tonic::Code::Cancelled => Code::Cancelled,
        tonic::Code::InvalidArgument => Code::InvalidArgument,
        tonic::Code::DeadlineExceeded => Code::DeadlineExceeded,
        tonic::Code::NotFound => Code::NotFound,
        tonic::Code::AlreadyExists => Code::AlreadyExists,
        tonic::Code::PermissionDenied => Code::PermissionDenied,
        tonic::Code::ResourceExhausted => Code::ResourceExhausted,
        tonic::Code::FailedPrecondition => Code::FailedPrecondition,
        tonic::Code::Aborted => Code::Aborted,
        tonic::Code::OutOfRange => Code::OutOfRange,
        tonic::Code::Unimplemented => Code::NotImplemented,
        tonic::Code::Internal => Code::Internal,
        tonic::Code::Unavailable => Code::Unavailable,
        tonic::Code::DataLoss => Code::DataLoss,
        tonic::Code::Unauthenticated => Code::Unauthenticated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_survives_both_transports_with_its_text() {
        for code in Code::ALL {
            for what in ["", "container \"x\""] {
                let error = Error::new(code, what);
                let status = from_error(&error);
                assert_eq!(status.message(), error.to_string());
                let back = to_error(&status);
                assert_eq!((back.code(), back.to_string()), (code, error.to_string()));

                let wire = protos::status::from_error(&error);
                let back = protos::status::to_error(&wire);
                assert_eq!((back.code(), back.to_string()), (code, error.to_string()));
            }
        }
    }

    #[test]
    fn joined_errors_are_details_of_the_status() {
        let error = Error::new(Code::Conflict, "a").join([
            Error::not_found("b"),
            Error::new(Code::NotModified, "c").ctx("d"),
        ]);
        let status = from_error(&error);
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        let text = "a: conflict\nb: not found\nd: c: not modified";
        assert_eq!(status.message(), text);
        let details = rpc::Status::parse_from_bytes(status.details()).unwrap();
        assert_eq!((details.code, details.message.as_str()), (9, text));
        let told = details.details.iter().map(|any| {
            assert_eq!(any.type_url, "type.googleapis.com/google.rpc.Status");
            let detail = rpc::Status::parse_from_bytes(&any.value).unwrap();
            (detail.code, detail.message)
        });
        let want = [(5, "b: not found".into()), (9, "d: c: not modified".into())];
        assert_eq!(told.collect::<Vec<_>>(), want);
        let back = to_error(&status);
        assert_eq!(
            (back.code(), back.to_string()),
            (Code::Conflict, text.into())
        );
        let codes: Vec<_> = back.joined().iter().map(Error::code).collect();
        assert_eq!(codes, [Code::NotFound, Code::NotModified]);
        assert!(from_error(&Error::not_found("x")).details().is_empty());
    }

    #[test]
    fn details_of_many_errors_are_bounded_and_tell_the_class_of_the_first() {
        let many = (0..1000).map(|n| Error::not_found(format_args!("object {n}")));
        let error = Error::new(Code::Conflict, "first").join(many);
        let status = from_error(&error);
        assert!(
            status.details().len() < 9 << 10,
            "{}",
            status.details().len()
        );
        let details = rpc::Status::parse_from_bytes(status.details()).unwrap();
        assert!(
            details
                .message
                .starts_with("first: conflict\nobject 0: not found\n")
        );
        assert!(details.message.ends_with(": not found"));
        let back = to_error(&status);
        assert!(back.is(Code::Conflict));
        assert_eq!(back.to_string(), error.to_string());
    }

    #[test]
    fn every_wire_code_has_a_class_that_leads_back_to_it() {
        for number in 1..=16 {
            let wire = tonic::Code::from_i32(number);
            assert_eq!(code_to_wire(code_from_wire(wire)), wire);
        }
    }

    #[test]
    fn a_foreign_text_gets_its_class_as_suffix_once() {
        let error = to_error(&Status::not_found("no such thing"));
        assert_eq!(error.to_string(), "no such thing: not found");
        let error = to_error(&Status::not_found("image \"x\": not found"));
        assert_eq!(error.to_string(), "image \"x\": not found");
    }
}
