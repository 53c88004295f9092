//! The ttrpc error table: [`types::Code`] to ttrpc's codes and back, total both ways.
//!
//! The message is exactly `Display` of the error, because Go clients match on its class suffix.

use std::borrow::Cow;

use ::types::{Code, Error};
use protobuf::Message as _;
use ttrpc::{Code as Wire, Status};

use crate::rpc;
use crate::well_known::Any;

/// Type of a detail that is an error.
const DETAIL: &str = "type.googleapis.com/google.rpc.Status";
/// Bytes of details: over gRPC they travel in a header, which clients limit. What is left out is in the
/// message.
const MOST: usize = 4 << 10;
/// Bytes of the end of a line that is too long: the longest name of a class, and some of its text.
const END: usize = 256;

/// Status of an error.
#[must_use]
pub fn from_error(error: &Error) -> Status {
    let mut status = ttrpc::get_status(code_to_wire(error.code()), error);
    let details = details(error).into_iter().map(|any| ttrpc::proto::Any {
        type_url: any.type_url,
        value: any.value,
        ..Default::default()
    });
    status.details = details.collect();
    status
}

/// The errors that are joined to `error`, as the details of its status.
#[must_use]
pub fn details(error: &Error) -> Vec<Any> {
    let mut room = MOST;
    let details = error.joined().iter().map_while(|joined| {
        let status = rpc::Status {
            code: code_to_wire(joined.code()) as i32,
            message: joined.to_string(),
            ..rpc::Status::default()
        };
        // Nothing in such a message can fail to be written.
        let value = status.write_to_bytes().unwrap_or_default();
        room = room.checked_sub(DETAIL.len() + value.len())?;
        Some(Any {
            type_url: DETAIL.into(),
            value,
            ..Any::default()
        })
    });
    details.collect()
}

/// `text` for a header: the first lines of a long one, and of a long first line begin and end, where its
/// class is.
#[must_use]
pub fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= MOST {
        return text.into();
    }
    if let Some(end) = text[..text.floor_char_boundary(MOST)].rfind('\n') {
        return text[..end].into();
    }
    let first = text.lines().next().unwrap_or_default();
    let begin = first.floor_char_boundary(MOST - END - "...".len());
    let end = first.ceil_char_boundary(first.len().saturating_sub(END));
    format!("{}...{}", &first[..begin], &first[end..]).into()
}

/// The error of a status: its class, its message, and its details by type and bytes. As with Go's clients,
/// joined errors that the message does not tell are told after it. Those that only the message tells, for
/// want of room in the details, are one without a class.
pub fn decode<'a>(
    code: Code,
    message: &str,
    details: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Error {
    let joined = details.filter(|(kind, _)| *kind == DETAIL);
    let joined = joined.filter_map(|(_, bytes)| rpc::Status::parse_from_bytes(bytes).ok());
    let mut joined: Vec<Error> = joined
        .map(|status| {
            let wire = protobuf::Enum::from_i32(status.code).unwrap_or(Wire::UNKNOWN);
            let code = refine(code_from_wire(wire), &status.message);
            Error::from_wire(code, &status.message)
        })
        .collect();
    let texts: String = joined.iter().map(|error| format!("\n{error}")).collect();
    let (text, rest) = split(code, message, &texts);
    joined.extend((!rest.is_empty()).then(|| Error::unknown(rest)));
    Error::from_wire(refine(code, text), text).join(joined)
}

/// What a message tells of the error itself, and of those behind the ones in `joined`.
fn split<'a>(code: Code, message: &'a str, joined: &str) -> (&'a str, &'a str) {
    if joined.is_empty() {
        // None had room: the first line is the error's own when it ends as that does.
        return match message.split_once('\n') {
            Some((first, rest)) if ends(first, refine(code, first)) => (first, rest),
            _ => (message, ""),
        };
    }
    let mut found = message.match_indices(joined).map(|(at, _)| {
        let (text, rest) = message.split_at(at);
        (text, &rest[joined.len()..])
    });
    let whole = found.find(|(_, rest)| rest.is_empty() || rest.starts_with('\n'));
    whole.map_or((message, ""), |(text, rest)| {
        (text, rest.strip_prefix('\n').unwrap_or(rest))
    })
}

/// The error that a ttrpc handler returns.
#[must_use]
pub fn to_ttrpc(error: &Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(from_error(error))
}

/// Error of a status that came over the wire.
#[must_use]
pub fn to_error(status: &Status) -> Error {
    let details = status.details.iter();
    let details = details.map(|any| (any.type_url.as_str(), any.value.as_slice()));
    decode(code_from_wire(status.code()), status.message(), details)
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
    match code {
        Code::FailedPrecondition if ends(message, Code::Conflict) => Code::Conflict,
        Code::FailedPrecondition if ends(message, Code::NotModified) => Code::NotModified,
        other => other,
    }
}

/// Whether a text ends as errors of a class do.
fn ends(text: &str, class: Code) -> bool {
    let rest = text.strip_suffix(class.text());
    !class.text().is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with(": "))
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
    fn a_detail_that_is_not_in_the_text_is_shown_below_it() {
        let detail = rpc::Status {
            code: 5,
            message: "other: not found".into(),
            ..rpc::Status::default()
        };
        let detail = detail.write_to_bytes().unwrap();
        let details = [
            (DETAIL, detail.as_slice()),
            ("x/y.Z", b"?"),
            (DETAIL, b"\xff"),
        ];
        let error = decode(Code::Aborted, "one", details.into_iter());
        assert_eq!(error.to_string(), "one: aborted\nother: not found");
        assert_eq!(error.joined().len(), 1);
    }

    #[test]
    fn details_are_no_longer_than_a_header_may_be() {
        let many = (0..1000).map(|n| Error::not_found(format_args!("object {n}")));
        let error = Error::aborted("first").join(many);
        assert!(error.to_string().ends_with("\nobject 999: not found"));
        let details = details(&error);
        let bytes: usize = details.iter().map(|any| any.value.len()).sum();
        assert!(bytes > 500 && bytes <= MOST, "{bytes}");
    }

    #[test]
    fn what_the_details_have_no_room_for_is_told_once_and_changes_no_class() {
        for (first, code, length) in [
            ("a", Code::Conflict, 1),
            ("a\nobject 0", Code::NotModified, 1),
            ("a", Code::Conflict, 5000),
        ] {
            let name = "x".repeat(length);
            let many = (0..300).map(|n| Error::not_found(format_args!("object {name}{n}")));
            let error = Error::new(code, first).join(many);
            let status = from_error(&error);
            let told = status.details.len();
            assert_eq!((told > 10, told == 0), (length == 1, length == 5000));
            let back = to_error(&status);
            assert!(back.to_string() == error.to_string(), "the text changed");
            assert_eq!(back.code(), code);
            assert_eq!(back.joined().len(), told + 1);
            assert!(back.joined()[..told].iter().all(Error::is_not_found));
        }
    }

    #[test]
    fn joined_texts_are_found_where_they_are_whole() {
        let detail = rpc::Status {
            code: 5,
            message: "b: not found".into(),
            ..rpc::Status::default()
        };
        let detail = detail.write_to_bytes().unwrap();
        for (message, joined) in [
            ("a: aborted\nb: not found", 1),
            ("a: aborted\nb: not found\nc: internal", 2),
            ("a\nb: not found: aborted\nb: not found\nc", 2),
        ] {
            let error = decode(Code::Aborted, message, [(DETAIL, &*detail)].into_iter());
            assert_eq!(error.to_string(), message);
            assert_eq!(error.joined().len(), joined);
        }
    }

    #[test]
    fn a_long_text_is_shortened_between_lines_or_before_the_end_of_the_first() {
        assert_eq!(shortened("a: not found\nb"), "a: not found\nb");
        let lines = "a: conflict\n".repeat(1000);
        let short = shortened(&lines);
        assert!(short.len() <= MOST && short.len() > MOST - 20);
        assert!(short.ends_with("\na: conflict"));
        for rest in ["", "\nb: not found"] {
            let long = format!("{}: conflict{rest}", "\u{e9}".repeat(4000));
            let short = shortened(&long);
            assert!(short.len() <= MOST && short.len() > MOST - 20);
            assert!(short.ends_with("\u{e9}: conflict"));
        }
    }

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
