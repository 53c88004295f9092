//! Foreign JSON, before it is parsed.

use crate::{Error, Result};

/// Most names and values of one foreign JSON document: three times what an index has with as many
/// entries as are read of one, each with a platform and annotations.
pub const MAX_JSON: usize = 1 << 18;

/// Refuses a document that would take a large multiple of its own length as maps and lists: an entry
/// of a map takes eight bytes of text and a hundred of memory.
///
/// # Errors
/// `ResourceExhausted`.
pub fn bound_json(text: &[u8]) -> Result<()> {
    let (mut values, mut in_string, mut is_escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b',' | b':' if !in_string => values += 1,
            _ => {}
        }
    }
    if values > MAX_JSON {
        return Err(Error::resource_exhausted(format_args!(
            "JSON document of more than {MAX_JSON} names and values"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn names_and_values_are_counted_and_texts_are_not() {
        let list = |entry: &str, many: usize| format!("[{}]", vec![entry; many].join(","));
        for (text, fits) in [
            (list("0", MAX_JSON), true),
            (list("0", MAX_JSON + 2), false),
            (list("{\"a\":\"\"}", MAX_JSON / 2), true),
            (list("{\"a\":\"\"}", MAX_JSON / 2 + 2), false),
            (list("[]", MAX_JSON + 2), false),
            (format!("\"{}\"", ",:\\\",\\\\".repeat(MAX_JSON)), true),
            // The quote after an escaped backslash ends the text.
            (format!("[\"\\\\\"{}]", ",0".repeat(MAX_JSON + 1)), false),
            (String::new(), true),
        ] {
            let bound = bound_json(text.as_bytes());
            assert_eq!(bound.is_ok(), fits, "{}", &text[..text.len().min(20)]);
            assert!(bound.err().is_none_or(|e| e.is(Code::ResourceExhausted)));
        }
    }
}
