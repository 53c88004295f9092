//! What services read of requests beside their messages' own conversions.

use std::str::FromStr;

use types::{Error, Filter, Result};

/// Regular expressions in the filters of one request. Each costs some KiB as long as it is held,
/// and a request has room for a million of them.
const MAX_EXPRESSIONS: usize = 256;

/// The filters of a request.
///
/// # Errors
/// `InvalidArgument` for a filter that does not parse and for too many expressions.
pub fn filter(texts: &[String]) -> Result<Filter> {
    let expressions: usize = texts.iter().map(|text| text.matches("~=").count()).sum();
    if expressions > MAX_EXPRESSIONS {
        return Err(Error::invalid_argument(format_args!(
            "filters hold {expressions} regular expressions, the limit is {MAX_EXPRESSIONS}"
        )));
    }
    Filter::parse(texts)
}

/// The id in a request that looks something up. Parity: metadata/*.go: a text that can be no id
/// names nothing, which is `NotFound`; only what makes something says what is wrong with the id.
///
/// # Errors
/// `NotFound`.
pub fn known<T: FromStr<Err = Error>>(id: &str, what: &str) -> Result<T> {
    id.parse()
        .map_err(|e: Error| Error::not_found(format_args!("{what} {id:?}")).with_source(e))
}
