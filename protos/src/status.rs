//! The ttrpc error table: [`types::Code`] to ttrpc's codes and back, total both ways.
//!
//! The message is exactly `Display` of the error, because Go clients match on its class suffix.

use ::types::{Code, Error};
use ttrpc::{Code as Wire, Status};

/// Status of an error.
#[must_use]
pub fn from_error(error: &Error) -> Status {
    ttrpc::get_status(code_to_wire(error.code()), error)
}

/// The error that a ttrpc handler returns.
#[must_use]
pub fn to_ttrpc(error: &Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(from_error(error))
}

/// Error of a status that came over the wire.
#[must_use]
pub fn to_error(status: &Status) -> Error {
    let code = refine(code_from_wire(status.code()), status.message());
    Error::from_wire(code, status.message())
}

/// Error of a failed ttrpc call: the peer's own, or `Unavailable` when the connection is gone.
#[must_use]
pub fn from_ttrpc(error: &ttrpc::Error) -> Error {
    match error {
        ttrpc::Error::RpcStatus(status) => to_error(status),
        ttrpc::Error::Socket(_)
        | ttrpc::Error::Nix(_)
        | ttrpc::Error::LocalClosed
        | ttrpc::Error::RemoteClosed
        | ttrpc::Error::Eof => Error::unavailable("ttrpc: closed"),
        ttrpc::Error::Others(text) => Error::unknown(format_args!("ttrpc: {text}")),
    }
}

/// True when the peer says that it does not have the service or method.
///
/// Go answers Unimplemented. Servers of the ttrpc crate answer `InvalidArgument` for an unknown
/// service or method path and `NotFound` for a method that is not overridden; both name the path.
#[must_use]
pub fn is_unimplemented(status: &Status) -> bool {
    let text = status.message();
    match status.code() {
        Wire::UNIMPLEMENTED => true,
        Wire::INVALID_ARGUMENT => text.ends_with("does not exist"),
        Wire::NOT_FOUND => text.starts_with('/') && text.ends_with(" is not supported"),
        _ => false,
    }
}

/// The finer class of two that share a wire code, told by the message's suffix as Go does.
#[must_use]
pub fn refine(code: Code, message: &str) -> Code {
    let ends = |class: Code| {
        message
            .strip_suffix(class.text())
            .is_some_and(|rest| rest.is_empty() || rest.ends_with(": "))
    };
    match code {
        Code::FailedPrecondition if ends(Code::Conflict) => Code::Conflict,
        Code::FailedPrecondition if ends(Code::NotModified) => Code::NotModified,
        other => other,
    }
}

/// Wire code of a class.
#[must_use]
pub const fn code_to_wire(code: Code) -> Wire {
    match code {
        Code::Cancelled => Wire::CANCELLED,
        Code::Unknown => Wire::UNKNOWN,
        Code::InvalidArgument => Wire::INVALID_ARGUMENT,
        Code::DeadlineExceeded => Wire::DEADLINE_EXCEEDED,
        Code::NotFound => Wire::NOT_FOUND,
        Code::AlreadyExists => Wire::ALREADY_EXISTS,
        Code::PermissionDenied => Wire::PERMISSION_DENIED,
        Code::ResourceExhausted => Wire::RESOURCE_EXHAUSTED,
        Code::FailedPrecondition | Code::Conflict | Code::NotModified => Wire::FAILED_PRECONDITION,
        Code::Aborted => Wire::ABORTED,
        Code::OutOfRange => Wire::OUT_OF_RANGE,
        Code::NotImplemented => Wire::UNIMPLEMENTED,
        Code::Internal => Wire::INTERNAL,
        Code::Unavailable => Wire::UNAVAILABLE,
        Code::DataLoss => Wire::DATA_LOSS,
        Code::Unauthenticated => Wire::UNAUTHENTICATED,
    }
}

/// Class of a wire code; a failure with code OK is of no known class.
#[must_use]
pub const fn code_from_wire(code: Wire) -> Code {
    match code {
        Wire::OK | Wire::UNKNOWN => Code::Unknown,
        Wire::CANCELLED => Code::Cancelled,
        Wire::INVALID_ARGUMENT => Code::InvalidArgument,
        Wire::DEADLINE_EXCEEDED => Code::DeadlineExceeded,
        Wire::NOT_FOUND => Code::NotFound,
        Wire::ALREADY_EXISTS => Code::AlreadyExists,
        Wire::PERMISSION_DENIED => Code::PermissionDenied,
        Wire::RESOURCE_EXHAUSTED => Code::ResourceExhausted,
        Wire::FAILED_PRECONDITION => Code::FailedPrecondition,
        Wire::ABORTED => Code::Aborted,
        Wire::OUT_OF_RANGE => Code::OutOfRange,
        Wire::UNIMPLEMENTED => Code::NotImplemented,
        Wire::INTERNAL => Code::Internal,
        Wire::UNAVAILABLE => Code::Unavailable,
        Wire::DATA_LOSS => Code::DataLoss,
        Wire::UNAUTHENTICATED => Code::Unauthenticated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suffix_tells_classes_of_one_code_apart() {
        for (message, want) in [
            ("x: conflict", Code::Conflict),
            ("conflict", Code::Conflict),
            ("in conflict", Code::FailedPrecondition),
            ("x: not modified", Code::NotModified),
            ("x: failed precondition", Code::FailedPrecondition),
        ] {
            let status = ttrpc::get_status(Wire::FAILED_PRECONDITION, message);
            assert_eq!(to_error(&status).code(), want, "{message}");
        }
        assert_eq!(refine(Code::NotFound, "x: conflict"), Code::NotFound);
    }

    #[test]
    fn an_unimplemented_call_is_known_from_go_and_from_rust_servers() {
        for (code, text, want) in [
            (Wire::UNIMPLEMENTED, "/containerd.task.v3.Task/State", true),
            (
                Wire::INVALID_ARGUMENT,
                "containerd.task.v3.Task service does not exist",
                true,
            ),
            (
                Wire::NOT_FOUND,
                "/containerd.task.v3.Task/State is not supported",
                true,
            ),
            (Wire::NOT_FOUND, "container c: not found", false),
            (Wire::INVALID_ARGUMENT, "id: invalid argument", false),
        ] {
            let status = ttrpc::get_status(code, text);
            assert_eq!(is_unimplemented(&status), want, "{text}");
        }
    }

    #[test]
    fn a_lost_connection_is_unavailable_and_a_peer_s_error_keeps_its_class() {
        assert!(from_ttrpc(&ttrpc::Error::Eof).is(Code::Unavailable));
        let error = Error::not_found("task \"x\"");
        let back = from_ttrpc(&to_ttrpc(&error));
        assert_eq!(
            (back.code(), back.to_string()),
            (Code::NotFound, error.to_string())
        );
    }
}
