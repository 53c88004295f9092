//! From the text of a filter to what it asks for.
//!
//! Invariant: what it makes of a client's text is bounded, in length and in memory for its expressions.

use std::iter::Peekable;
use std::str::CharIndices;

use super::{Patterns, Selector, Test};
use crate::{Error, Result};

/// Longest filter string, in bytes: filters come from clients.
const MAX_FILTER: usize = 64 * 1024;
/// What operators are made of; a run of these is one operator.
const OPERATORS: [char; 3] = ['=', '!', '~'];
/// Limits of a compiled regular expression, in bytes. The smallest that it keeps is what it costs.
const REGEX_SIZES: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Reads one filter string.
pub(super) struct Parser<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
    /// What expressions may still cost.
    budget: &'a mut Patterns,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str, budget: &'a mut Patterns) -> Result<Self> {
        if text.len() > MAX_FILTER {
            return Err(Error::invalid_argument("filter is too long"));
        }
        Ok(Self {
            text,
            rest: text.char_indices().peekable(),
            budget,
        })
    }

    fn fail<T>(&mut self, why: &str) -> Result<T> {
        let at = self.rest.peek().map_or(self.text.len(), |(at, _)| *at);
        Err(Error::invalid_argument(format_args!(
            "filter {:?}: position {at}: {why}",
            self.text
        )))
    }

    pub(super) fn selectors(mut self) -> Result<Vec<Selector>> {
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

    /// White space is skipped before a field, an operator and a value, and nowhere else.
    fn skip_space(&mut self) {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
    }

    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.rest.next_if(|(_, c)| *c == '.').is_some() {
            path.push(self.field()?);
        }
        if matches!(self.rest.peek(), None | Some((_, ','))) {
            let test = Test::Present;
            return Ok(Selector { path, test });
        }
        self.skip_space();
        let mut operator = String::new();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| OPERATORS.contains(c)) {
            operator.push(c);
        }
        let test = match operator.as_str() {
            "==" => Test::Equal(self.value(false)?),
            "!=" => Test::NotEqual(self.value(false)?),
            "~=" => {
                let pattern = self.value(true)?;
                Test::Matches(self.regex(&pattern)?)
            }
            _ => return self.fail("expected an operator (\"==\"|\"!=\"|\"~=\")"),
        };
        Ok(Selector { path, test })
    }

    fn regex(&mut self, pattern: &str) -> Result<regex::Regex> {
        for size in REGEX_SIZES {
            if size > self.budget.compiled {
                return self.fail("the regular expressions are too many and too large");
            }
            let made = regex::RegexBuilder::new(pattern)
                .size_limit(size)
                .dfa_size_limit(self.budget.tables)
                .build();
            match made {
                Ok(regex) => {
                    self.budget.compiled -= size;
                    return Ok(regex);
                }
                Err(regex::Error::CompiledTooBig(_)) => {}
                Err(error) => return self.fail(&format!("bad regular expression: {error}")),
            }
        }
        self.fail("bad regular expression: it is too large")
    }

    fn field(&mut self) -> Result<String> {
        self.skip_space();
        if self.rest.peek().is_some_and(|(_, c)| *c == '"') {
            return self.quoted();
        }
        let mut name = String::new();
        while let Some((_, c)) = self
            .rest
            .next_if(|(_, c)| c.is_ascii_alphanumeric() || *c == '_')
        {
            name.push(c);
        }
        if name.is_empty() {
            return self.fail("expected a field name");
        }
        Ok(name)
    }

    /// Quoted, or everything up to a comma or white space; never empty without quotes.
    fn value(&mut self, pattern: bool) -> Result<String> {
        self.skip_space();
        match self.rest.peek().map(|(_, c)| *c) {
            Some('"') => return self.quoted(),
            Some('/' | '|') if pattern => return self.quoted(),
            Some('/' | '|') => return self.fail("invalid quote encountered"),
            // What cannot begin a value without quotes can stand inside of it.
            None | Some('.' | ',') => return self.fail("expected value or quoted"),
            Some(_) => {}
        }
        let mut value = String::new();
        let goes_on = |c: &char| *c != ',' && !c.is_whitespace() && !c.is_control();
        while let Some((_, c)) = self.rest.next_if(|(_, c)| goes_on(c)) {
            value.push(c);
        }
        Ok(value)
    }

    /// A Go string literal; the first character is the quote. Its escapes hold between `/…/` and
    /// `|…|` as well: a backslash of the pattern is written twice there.
    fn quoted(&mut self) -> Result<String> {
        let Some((_, quote)) = self.rest.next() else {
            return self.fail("expected value or quoted");
        };
        let mut value = Vec::new();
        while let Some((_, c)) = self.rest.next() {
            match c {
                c if c == quote => {
                    return match String::from_utf8(value) {
                        Ok(value) => Ok(value),
                        Err(_) => self.fail("quoted text is not UTF-8"),
                    };
                }
                '\\' => self.escape(quote, &mut value)?,
                '\n' => return self.fail("line break in quoted text"),
                c => push(&mut value, c),
            }
        }
        self.fail("quoted text is not closed")
    }

    fn escape(&mut self, quote: char, value: &mut Vec<u8>) -> Result<()> {
        let Some((_, escape)) = self.rest.next() else {
            return self.fail("quoted text is not closed");
        };
        match escape {
            'a' => value.push(0x07),
            'b' => value.push(0x08),
            'f' => value.push(0x0c),
            'n' => value.push(b'\n'),
            'r' => value.push(b'\r'),
            't' => value.push(b'\t'),
            'v' => value.push(0x0b),
            '\\' => value.push(b'\\'),
            c if c == quote => push(value, c),
            // These two name a byte, the next two a character.
            'x' => match u8::try_from(self.digits(0, 2, 16)?) {
                Ok(byte) => value.push(byte),
                Err(_) => return self.fail("bad escape"),
            },
            '0'..='7' => {
                let first = escape.to_digit(8).unwrap_or_default();
                match u8::try_from(self.digits(first, 2, 8)?) {
                    Ok(byte) => value.push(byte),
                    Err(_) => return self.fail("bad escape"),
                }
            }
            'u' | 'U' => {
                let count = if escape == 'u' { 4 } else { 8 };
                match char::from_u32(self.digits(0, count, 16)?) {
                    Some(c) => push(value, c),
                    None => return self.fail("bad escape"),
                }
            }
            _ => return self.fail("unknown escape"),
        }
        Ok(())
    }

    /// `count` more digits behind what `number` holds already.
    fn digits(&mut self, mut number: u32, count: usize, base: u32) -> Result<u32> {
        for _ in 0..count {
            let digit = self.rest.next().and_then(|(_, c)| c.to_digit(base));
            let more = digit.and_then(|digit| number.checked_mul(base)?.checked_add(digit));
            match more {
                Some(more) => number = more,
                None => return self.fail("bad escape"),
            }
        }
        Ok(number)
    }
}

fn push(text: &mut Vec<u8>, c: char) {
    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
