//! What services read of requests beside their messages' own conversions.

use std::str::FromStr;

use types::{Error, Filter, Patterns, Result};

/// Filters of one request. A list of that many images by name is one; a request has room for millions,
/// each of some hundred bytes when it is parsed.
const MAX_FILTERS: usize = 1000;
/// Bytes of all of them together.
const MAX_TEXT: usize = 256 << 10;
/// What they ask for, joined by commas: a comma that belongs to a value counts as well.
const MAX_SELECTORS: usize = 4000;
/// Regular expressions in the filters of one request. Each costs some KiB as long as it is held,
/// and a request has room for a million of them.
const MAX_EXPRESSIONS: usize = 256;

/// What filters may hold.
struct Limits {
    text: usize,
    conditions: usize,
    expressions: usize,
}

/// Those of one request.
const ONCE: Limits = Limits {
    text: MAX_TEXT,
    conditions: MAX_SELECTORS,
    expressions: MAX_EXPRESSIONS,
};
/// Those that are kept: they are asked for every event, while whoever publishes it waits.
const KEPT: Limits = Limits {
    text: 4 << 10,
    conditions: 64,
    expressions: 16,
};

/// The filters of a request.
///
/// # Errors
/// `InvalidArgument` for a filter that does not parse and for more than a request may hold.
pub fn filter(texts: &[String]) -> Result<Filter> {
    check(texts, &ONCE)?;
    Filter::parse(texts)
}

/// The filters of a request that are kept as long as its client listens.
///
/// # Errors
/// As [`filter`], with less room for everything.
pub fn kept_filter(texts: &[String]) -> Result<Filter> {
    check(texts, &KEPT)?;
    Filter::parse_within(texts, Patterns::KEPT)
}

/// Counts before anything is made of them.
fn check(texts: &[String], limits: &Limits) -> Result<()> {
    let all = |count: fn(&String) -> usize| texts.iter().map(count).sum::<usize>();
    // The text first: the rest is counted in it.
    limit(texts.len(), "filters", MAX_FILTERS)?;
    limit(all(String::len), "bytes of filters", limits.text)?;
    let commas = all(|text| text.matches(',').count());
    limit(
        texts.len() + commas,
        "conditions in filters",
        limits.conditions,
    )?;
    let found = all(|text| text.matches("~=").count());
    limit(found, "regular expressions in filters", limits.expressions)
}

fn limit(count: usize, what: &str, most: usize) -> Result<()> {
    if count <= most {
        return Ok(());
    }
    Err(Error::invalid_argument(format_args!(
        "a request with {count} {what}, the limit is {most}"
    )))
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

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;

    fn refusal(texts: &[String]) -> String {
        let error = filter(texts).unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
        error.to_string()
    }

    #[test]
    fn what_filters_may_hold_is_limited_and_the_limit_is_named() {
        let many = |count: usize, text: &str| vec![text.to_owned(); count];
        filter(&many(MAX_FILTERS, "a")).unwrap();
        let text = refusal(&many(MAX_FILTERS + 1, "a"));
        assert!(text.contains("1001 filters, the limit is 1000"), "{text}");

        let long = format!("a=={}", "x".repeat(MAX_TEXT / 4 - 3));
        filter(&many(4, &long)).unwrap();
        let text = refusal(&[many(4, &long), many(1, "a")].concat());
        assert!(text.contains("262145 bytes of filters"), "{text}");

        let joined = |count| vec!["a"; count].join(",");
        filter(&[joined(MAX_SELECTORS)]).unwrap();
        let text = refusal(&[joined(MAX_SELECTORS), "a".into()]);
        assert!(text.contains("4001 conditions in filters"), "{text}");

        filter(&many(MAX_EXPRESSIONS, "a~=b")).unwrap();
        let text = refusal(&[many(MAX_EXPRESSIONS, "a~=b"), many(1, "a~=b")].concat());
        assert!(text.contains("257 regular expressions"), "{text}");
    }

    #[test]
    fn a_filter_that_is_kept_is_short_and_has_few_patterns_and_small_ones() {
        let many = |count: usize, text: &str| vec![text.to_owned(); count];
        kept_filter(&many(KEPT.expressions, "topic~=^/tasks/")).unwrap();
        kept_filter(&many(KEPT.conditions, "topic==\"/tasks/exit\"")).unwrap();
        kept_filter(&[format!("topic=={}", "x".repeat(KEPT.text - 7))]).unwrap();
        for refused in [
            many(KEPT.expressions + 1, "topic~=x"),
            many(8, "topic~=\\pL{15}"),
            many(KEPT.conditions + 1, "a"),
            vec!["a,".repeat(KEPT.conditions) + "a"],
            vec![format!("topic=={}", "x".repeat(KEPT.text - 6))],
        ] {
            filter(&refused).unwrap();
            let error = kept_filter(&refused).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
        }
    }
}
