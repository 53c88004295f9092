//! What keeps an object from being collected.

use std::fmt;

/// The answer to what keeps a blob or a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Bytes that it takes by itself; none when its snapshotter does not tell.
    pub size: Option<u64>,
    /// Other namespaces that have the same blob or snapshot: its bytes stay as long as one of them has it.
    pub elsewhere: Vec<String>,
    /// One way from each root to the object, named as `image NAME`, `lease ID`, `container ID` and so on.
    pub chains: Vec<Vec<String>>,
    /// Roots that were left out.
    pub more: u64,
}

impl Holders {
    /// Bytes that are freed once nothing of this namespace keeps it, as far as that is known.
    #[must_use]
    pub fn freed(&self) -> Option<u64> {
        if self.elsewhere.is_empty() {
            self.size
        } else {
            Some(0)
        }
    }
}

/// A line for each way.
impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chain in &self.chains {
            writeln!(f, "{}", chain.join(" -> "))?;
        }
        if self.more > 0 {
            writeln!(f, "and {} more", self.more)?;
        }
        if self.chains.is_empty() {
            writeln!(f, "nothing keeps it: the next collection takes it")?;
        }
        if !self.elsewhere.is_empty() {
            writeln!(
                f,
                "namespaces that have it, too: {}",
                self.elsewhere.join(", ")
            )?;
        }
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".into(), |n| n.to_string());
        writeln!(
            f,
            "bytes: {}, freed when nothing of this keeps it: {}",
            bytes(self.size),
            bytes(self.freed())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_read_as_lines() {
        let mut holders = Holders {
            size: Some(7),
            ..Holders::default()
        };
        let text = holders.to_string();
        assert!(text.starts_with("nothing keeps it"), "{text}");
        assert!(
            text.ends_with("bytes: 7, freed when nothing of this keeps it: 7\n"),
            "{text}"
        );
        holders.size = None;
        let text = holders.to_string();
        assert!(text.contains("bytes: unknown, "), "{text}");
        holders.size = Some(7);
        holders.chains = vec![vec!["image i".into(), "content x".into()]];
        holders.elsewhere = vec!["b".into()];
        holders.more = 2;
        assert_eq!(
            holders.to_string(),
            "image i -> content x\nand 2 more\nnamespaces that have it, too: b\n\
             bytes: 7, freed when nothing of this keeps it: 0\n"
        );
    }
}
