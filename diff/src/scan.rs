//! Reading a layer without a file system: what can be told of its bytes alone. What fuzz targets drive.

use std::io::{BufRead, BufReader, Read};

use types::Result;

use crate::compression::{decode_error, decoder};
use crate::extract::Limits;
use crate::stream::CHUNK;
use crate::tar::Reader;
use crate::windows::{Large, Windows};

/// What is in a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Files, directories, links and deletions.
    pub entries: u64,
    /// Bytes of data of files, without holes.
    pub data: u64,
}

/// Reads a layer, compressed or not, to its end.
///
/// # Errors
/// `InvalidArgument` for bytes that are no layer; those of the stream.
pub fn scan(blob: impl BufRead) -> Result<Contents> {
    let windows = Windows {
        most: Limits::default().window,
        large: Large::Free,
    };
    let stream = Decoded(decoder(blob, windows).map_err(decode_error)?);
    let mut reader = Reader::new(BufReader::with_capacity(CHUNK, stream));
    let mut contents = Contents::default();
    while reader.next()?.is_some() {
        contents.entries += 1;
        loop {
            let got = reader.fill()?.len();
            if got == 0 {
                break;
            }
            contents.data += got as u64;
            reader.consume(got);
        }
    }
    reader.drain()?;
    Ok(contents)
}

/// A decoder whose complaints are about the blob.
struct Decoded<'a>(Box<dyn Read + 'a>);

impl Read for Decoded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(buffer);
        read.map_err(|e| match e.kind() {
            std::io::ErrorKind::Interrupted => e,
            _ => std::io::Error::other(decode_error(e)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use proptest::prelude::*;
    use types::Code;

    use super::*;
    use crate::compression::{Compression, Encoder};
    use crate::tar::{Entry, Extent, Kind};
    use crate::testing::{archive, dir, entry, file, merge, onto, symlink};

    /// Archives with all that the reader knows, some of them packed.
    fn seeds() -> Vec<Vec<u8>> {
        let long = "long/".repeat(60);
        let attributed = Entry {
            xattrs: vec![
                (b"user.k".to_vec(), vec![7; 600]),
                (b"user.l".to_vec(), Vec::new()),
            ],
            uid: u32::MAX - 1,
            ..file("attributed")
        };
        let device = Entry {
            major: 1,
            minor: 3,
            ..entry(Kind::Char, "d/null")
        };
        let plain = archive(&[
            (dir("d"), b""),
            (file("d/f"), b"some text that is to be read"),
            (link("d/h"), b""),
            (symlink("s", "../../outside"), b""),
            (file(&long), &[b'x'; 2000]),
            (attributed, b"a"),
            (device, b""),
            (file("d/.wh.f"), b""),
            (file(".wh..wh..opq"), b""),
        ]);
        let mut all = vec![plain, old_sparse(), inline_sparse()];
        for compression in [Compression::Gzip, Compression::Zstd] {
            let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
            encoder.write_all(&all[0]).unwrap();
            all.push(encoder.finish().unwrap());
        }
        all
    }

    fn link(name: &str) -> Entry {
        crate::testing::link(name, "d/f")
    }

    fn checksummed(block: &mut [u8]) {
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block[..512].iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    /// The GNU format: a map in the header, and a block more of it.
    fn old_sparse() -> Vec<u8> {
        let mut block = archive(&[(file("sparse"), b"")])[..512].to_vec();
        block[156] = b'S';
        block[257..265].copy_from_slice(b"ustar  \0");
        block[124..136].copy_from_slice(b"00000000012\0");
        let number = |block: &mut [u8], at: usize, value: u64| {
            block[at..at + 12].copy_from_slice(format!("{value:011o}\0").as_bytes());
        };
        block[345..512].fill(0);
        number(&mut block, 386, 100);
        number(&mut block, 398, 5);
        block[482] = 1;
        number(&mut block, 483, 5000);
        checksummed(&mut block);
        let mut more = [0; 512];
        number(&mut more, 0, 1000);
        number(&mut more, 12, 5);
        block.extend_from_slice(&more);
        block.extend_from_slice(b"helloworld");
        block.resize(2048, 0);
        block.extend_from_slice(&[0; 1024]);
        block
    }

    /// PAX 1.0: the map in front of the data.
    fn inline_sparse() -> Vec<u8> {
        let mut records = Vec::new();
        for (key, value) in [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "inline"),
            ("GNU.sparse.realsize", "5000"),
        ] {
            let rest = key.len() + value.len() + 3;
            records.extend_from_slice(format!("{} {key}={value}\n", rest + 2).as_bytes());
        }
        let head = archive(&[(file("head"), &records)]);
        let mut head = head[..1024].to_vec();
        head[156] = b'x';
        checksummed(&mut head);
        let mut map = b"2\n100\n5\n1000\n5\n".to_vec();
        map.resize(512, 0);
        map.extend_from_slice(b"helloworld");
        let body = archive(&[(file("GNUSparseFile.0/inline"), &map)]);
        [head, body].concat()
    }

    #[test]
    fn seeds_are_what_they_are_said_to_be() {
        for (number, seed) in seeds().into_iter().enumerate() {
            let found = scan(&seed[..]).unwrap();
            let want = if matches!(number, 1 | 2) {
                (1, 10)
            } else {
                (9, 2029)
            };
            assert_eq!((found.entries, found.data), want, "{number}");
        }
        let temp = tempfile::tempdir().unwrap();
        merge(&old_sparse(), temp.path()).unwrap();
        merge(&inline_sparse(), temp.path()).unwrap();
        let [old, inline] =
            ["sparse", "inline"].map(|n| std::fs::read(temp.path().join(n)).unwrap());
        assert_eq!(old, inline);
        assert_eq!(
            (old.len(), &old[100..105], &old[1000..1005]),
            (5000, &b"hello"[..], &b"world"[..])
        );
        // The map that the reader gives is the one of the file.
        let archive = old_sparse();
        let mut reader = Reader::new(&archive[..]);
        let sparse = reader.next().unwrap().unwrap().sparse.unwrap();
        let run = |offset| Extent { offset, len: 5 };
        assert_eq!(sparse, [run(100), run(1000)]);
    }

    /// What is done to a seed.
    #[derive(Clone, Debug)]
    enum Harm {
        Set(usize, u8),
        Cut(usize),
        Repeat(usize, usize),
        Text(usize, &'static str),
    }

    fn harm() -> impl Strategy<Value = Harm> {
        let numbers = proptest::sample::select(vec![
            "99999999999",
            "77777777777",
            "-1",
            "0",
            "18446744073709551615",
            "..",
            "/",
            "\u{80}\0\0\0",
        ]);
        prop_oneof![
            4 => (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Harm::Set(at, to)),
            1 => any::<usize>().prop_map(Harm::Cut),
            1 => (any::<usize>(), 1..2000_usize).prop_map(|(at, len)| Harm::Repeat(at, len)),
            3 => (any::<usize>(), numbers).prop_map(|(at, text)| Harm::Text(at, text)),
        ]
    }

    fn harmed(mut data: Vec<u8>, harms: &[Harm], sums: bool) -> Vec<u8> {
        for harm in harms {
            let len = data.len().max(1);
            match *harm {
                Harm::Set(at, to) if !data.is_empty() => data[at % len] = to,
                Harm::Cut(at) => data.truncate(at % len),
                Harm::Repeat(at, count) => {
                    let from = at % len;
                    let piece = data[from.min(data.len())..(from + count).min(data.len())].to_vec();
                    data.extend_from_slice(&piece);
                }
                Harm::Text(at, text) => {
                    let from = at % len;
                    let room = data.len().saturating_sub(from).min(text.len());
                    data[from..from + room].copy_from_slice(&text.as_bytes()[..room]);
                }
                Harm::Set(..) => {}
            }
        }
        if sums {
            // So that more than the checksum is looked at.
            data.chunks_exact_mut(512)
                .filter(|b| &b[257..262] == b"ustar")
                .for_each(checksummed);
        }
        data
    }

    fn is_fine(done: Result<()>) {
        if let Err(error) = done {
            let fine = [Code::InvalidArgument, Code::ResourceExhausted];
            // Names, owners and devices that this kernel does not take have an errno of their own.
            assert!(
                fine.contains(&error.code()) || error.errno().is_some(),
                "{error}"
            );
        }
    }

    fn canary(path: &Path) -> (u64, i64) {
        use std::os::unix::fs::MetadataExt as _;
        let facts = std::fs::symlink_metadata(path).unwrap();
        (facts.ino(), facts.ctime_nsec())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        /// What the fuzz targets do, over seeds that are harmed.
        #[test]
        fn harmed_layers_are_refused_or_read_and_reach_nothing_outside(
            seed in 0..5_usize,
            harms in proptest::collection::vec(harm(), 1..6),
            sums in any::<bool>(),
        ) {
            let data = harmed(seeds().swap_remove(seed), &harms, sums);
            is_fine(scan(&data[..]).map(drop));
            let temp = tempfile::tempdir().unwrap();
            let [root, upper, lower, outside] = ["root", "upper", "lower", "outside"].map(|name| {
                let path = temp.path().join(name);
                std::fs::create_dir(&path).unwrap();
                path
            });
            let before = (canary(&outside), canary(&lower), canary(temp.path()));
            is_fine(merge(&data, &root));
            is_fine(onto(&data, &upper, &[&lower]));
            prop_assert_eq!(before, (canary(&outside), canary(&lower), canary(temp.path())));
        }
    }
}
