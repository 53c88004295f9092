//! Who else failed, beside the host whose error is told.
//!
//! Invariant: the text is bounded, however many hosts there are and whatever they say.

use types::Error;

/// Hosts that are named with what they said.
const MOST: usize = 4;
/// Characters of what each of them said.
const LENGTH: usize = 320;

/// A host that failed before.
pub(crate) struct Blame<'a> {
    pub(crate) host: &'a str,
    pub(crate) said: String,
}

/// `error`, and before it the others, as far as it does not name them.
pub(crate) fn blame<'a>(error: Error, others: impl Iterator<Item = Blame<'a>>) -> Error {
    let told = error.to_string();
    let mut others = others.filter(|other| !told.contains(other.host));
    let named: Vec<String> = others.by_ref().take(MOST).map(Blame::shown).collect();
    if named.is_empty() {
        return error;
    }
    let more = match others.count() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    error.ctx(format!("others failed, too ({}{more})", named.join("; ")))
}

impl Blame<'_> {
    fn shown(self) -> String {
        let mut said = self.said;
        if !said.contains(self.host) {
            said = format!("{}: {said}", self.host);
        }
        if let Some((end, _)) = said.char_indices().nth(LENGTH) {
            said.truncate(end);
            said.push_str("...");
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_hosts_that_say_much_are_cut() {
        let hosts: Vec<String> = (0..100).map(|n| format!("https://m{n}.test/v2")).collect();
        let others = hosts.iter().map(|host| Blame {
            host,
            said: "é".repeat(10_000),
        });
        let error = blame(Error::not_found("https://m0.test/v2"), others);
        assert!(error.is_not_found());
        let text = error.to_string();
        assert!(text.contains("https://m4.test/v2: é"), "{text}");
        assert!(text.contains("; and 95 more"), "{text}");
        assert!(text.chars().count() < 1500, "{text}");
        assert_eq!(text.matches("https://m0.test").count(), 1, "{text}");
    }

    #[test]
    fn who_fails_alone_is_told_as_it_is() {
        let error = blame(Error::not_found("x"), std::iter::empty());
        assert_eq!(error.to_string(), "x: not found");
    }
}
