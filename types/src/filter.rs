//! containerd's filter language.
//!
//! `field`, `field==v`, `field!=v`, `field~=regex`, joined by commas (AND); a list of filters is an OR.
//! Field parts are separated by dots and may be quoted: `labels."a.b/c"`. Values may be quoted with
//! `"`, and after `~=` also with `/…/` or `|…|`. White space may stand before a field, an operator
//! and a value. `!=` and `~=` take a field that is not there as the empty text. All of this is as Go
//! containerd does it, except that a pattern that cannot be compiled is refused here.

mod parser;

use crate::Result;
use parser::Parser;

/// Something whose fields filters can ask for.
pub trait Filterable {
    /// The value of the field at `path`; `None` when there is no such field, and for the empty value
    /// of one that need not be set.
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

/// What the regular expressions of filters may take in memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Patterns {
    /// All of them together, compiled.
    pub compiled: usize,
    /// About what the tables of one may take that are made while it is looked for, twice, for each
    /// thread that does.
    pub tables: usize,
}

impl Patterns {
    /// Of filters that last as long as their request.
    pub const REQUEST: Self = Self {
        compiled: 16 << 20,
        tables: 256 << 10,
    };
    /// Of filters that are kept, for days perhaps, and looked for by one thread after the other.
    pub const KEPT: Self = Self {
        compiled: 1 << 20,
        tables: 32 << 10,
    };
}

impl Filter {
    /// Parses the filter strings of a request.
    ///
    /// # Errors
    /// `InvalidArgument` naming the filter and the position.
    pub fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self> {
        Self::parse_within(filters, Patterns::REQUEST)
    }

    /// The same with other limits for its regular expressions.
    ///
    /// # Errors
    /// As [`Filter::parse`].
    pub fn parse_within<S: AsRef<str>>(filters: &[S], mut limits: Patterns) -> Result<Self> {
        let parse = |f: &S| Parser::new(f.as_ref(), &mut limits)?.selectors();
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
        // Only the first two tests tell what is absent from what is empty.
        let value = found.as_deref().unwrap_or_default();
        match &self.test {
            Test::Present => found.is_some(),
            Test::Equal(want) => found.is_some() && value == want,
            Test::NotEqual(want) => value != want,
            Test::Matches(regex) => regex.is_match(value),
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
                ["tasks"] => Some("/tasks/a.b".into()),
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
            ("empty", true),
            ("empty==\"\"", true),
            ("nothing==\"\"", false),
            ("nothing!=\"\"", false),
            ("nothing~=^$", true),
            ("nothing~=[a-z]", false),
            (" name  ==\talpine, labels.k == v", true),
            ("name!=x\"y", true),
            ("tasks~=|^/tasks/|", true),
            ("tasks~=^/tasks/", true),
            ("tasks~=/a\\\\.b$/", true),
            ("tasks~=/s\\/a/", true),
            ("tasks~=a\\.b", true),
            ("name==\"\\x61\\154\\u0070\\U00000069ne\"", true),
            ("nothing", false),
            ("name==alpine", true),
            ("name==debian", false),
            ("name!=debian", true),
            ("nothing!=x", true),
            ("name~=^al.*", true),
            ("name~=(?i)^AL", true),
            ("name~=^\\pL+$", true),
            ("name~=^\\p{Latin}+$", true),
            ("name~=^\\p{Greek}", false),
            ("name~=/^al/", true),
            ("name~=|^zz|", false),
            ("name~=\"pin\"", true),
            ("labels.k==v", true),
            ("labels.\"a.b/c\"==\"x,y\"", true),
            ("name==alpine,labels.k==w", false),
            ("name==alpine,labels.k==v", true),
            ("name~=|z\\|al|", true),
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
            "name!x",
            "name==",
            "name===x",
            "name==x y",
            "name==x ,tasks",
            "name ",
            "name .x",
            "name==/x/",
            "name==.x",
            "näme",
            "name==\"\\xff\"",
            "name==\"\\777\"",
            "name==\"\\ud800\"",
            "name~=/\\d/",
            "a b",
            "name~=/x",
            "\"\\q\"",
        ] {
            let error = Filter::parse(&[bad]).unwrap_err();
            assert!(error.is(crate::Code::InvalidArgument), "{bad}");
        }
    }

    /// Each of them would take a megabyte, and a request has room for a million.
    #[test]
    fn many_large_patterns_are_refused_and_many_small_ones_are_not() {
        let filters = |count, pattern| {
            let one = format!("name~={pattern}");
            Filter::parse(&[vec![one; count].join(",")])
        };
        for (count, pattern) in [(1, "\\pL{2000}"), (1000, "\\pL{15}"), (1100, "al")] {
            let error = filters(count, pattern).unwrap_err();
            assert!(error.is(crate::Code::InvalidArgument), "{pattern}");
            assert!(error.to_string().contains("too large"), "{error}");
        }
        filters(1, "\\pL{15}").unwrap();
        filters(200, "^docker.io/library/[a-z]+(:.*)?$").unwrap();
        // The budget is one of the whole request.
        let list = vec!["name~=\\pL{15}".to_owned(); 1000];
        let error = Filter::parse(&list).unwrap_err();
        assert!(error.is(crate::Code::InvalidArgument), "{error}");
    }

    #[test]
    fn patterns_that_are_kept_have_less_room() {
        let filters = |count| vec!["name~=\\pL{15}".to_owned(); count];
        Filter::parse(&filters(5)).unwrap();
        let refused = Filter::parse_within(&filters(5), Patterns::KEPT).unwrap_err();
        assert!(refused.is(crate::Code::InvalidArgument), "{refused}");
        let kept = Filter::parse_within(&filters(1), Patterns::KEPT).unwrap();
        assert!(!kept.matches(&Thing(Labels::new())));
        // Tables that are too small are done without.
        let none = Patterns {
            tables: 0,
            ..Patterns::KEPT
        };
        let kept = Filter::parse_within(&["name~=^al.*e$"], none).unwrap();
        assert!(kept.matches(&Thing(Labels::new())));
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
