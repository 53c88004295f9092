//! Ceilings, and windows of zstd.

use std::io::Write as _;

use types::Code;

use super::*;

const SMALL: Ceilings = Ceilings {
    free: 1 << 20,
    ratio: 200,
    most: 16 << 20,
};

/// Gives a KiB at a time: what is counted as taken is near to what was decoded.
struct Slow(std::io::Cursor<Vec<u8>>);

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(1 << 10);
        self.0.read(&mut buffer[..n])
    }
}

fn read(data: Vec<u8>, ceilings: Ceilings, total: u64) -> (u64, std::io::Result<()>) {
    let opts = PlainOpts {
        ceilings,
        whence: Whence::Store,
        total,
        is_unwanted: Box::new(|| false),
    };
    let reader = Box::new(Slow(std::io::Cursor::new(data)));
    let mut plain = decompress(reader, opts).unwrap().unwrap();
    let (mut count, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        match plain.read(&mut buffer) {
            Ok(0) => return (count, Ok(())),
            Ok(got) => count += got as u64,
            Err(error) => return (count, Err(error)),
        }
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(data, 3).unwrap()
}

fn is_refused(result: std::io::Result<()>) -> bool {
    let error = result.unwrap_err().downcast::<Error>().unwrap();
    error.is(Code::ResourceExhausted)
}

#[test]
fn a_little_that_holds_much_is_refused_while_it_is_read() {
    let zeroes = vec![0; 8 << 20];
    for (name, packed) in [("gzip", gzip(&zeroes)), ("zstd", zstd(&zeroes))] {
        assert!(
            (packed.len() as u64) < SMALL.free / SMALL.ratio * 2,
            "{name}"
        );
        let most = SMALL.of(packed.len() as u64);
        let (count, result) = read(packed.clone(), SMALL, 0);
        assert!(count <= most, "{name}: {count} of {most}");
        assert!(is_refused(result), "{name}");
        // Many streams, one after another, count as one.
        let piece = &zeroes[..1 << 19];
        let piece = if name == "gzip" {
            gzip(piece)
        } else {
            zstd(piece)
        };
        let (_, result) = read(piece.repeat(8), SMALL, 0);
        assert!(is_refused(result), "{name}");
        // Others have more room.
        let (count, result) = read(packed, Ceilings::default(), 0);
        result.unwrap();
        assert_eq!(count, zeroes.len() as u64);
    }
}

#[test]
fn what_is_known_to_follow_counts_from_the_start() {
    // What compresses well stands in front of what does not.
    let mut data = vec![0; 4 << 20];
    let mut random = 1_u64;
    data.extend((0..64_u32 << 10).map(|_| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        random.to_be_bytes()[0]
    }));
    let packed = gzip(&data);
    let total = packed.len() as u64;
    assert!(total * SMALL.ratio > data.len() as u64);
    let (_, result) = read(packed.clone(), SMALL, 0);
    assert!(is_refused(result));
    let (count, result) = read(packed, SMALL, total);
    result.unwrap();
    assert_eq!(count, data.len() as u64);
}

#[test]
fn nothing_has_more_than_there_is_room_for_in_all() {
    let (count, result) = read(vec![7; 17 << 20], SMALL, 0);
    assert!(count <= SMALL.most);
    assert!(is_refused(result));
    let (count, result) = read(vec![7; 16 << 20], SMALL, 0);
    result.unwrap();
    assert_eq!(count, SMALL.most);
}

#[test]
fn the_ceilings_are_those_of_what_a_layer_takes_and_of_its_stream() {
    let usual = Ceilings::default();
    assert_eq!(usual.of(0), 1 << 30);
    assert_eq!(usual.of(2 << 20), 1 << 30);
    assert_eq!(usual.of(1 << 30), 200 << 30);
    assert_eq!(usual.of(u64::MAX), 1 << 40);
    // A disk of three GiB that nobody has written to: zstd makes a few hundred KiB of it.
    let stream = Ceilings::STREAM;
    assert!(stream.of(100 << 10) >= 3 << 30);
    assert_eq!(stream.of(0), 64 << 30);
    assert_eq!(stream.of(100 << 20), 2000 * (100 << 20));
    assert_eq!(stream.of(u64::MAX), 1 << 40);
}

fn unpacked(stream: &[u8], whence: Whence, is_unwanted: bool) -> Result<Vec<u8>> {
    let opts = PlainOpts {
        ceilings: SMALL,
        whence,
        total: 0,
        is_unwanted: Box::new(move || is_unwanted),
    };
    let reader = Box::new(std::io::Cursor::new(stream.to_vec()));
    let mut all = Vec::new();
    let mut plain = decompress(reader, opts)?.unwrap();
    let read = plain.read_to_end(&mut all);
    read.map_err(|error| error.downcast::<Error>().unwrap())?;
    Ok(all)
}

fn windowed(data: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_window_that_nobody_has_memory_for_is_refused() {
    for whence in [Whence::Outside, Whence::Store] {
        let error = unpacked(&windowed(b"x", 28), whence, false).unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
    }
}

/// The one test here that takes the process's turn. Those who unpack layers take it, too.
#[test]
fn large_windows_have_their_turn_one_after_another() {
    let (common, large) = (windowed(b"x", 23), windowed(b"y", 27));
    let turn = Turns::stored().wait(&|| false).unwrap();
    assert_eq!(unpacked(&common, Whence::Store, true).unwrap(), b"x");
    let error = unpacked(&large, Whence::Store, true).unwrap_err();
    assert!(error.is(Code::Cancelled), "{error}");
    // Nobody holds up what comes in, and the other way round.
    assert_eq!(unpacked(&large, Whence::Outside, true).unwrap(), b"y");
    drop(turn);
    let arriving = Turns::arriving().wait(&|| false).unwrap();
    let error = unpacked(&large, Whence::Outside, true).unwrap_err();
    assert!(error.is(Code::Cancelled), "{error}");
    let opts = PlainOpts {
        ceilings: SMALL,
        whence: Whence::Store,
        total: 0,
        is_unwanted: Box::new(|| false),
    };
    let reader = Box::new(std::io::Cursor::new(large));
    let mut plain = decompress(reader, opts).unwrap().unwrap();
    plain.read_to_end(&mut Vec::new()).unwrap();
    // As long as there is a decoder.
    Turns::stored().wait(&|| true).unwrap_err();
    drop((plain, arriving));
    drop(Turns::stored().wait(&|| true).unwrap());
}
