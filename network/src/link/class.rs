//! Classes of what the kernel refuses.

use types::{Code, Error};

// Numbers of errors, by the names in errno(3).
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const ENXIO: i32 = 6;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const ERANGE: i32 = 34;
const ENAMETOOLONG: i32 = 36;
const ELOOP: i32 = 40;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;
const ENETDOWN: i32 = 100;
const ENETUNREACH: i32 = 101;
const ENOBUFS: i32 = 105;
const EHOSTUNREACH: i32 = 113;

/// The error under the class that its number means for networks.
pub(crate) fn classed(error: Error) -> Error {
    if !error.is(Code::Unknown) {
        return error;
    }
    let code = match error.errno() {
        Some(ENOENT | ESRCH | ENXIO | ENODEV) => Code::NotFound,
        Some(EEXIST | EADDRINUSE) => Code::AlreadyExists,
        Some(EINVAL | ERANGE | ENAMETOOLONG | ELOOP | EAFNOSUPPORT) => Code::InvalidArgument,
        // Of an interface whose IPv6 is switched off.
        Some(EACCES) => Code::FailedPrecondition,
        Some(EBUSY | EADDRNOTAVAIL | ENETDOWN | ENETUNREACH | EHOSTUNREACH) => {
            Code::FailedPrecondition
        }
        Some(EOPNOTSUPP) => Code::NotImplemented,
        Some(EPERM) => Code::PermissionDenied,
        Some(ENOMEM | ENOSPC | ENOBUFS) => Code::ResourceExhausted,
        _ => return error,
    };
    error.reclass(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_class_that_is_known_stays_and_a_number_means_one() {
        let error = |errno| Error::os("x", io::Error::from_raw_os_error(errno));
        for (errno, code) in [
            (ENODEV, Code::NotFound),
            (EEXIST, Code::AlreadyExists),
            (EINVAL, Code::InvalidArgument),
            (ENETUNREACH, Code::FailedPrecondition),
            (EACCES, Code::FailedPrecondition),
            (EPERM, Code::PermissionDenied),
            (EOPNOTSUPP, Code::NotImplemented),
            (ENOBUFS, Code::ResourceExhausted),
            (5, Code::Unknown),
        ] {
            assert!(classed(error(errno)).is(code), "{errno}");
        }
        assert!(classed(Error::internal("x")).is(Code::Internal));
    }
}
