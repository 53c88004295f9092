//! The one error type of the project and its classes.
//!
//! Invariant: `Display` of an [`Error`] is exactly what Go containerd would put on the wire
//! (`context: context: class text`), because clients match on the class suffix. The class is chosen
//! where the failure is understood; later floors add context and never guess a class.

use std::borrow::Cow;
use std::fmt;

/// Result with the project's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error class. The classes of containerd's `errdefs` plus the two context errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The caller gave up.
    Cancelled,
    /// No class is known: a bare system error, a foreign text.
    Unknown,
    /// The request can never succeed as written.
    InvalidArgument,
    /// The time for the request ran out.
    DeadlineExceeded,
    /// The object does not exist (in this namespace).
    NotFound,
    /// The object exists already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// A quota, a queue or a limit is full.
    ResourceExhausted,
    /// The system's state forbids the operation.
    FailedPrecondition,
    /// Another change won.
    Conflict,
    /// Nothing to change.
    NotModified,
    /// The operation was cut off and can be tried again.
    Aborted,
    /// A position beyond the valid range.
    OutOfRange,
    /// Not offered here.
    NotImplemented,
    /// A bug of ours.
    Internal,
    /// Cannot be served now; try again later.
    Unavailable,
    /// Data is gone or damaged.
    DataLoss,
    /// The caller did not say who it is.
    Unauthenticated,
}

impl Code {
    /// Every class, for tables and tests.
    pub const ALL: [Self; 18] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Conflict,
        Self::NotModified,
        Self::Aborted,
        Self::OutOfRange,
        Self::NotImplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The text that ends the error's message. Wire contract: Go clients match on it.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Cancelled => "context canceled",
            Self::Unknown => "",
            Self::InvalidArgument => "invalid argument",
            Self::DeadlineExceeded => "context deadline exceeded",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Conflict => "conflict",
            Self::NotModified => "not modified",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::NotImplemented => "not implemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error with its class, the contexts it passed through and, for the log, its source.
///
/// Eight bytes wide, so that `Result<T>` stays small.
#[expect(
    clippy::error_impl_error,
    reason = "the project has one error type; its name is its crate path"
)]
pub struct Error(Box<Inner>);

struct Inner {
    code: Code,
    /// Innermost first.
    context: Vec<Cow<'static, str>>,
    /// What failed beside it.
    joined: Vec<Error>,
    source: Option<Source>,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $code:ident;)*) => {
        impl Error {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(what: impl fmt::Display) -> Self {
                Self::new(Code::$code, what)
            })*
        }
    };
}

constructors! {
    /// Class [`Code::Cancelled`].
    cancelled => Cancelled;
    /// Class [`Code::Unknown`]: the text stands alone.
    unknown => Unknown;
    /// Class [`Code::InvalidArgument`].
    invalid_argument => InvalidArgument;
    /// Class [`Code::DeadlineExceeded`].
    deadline_exceeded => DeadlineExceeded;
    /// Class [`Code::NotFound`].
    not_found => NotFound;
    /// Class [`Code::AlreadyExists`].
    already_exists => AlreadyExists;
    /// Class [`Code::PermissionDenied`].
    permission_denied => PermissionDenied;
    /// Class [`Code::ResourceExhausted`].
    resource_exhausted => ResourceExhausted;
    /// Class [`Code::FailedPrecondition`].
    failed_precondition => FailedPrecondition;
    /// Class [`Code::Aborted`].
    aborted => Aborted;
    /// Class [`Code::OutOfRange`].
    out_of_range => OutOfRange;
    /// Class [`Code::NotImplemented`].
    not_implemented => NotImplemented;
    /// Class [`Code::Internal`].
    internal => Internal;
    /// Class [`Code::Unavailable`].
    unavailable => Unavailable;
    /// Class [`Code::DataLoss`].
    data_loss => DataLoss;
    /// Class [`Code::Unauthenticated`].
    unauthenticated => Unauthenticated;
}

impl Error {
    /// An error of class `code` whose innermost text is `what` (may be empty: class text alone).
    #[must_use]
    pub fn new(code: Code, what: impl fmt::Display) -> Self {
        let text = what.to_string();
        let context = if text.is_empty() {
            Vec::new()
        } else {
            vec![Cow::Owned(text)]
        };
        Self(Box::new(Inner {
            code,
            context,
            joined: Vec::new(),
            source: None,
        }))
    }

    /// An error from a failed system call: `operation path: errno text`, class Unknown as in Go.
    #[must_use]
    pub fn os(operation: impl fmt::Display, error: std::io::Error) -> Self {
        let mut made = Self::new(
            Code::Unknown,
            format_args!("{operation}: {}", errno_text(&error)),
        );
        made.0.source = Some(Box::new(error));
        made
    }

    /// An error that came over the wire: `message` already ends with the class text.
    #[must_use]
    pub fn from_wire(code: Code, message: &str) -> Self {
        let class = code.text();
        let text = if class.is_empty() {
            message
        } else {
            message
                .strip_suffix(class)
                .map_or(message, |rest| rest.strip_suffix(": ").unwrap_or(rest))
        };
        Self::new(code, text)
    }

    /// The class.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// True when the class is `code`.
    #[must_use]
    pub fn is(&self, code: Code) -> bool {
        self.0.code == code
    }

    /// True for [`Code::NotFound`].
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is(Code::NotFound)
    }

    /// True for [`Code::AlreadyExists`].
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.is(Code::AlreadyExists)
    }

    /// The same error with an outer context.
    #[must_use]
    pub fn ctx(mut self, context: impl Into<Cow<'static, str>>) -> Self {
        self.0.context.push(context.into());
        self
    }

    /// The same error under another class.
    #[must_use]
    pub fn reclass(mut self, code: Code) -> Self {
        self.0.code = code;
        self
    }

    /// The same error with the error that caused it, for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error with others that happened beside it. Its text goes on with theirs, each on a line of
    /// its own, as Go's joined errors do.
    #[must_use]
    pub fn join(mut self, others: impl IntoIterator<Item = Self>) -> Self {
        for mut other in others {
            let beside = std::mem::take(&mut other.0.joined);
            self.0.joined.push(other);
            self.0.joined.extend(beside);
        }
        self
    }

    /// The errors that happened beside this one.
    #[must_use]
    pub fn joined(&self) -> &[Self] {
        &self.0.joined
    }

    /// The errno when a system call failed below.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let source = self.0.source.as_ref()?;
        source
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error)
    }
}

/// Text of an I/O error as Go prints it: no `(os error N)` tail.
fn errno_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => {
            let mut text = text[..at].to_owned();
            if let Some(first) = text.get_mut(0..1) {
                first.make_ascii_lowercase();
            }
            text
        }
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.alone(f)?;
        for other in &self.0.joined {
            write!(f, "\n{other}")?;
        }
        Ok(())
    }
}

impl Error {
    /// Its own text.
    fn alone(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for part in self.0.context.iter().rev() {
            if !first {
                f.write_str(": ")?;
            }
            f.write_str(part)?;
            first = false;
        }
        let class = self.0.code.text();
        if class.is_empty() {
            return if first {
                f.write_str("unknown")
            } else {
                Ok(())
            };
        }
        if !first {
            f.write_str(": ")?;
        }
        f.write_str(class)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.code)?;
        if let Some(source) = &self.0.source {
            write!(f, " caused by {source:?}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.0.source.as_ref()?;
        Some(source.as_ref())
    }
}

/// Adds context to results and turns absence into `None`.
pub trait Context<T> {
    /// Adds a fixed outer context to an error.
    ///
    /// # Errors
    /// The error it was given, with the context.
    fn ctx(self, context: &'static str) -> Result<T>;
    /// Adds an outer context that is built only on failure.
    ///
    /// # Errors
    /// The error it was given, with the context.
    fn ctx_with<S: Into<String>>(self, context: impl FnOnce() -> S) -> Result<T>;
    /// `Ok(None)` for [`Code::NotFound`].
    ///
    /// # Errors
    /// Every error of another class.
    fn absent_ok(self) -> Result<Option<T>>;
}

impl<T> Context<T> for Result<T> {
    fn ctx(self, context: &'static str) -> Self {
        self.map_err(|e| e.ctx(context))
    }

    fn ctx_with<S: Into<String>>(self, context: impl FnOnce() -> S) -> Self {
        self.map_err(|e| e.ctx(Cow::Owned(context().into())))
    }

    fn absent_ok(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The failures of a teardown, which goes on past each of them.
#[derive(Debug, Default)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Keeps the error of a failed step; returns the value of one that worked.
    pub fn note<T>(&mut self, step: Result<T>) -> Option<T> {
        step.map_err(|e| self.0.push(e)).ok()
    }

    /// Itself as the error, when anything failed: for those who can do something about each.
    ///
    /// # Errors
    /// All failures.
    pub fn checked(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// `Ok` when nothing failed; the first error, joined by the others, otherwise.
    ///
    /// # Errors
    /// The class is that of the first failure.
    pub fn into_result(self) -> Result<()> {
        let mut all = self.0.into_iter();
        let Some(first) = all.next() else {
            return Ok(());
        };
        Err(first.join(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_go() {
        let e = Error::not_found(format_args!("container {:?}", "x"))
            .ctx("get")
            .ctx("outer");
        assert_eq!(e.to_string(), "outer: get: container \"x\": not found");
        assert_eq!(Error::unknown("boom").to_string(), "boom");
        assert_eq!(
            Error::new(Code::Cancelled, "").to_string(),
            "context canceled"
        );
        let io = std::io::Error::from_raw_os_error(2);
        assert_eq!(
            Error::os("open /x", io).to_string(),
            "open /x: no such file or directory"
        );
    }

    #[test]
    fn wire_round_trip_keeps_the_text_for_every_class() {
        for code in Code::ALL {
            let text = Error::new(code, "a: b").to_string();
            let back = Error::from_wire(code, &text);
            assert_eq!((back.code(), back.to_string()), (code, text));
        }
    }

    #[test]
    fn absence_becomes_none() {
        let gone: Result<u8> = Err(Error::not_found("x"));
        assert_eq!(gone.absent_ok().unwrap(), None);
        let other: Result<u8> = Err(Error::internal("x"));
        other.absent_ok().unwrap_err();
    }

    #[test]
    fn teardown_reports_all_failures() {
        let mut errors = Errors::default();
        assert_eq!(errors.note(Ok(1)), Some(1));
        errors.note::<()>(Err(Error::not_found("a")));
        errors.note::<()>(Err(Error::internal("b")));
        let errors = errors.checked().unwrap_err();
        let error = errors.into_result().unwrap_err().ctx("teardown");
        assert_eq!(error.to_string(), "teardown: a: not found\nb: internal");
        assert!(error.is_not_found());
        let more = Error::aborted("c").join([error]);
        let beside: Vec<_> = more.joined().iter().map(Error::to_string).collect();
        assert_eq!(beside, ["teardown: a: not found", "b: internal"]);
        let text = "c: aborted\nteardown: a: not found\nb: internal";
        assert_eq!(more.to_string(), text);
        Errors::default().into_result().unwrap();
    }

    #[test]
    fn an_error_is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
