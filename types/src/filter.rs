//! containerd's filter language.
//!
//! `field`, `field==v`, `field!=v`, `field~=regex`, joined by commas (AND); a list of filters is an OR.
//! Field parts are separated by dots and may be quoted: `labels."a.b/c"`. Values may be quoted with
//! `"`, and after `~=` also with `/…/` or `|…|`.

use std::iter::Peekable;
use std::str::CharIndices;

use crate::{Error, Result};

/// Something whose fields filters can ask for.
pub trait Filterable {
    /// The value of the field at `path`; `None` when there is no such field.
    fn field(&self, path: &[&str]) -> Option<String>;
}

/// A list of filters: matches when it is empty or any of them matches.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    any: Vec<Vec<Selector>>,
    texts: Vec<String>,
}

#[derive(Clone, Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(regex::Regex),
}

/// Longest filter string, in bytes: filters come from clients.
const MAX_FILTER: usize = 64 * 1024;
/// Limit of a compiled regular expression, in bytes.
const MAX_REGEX: usize = 1 << 20;

impl Filter {
    /// Parses the filter strings of a request.
    ///
    /// # Errors
    /// `InvalidArgument` naming the filter and the position.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self> {
        let parse = |f: &S| Parser::new(f.as_ref())?.selectors();
        Ok(Self {
            any: filters.iter().map(parse).collect::<Result<_>>()?,
            texts: filters.iter().map(|f| f.as_ref().to_owned()).collect(),
        })
    }

    /// The filter strings that it was parsed from: what a remote store is asked with.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// True when there is no filter at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.any.is_empty()
    }

    /// True when `object` passes.
    pub fn matches(&self, object: &(impl Filterable + ?Sized)) -> bool {
        self.any.is_empty()
            || self
                .any
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(object)))
    }
}

impl Selector {
    fn matches(&self, object: &(impl Filterable + ?Sized)) -> bool {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let found = object.field(&path);
        match (&self.test, found) {
            (Test::Present, found) => found.is_some_and(|v| !v.is_empty()),
            (Test::Equal(want), found) => found.is_some_and(|v| v == *want),
            (Test::NotEqual(want), found) => found.is_none_or(|v| v != *want),
            (Test::Matches(regex), found) => found.is_some_and(|v| regex.is_match(&v)),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self> {
        if text.len() > MAX_FILTER {
            return Err(Error::invalid_argument("filter is too long"));
        }
        Ok(Self {
            text,
            rest: text.char_indices().peekable(),
        })
    }

    fn fail<T>(&mut self, why: &str) -> Result<T> {
        let at = self.rest.peek().map_or(self.text.len(), |(at, _)| *at);
        Err(Error::invalid_argument(format_args!(
            "filter {:?}: position {at}: {why}",
            self.text
        )))
    }

    fn selectors(mut self) -> Result<Vec<Selector>> {
        let mut all = Vec::new();
        if self.text.is_empty() {
            return Ok(all);
        }
        loop {
            all.push(self.selector()?);
            match self.rest.next() {
                None => return Ok(all),
                Some((_, ',')) => {}
                Some(_) => return self.fail("expected ',' or the end"),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.rest.next_if(|(_, c)| *c == '.').is_some() {
            path.push(self.field()?);
        }
        let test = match self.rest.peek().map(|(_, c)| *c) {
            None | Some(',') => Test::Present,
            Some(first @ ('=' | '!' | '~')) => {
                self.rest.next();
                if self.rest.next_if(|(_, c)| *c == '=').is_none() {
                    return self.fail("expected '=' in the operator");
                }
                let value = self.value(first == '~')?;
                match first {
                    '=' => Test::Equal(value),
                    '!' => Test::NotEqual(value),
                    _ => Test::Matches(self.regex(&value)?),
                }
            }
            Some(_) => return self.fail("unsupported operator"),
        };
        Ok(Selector { path, test })
    }

    fn regex(&mut self, pattern: &str) -> Result<regex::Regex> {
        match regex::RegexBuilder::new(pattern)
            .size_limit(MAX_REGEX)
            .build()
        {
            Ok(regex) => Ok(regex),
            Err(error) => self.fail(&format!("bad regular expression: {error}")),
        }
    }

    fn field(&mut self) -> Result<String> {
        if self.rest.peek().is_some_and(|(_, c)| *c == '"') {
            return self.quoted();
        }
        let mut name = String::new();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| c.is_alphanumeric() || *c == '_') {
            name.push(c);
        }
        if name.is_empty() {
            return self.fail("expected a field name");
        }
        Ok(name)
    }

    fn value(&mut self, pattern: bool) -> Result<String> {
        match self.rest.peek().map(|(_, c)| *c) {
            Some('"') => self.quoted(),
            Some(delimiter @ ('/' | '|')) if pattern => {
                self.rest.next();
                self.until(delimiter)
            }
            _ => {
                let mut value = String::new();
                while let Some((_, c)) = self.rest.next_if(|(_, c)| *c != ',' && *c != '"') {
                    value.push(c);
                }
                Ok(value)
            }
        }
    }

    /// Up to an unescaped `delimiter`; `\delimiter` stands for itself, other escapes stay.
    fn until(&mut self, delimiter: char) -> Result<String> {
        let mut value = String::new();
        while let Some((_, c)) = self.rest.next() {
            match c {
                '\\' => match self.rest.next() {
                    Some((_, next)) if next == delimiter => value.push(next),
                    Some((_, next)) => value.extend(['\\', next]),
                    None => break,
                },
                c if c == delimiter => return Ok(value),
                c => value.push(c),
            }
        }
        self.fail("quoted text is not closed")
    }

    /// A Go string literal in double quotes.
    fn quoted(&mut self) -> Result<String> {
        self.rest.next();
        let mut value = String::new();
        while let Some((_, c)) = self.rest.next() {
            match c {
                '"' => return Ok(value),
                '\\' => {
                    let Some((_, escape)) = self.rest.next() else {
                        break;
                    };
                    value.push(match escape {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        '\\' | '"' => escape,
                        'x' => self.code_point(2)?,
                        'u' => self.code_point(4)?,
                        'U' => self.code_point(8)?,
                        _ => return self.fail("unknown escape"),
                    });
                }
                '\n' => return self.fail("line break in quoted text"),
                c => value.push(c),
            }
        }
        self.fail("quoted text is not closed")
    }

    fn code_point(&mut self, digits: usize) -> Result<char> {
        let mut code = 0;
        for _ in 0..digits {
            match self.rest.next().and_then(|(_, c)| c.to_digit(16)) {
                Some(digit) => code = code * 16 + digit,
                None => return self.fail("bad escape"),
            }
        }
        match char::from_u32(code) {
            Some(c) => Ok(c),
            None => self.fail("bad escape"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Labels;
    use proptest::prelude::*;

    struct Thing(Labels);

    impl Filterable for Thing {
        fn field(&self, path: &[&str]) -> Option<String> {
            match path {
                ["name"] => Some("alpine".into()),
                ["empty"] => Some(String::new()),
                ["labels", rest @ ..] => self.0.field(rest),
                _ => None,
            }
        }
    }

    fn run(filter: &str) -> bool {
        let thing = Thing(Labels::new().with("a.b/c", "x,y").with("k", "v"));
        Filter::parse(&[filter]).unwrap().matches(&thing)
    }

    #[test]
    fn the_language_selects() {
        for (filter, want) in [
            ("", true),
            ("name", true),
            ("empty", false),
            ("nothing", false),
            ("name==alpine", true),
            ("name==debian", false),
            ("name!=debian", true),
            ("nothing!=x", true),
            ("name~=^al.*", true),
            ("name~=/^al/", true),
            ("name~=|^zz|", false),
            ("name~=\"pin\"", true),
            ("labels.k==v", true),
            ("labels.\"a.b/c\"==\"x,y\"", true),
            ("name==alpine,labels.k==w", false),
            ("name==alpine,labels.k==v", true),
            ("name~=|a\\|p|", true),
        ] {
            assert_eq!(run(filter), want, "{filter}");
        }
    }

    #[test]
    fn a_list_is_an_or() {
        let thing = Thing(Labels::new());
        assert!(
            Filter::parse(&["name==x", "name==alpine"])
                .unwrap()
                .matches(&thing)
        );
        assert!(Filter::parse::<&str>(&[]).unwrap().matches(&thing));
    }

    #[test]
    fn bad_syntax_is_an_invalid_argument() {
        for bad in [
            "name=x",
            "=x",
            "name==\"x",
            "name~=[",
            "name,",
            ",",
            "a..b",
            "name==x\"",
            "name!x",
            "a b",
            "name~=/x",
            "\"\\q\"",
        ] {
            let error = Filter::parse(&[bad]).unwrap_err();
            assert!(error.is(crate::Code::InvalidArgument), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            drop(Filter::parse(&[text]));
        }

        #[test]
        fn quoted_values_round_trip(value in "[ -~]{0,30}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let filter = Filter::parse(&[format!("labels.x==\"{quoted}\"")]).unwrap();
            let thing = Thing(Labels::new().with("x", value));
            prop_assert!(filter.matches(&thing));
        }
    }
}
