//! Archives as the known writers make them, and as nobody should.

use super::*;
use proptest::prelude::*;

fn names(data: &[u8]) -> Result<Vec<(String, u64)>> {
    let mut tar = Tar::new(data);
    let mut all = Vec::new();
    while let Some(header) = tar.next()? {
        all.push((header.name, header.size));
    }
    Ok(all)
}

fn archive(name: &str, data: &[u8]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    builder.append_data(&mut header, name, data).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn long_names_and_pax_records_are_followed() {
    let long = "d/".repeat(90) + "file";
    assert_eq!(names(&archive(&long, b"abc")).unwrap(), [(long, 3)]);
    let mut builder = ::tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("path", b"other".as_slice()), ("size", b"2")])
        .unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_path("x").unwrap();
    header.set_size(0);
    header.set_cksum();
    let mut data = builder.into_inner().unwrap();
    data.truncate(data.len() - 1024);
    data.extend_from_slice(header.as_bytes());
    data.extend_from_slice(&[b'a'; 512]);
    assert_eq!(names(&data).unwrap(), [("other".to_owned(), 2)]);
}

#[test]
fn damage_is_named() {
    let good = archive("a", &[7; 2000]);
    for (data, want) in [
        (&b"no archive at all"[..], "unrecognized image format"),
        (&[0x55; 4096], "unrecognized image format"),
        (&good[..700], "truncated"),
        (&good[..513], "truncated"),
    ] {
        let error = names(data).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument));
        assert!(error.to_string().contains(want), "{error}");
    }
    assert!(names(b"").unwrap().is_empty());
    let mut flipped = good.clone();
    flipped.splice(2560..2560, [0x55; 512]);
    assert!(names(&flipped).unwrap_err().to_string().contains("damaged"));
}

#[test]
fn name_bombs_are_refused() {
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let error = names(header.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("too long"), "{error}");
}

fn header(kind: u8, name: &str, size: u64) -> ::tar::Header {
    let mut header = ::tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(::tar::EntryType::new(kind));
    header.set_size(size);
    header.set_cksum();
    header
}

fn joined(blocks: &[&[u8]]) -> Vec<u8> {
    blocks.concat()
}

#[test]
fn only_files_have_data() {
    let next = header(b'0', "next", 0);
    for kind in b"123456" {
        let data = joined(&[header(*kind, "a", 512).as_bytes(), next.as_bytes()]);
        let want = [("a".to_owned(), 0), ("next".to_owned(), 0)];
        assert_eq!(names(&data).unwrap(), want, "{}", char::from(*kind));
    }
    let mut dir = header(b'0', "dir/", 512);
    dir.as_mut_bytes()[FLAG] = 0;
    dir.set_cksum();
    let old = joined(&[dir.as_bytes(), next.as_bytes()]);
    assert_eq!(names(&old).unwrap().len(), 2);
    for kind in b"07" {
        let data = joined(&[header(*kind, "a", 512).as_bytes(), next.as_bytes()]);
        assert_eq!(names(&data).unwrap(), [("a".to_owned(), 512)]);
    }
}

#[test]
fn what_is_not_known_is_skipped_with_its_data() {
    let (file, next) = (header(b'0', "in the data", 0), header(b'0', "next", 0));
    for kind in b"VDMNX8" {
        for (size, data) in [(0, &[][..]), (512, file.as_bytes().as_slice())] {
            let first = header(*kind, "a", size);
            let all = joined(&[first.as_bytes(), data, next.as_bytes()]);
            let want = [("a".to_owned(), size), ("next".to_owned(), 0)];
            assert_eq!(names(&all).unwrap(), want, "{}", char::from(*kind));
            let mut tar = Tar::new(all.as_slice());
            assert_eq!(tar.next().unwrap().unwrap().kind, Kind::Other);
        }
    }
    // Where these end nobody knows without their map.
    let error = names(header(b'S', "sparse", 0).as_bytes()).unwrap_err();
    assert!(error.is(types::Code::InvalidArgument), "{error}");
    assert!(error.to_string().contains("sparse"), "{error}");
}

#[test]
fn the_end_is_two_blocks_of_zeroes_or_the_end() {
    let (one, zero) = (header(b'0', "a", 0), [0; 512]);
    let two = header(b'0', "b", 0);
    for (blocks, count) in [
        (&[one.as_bytes().as_slice()][..], Some(1)),
        (&[one.as_bytes(), &zero], Some(1)),
        (&[one.as_bytes(), &zero, &zero], Some(1)),
        (&[one.as_bytes(), &zero, &zero, two.as_bytes()], Some(1)),
        (&[one.as_bytes(), &zero, two.as_bytes()], None),
        (&[one.as_bytes(), &zero, &zero[1..]], None),
    ] {
        let found = names(&joined(blocks));
        assert_eq!(found.as_ref().ok().map(Vec::len), count, "{found:?}");
    }
}

#[test]
fn sizes_that_nothing_has_are_refused() {
    let mut negative = header(b'0', "a", 0);
    negative.as_gnu_mut().unwrap().size = [0xff; 12];
    negative.set_cksum();
    let mut longname = header(b'L', "a", 0);
    longname.as_gnu_mut().unwrap().size = [0xff; 12];
    longname.set_cksum();
    // Whose last eight bytes are a size that something could have.
    let mut large = header(b'0', "a", 512);
    large.as_gnu_mut().unwrap().size = [0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    large.set_cksum();
    let mut text = header(b'0', "a", 512);
    text.as_gnu_mut().unwrap().size = *b"+0000001000\0";
    text.set_cksum();
    for bad in [negative, longname, large, text] {
        let error = names(bad.as_bytes()).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
    }
    let sized = |size: &[u8]| {
        let mut builder = ::tar::Builder::new(Vec::new());
        builder.append_pax_extensions([("size", size)]).unwrap();
        let data = builder.into_inner().unwrap();
        let file = header(b'0', "a", 0);
        names(&joined(&[&data[..data.len() - 1024], file.as_bytes()]))
    };
    for bad in [
        "18446744073709551615",
        "9223372036854775808",
        "-1",
        "+0",
        "1x",
        "1\0",
    ] {
        let error = sized(bad.as_bytes()).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{bad}: {error}");
    }
    // That much is only missing.
    let error = sized(b"9223372036854775807").unwrap_err();
    assert!(error.to_string().contains("truncated"), "{error}");
    assert_eq!(sized(b"0").unwrap(), [("a".to_owned(), 0)]);
}

#[test]
fn a_later_pax_record_takes_the_place_of_an_earlier_one() {
    let pax = |key, value: &[u8]| {
        let mut builder = ::tar::Builder::new(Vec::new());
        builder.append_pax_extensions([(key, value)]).unwrap();
        let data = builder.into_inner().unwrap();
        data[..data.len() - 1024].to_vec()
    };
    let file = header(b'0', "a", 0);
    let two = joined(&[&pax("path", b"x"), &pax("size", b"0"), file.as_bytes()]);
    assert_eq!(names(&two).unwrap(), [("a".to_owned(), 0)]);
    names(&joined(&[&pax("path", b"x\0y"), file.as_bytes()])).unwrap_err();
}

proptest! {
    #[test]
    fn reading_never_panics(
        mut data in proptest::collection::vec(any::<u8>(), 0..3000),
        flips in proptest::collection::vec((0usize..2560, any::<u8>()), 0..8),
    ) {
        drop(names(&data));
        let mut near = archive("a/b", &data);
        for (at, value) in flips {
            if let Some(byte) = near.get_mut(at) {
                *byte = value;
            }
        }
        drop(names(&near));
        data.clear();
    }
}
