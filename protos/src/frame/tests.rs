//! Frames as the peer sees them.

use super::*;
use proptest::prelude::*;

#[test]
fn a_frame_is_a_header_and_a_message() {
    let request = Request {
        service: "s".into(),
        method: "m".into(),
        ..Request::default()
    };
    let frame = encode(7, Kind::Request, &request).unwrap();
    let (head, body) = frame.split_first_chunk::<HEADER>().unwrap();
    assert_eq!(
        Header::parse(head),
        Header {
            length: body.len(),
            stream: 7,
            kind: Kind::Request
        }
    );
    assert_eq!(head, &[0, 0, 0, 6, 0, 0, 0, 7, 1, 0]);
    assert_eq!(Request::parse_from_bytes(body).unwrap(), request);
    assert_eq!(Header::parse(&[9; HEADER]).kind, Kind::Other(9));
}

#[test]
fn a_message_that_nobody_takes_is_not_framed() {
    let response = Response {
        payload: vec![0; LONGEST],
        ..Response::default()
    };
    let error = encode(1, Kind::Response, &response).unwrap_err();
    assert!(error.is(::types::Code::ResourceExhausted), "{error}");
}

#[test]
fn an_answer_is_a_message_or_the_peers_error() {
    let response = failure(&Error::not_found("x"));
    let error = answer::<Request>(&response).unwrap_err();
    assert_eq!(error.to_string(), "x: not found");
    assert_eq!(
        answer::<Request>(&Response::default()).unwrap(),
        Request::default()
    );
    let broken = Response {
        payload: vec![0xff],
        ..Response::default()
    };
    answer::<Request>(&broken).unwrap_err();
}

/// What a peer would see of so many bytes, whole: kinds and lengths of what is wanted.
fn expected(mut bytes: &[u8]) -> Vec<(u32, usize)> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() {
        let header = Header::parse(head);
        let whole = rest.len() >= header.length;
        if header.kind == Kind::Request && (whole || header.length > LONGEST) {
            all.push((header.stream, header.length));
        }
        bytes = rest.get(header.length..).unwrap_or_default();
    }
    all
}

proptest! {
    #[test]
    fn frames_are_the_same_however_they_arrive(
        frames in proptest::collection::vec((any::<u32>(), 0..5_u8, 0..300_usize, any::<bool>()), 0..12),
        garbage in proptest::collection::vec(any::<u8>(), 0..40),
        cuts in proptest::collection::vec(1..200_usize, 1..20),
    ) {
        let mut bytes = Vec::new();
        for (stream, kind, length, too_long) in frames {
            // The body of a long one does not come: what follows is taken for it.
            let told = if too_long { LONGEST + 1 + length } else { length };
            bytes.extend(u32::try_from(told).unwrap().to_be_bytes());
            bytes.extend(stream.to_be_bytes());
            bytes.extend([kind, 0]);
            bytes.extend(vec![0; length]);
        }
        bytes.extend(garbage);
        let mut got = Vec::new();
        let mut frames = Frames::of(Kind::Request);
        let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            frames.buffer().extend_from_slice(piece);
            while let Some(frame) = frames.take() {
                got.push(match frame {
                    Frame::Message(stream, body) => (stream, body.len()),
                    Frame::TooLong(stream, length) => (stream, length),
                });
            }
            // Never more than one frame that is not whole yet.
            prop_assert!(frames.buffer().len() <= HEADER + LONGEST);
            rest = left;
        }
        prop_assert_eq!(got, expected(&bytes));
    }
}
