//! The `WWW-Authenticate` header (RFC 9110, section 11).

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Longest header that is looked at.
const MAX: usize = 16 * 1024;

/// Headers that are looked at.
const MAX_HEADERS: usize = 16;

/// What a server asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password.
    Basic,
    /// A token.
    Bearer(Bearer),
}

/// Where to get a token, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub(crate) realm: String,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

/// The challenge to answer, and all of them as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenged {
    pub(crate) choice: Challenge,
    pub(crate) raw: Vec<String>,
}

/// The challenge to answer: a token is preferred.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<Challenged> {
    let raw: Vec<String> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .filter(|value| value.len() <= MAX)
        .take(MAX_HEADERS)
        .map(str::to_owned)
        .collect();
    let all: Vec<Challenge> = raw.iter().flat_map(|value| parse(value)).collect();
    let bearer = all.iter().find(|c| matches!(c, Challenge::Bearer(_)));
    let choice = bearer.or(all.first())?.clone();
    Some(Challenged { choice, raw })
}

/// How many challenges are understood in one header.
#[cfg(any(test, feature = "testsuite"))]
pub(crate) fn count(value: &[u8]) -> usize {
    std::str::from_utf8(value).map_or(0, |value| parse(value).len())
}

/// All challenges of one header value that are understood.
fn parse(value: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut current: Option<(String, BTreeMap<String, String>)> = None;
    let mut rest = value.trim_start();
    while !rest.is_empty() {
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        if let Some(after) = after.trim_start().strip_prefix('=') {
            let (text, after) = token_or_quoted(after.trim_start());
            if let Some((_, parameters)) = &mut current {
                parameters.entry(word.to_ascii_lowercase()).or_insert(text);
            }
            rest = after;
        } else {
            found.extend(current.take().and_then(understand));
            current = Some((word.to_ascii_lowercase(), BTreeMap::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    found.extend(current.and_then(understand));
    found
}

fn understand((scheme, mut parameters): (String, BTreeMap<String, String>)) -> Option<Challenge> {
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer(Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })),
        _ => None,
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_graphic() || "\"(),/:;<=>?@[\\]{}".contains(c))
        .unwrap_or(text.len());
    text.split_at(end)
}

fn token_or_quoted(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Some servers leave URLs unquoted: up to the next comma or blank.
        let end = text.find([',', ' ']).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        return (word.to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer(Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        })
    }

    #[test]
    fn challenges_are_parsed() {
        for (value, want) in [
            (
                r#"Bearer realm="https://a/t",service="s",scope="repository:x:pull,push""#,
                vec![bearer(
                    "https://a/t",
                    Some("s"),
                    Some("repository:x:pull,push"),
                )],
            ),
            (
                r#"Basic realm="x", Bearer realm="y" , service=z"#,
                vec![Challenge::Basic, bearer("y", Some("z"), None)],
            ),
            (
                r#"bearer realm="a\"b\\""#,
                vec![bearer("a\"b\\", None, None)],
            ),
            (
                "Bearer realm=https://a/t",
                vec![bearer("https://a/t", None, None)],
            ),
            ("Bearer service=x", vec![]),
            ("Negotiate abc==, Basic", vec![Challenge::Basic]),
            (r#"Bearer realm="open"#, vec![bearer("open", None, None)]),
            ("", vec![]),
            ("=,=", vec![]),
        ] {
            assert_eq!(parse(value), want, "{value}");
        }
    }

    #[test]
    fn a_token_is_preferred() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=x".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "Bearer realm=y".parse().unwrap());
        let want = Challenged {
            choice: bearer("y", None, None),
            raw: vec!["Basic realm=x".into(), "Bearer realm=y".into()],
        };
        assert_eq!(challenge(&headers), Some(want));
        assert_eq!(challenge(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn parsing_ends_and_never_panics(value in "[ -~]{0,80}") {
            drop(parse(&value));
        }
    }
}
