//! Packets of hostile clients, and what `sftp` and `scp` do not send.
//! Out of scope: real clients (tests/e2e).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proptest::prelude::*;

use super::packet::Writer;
use super::*;

/// A request with its id.
fn request(kind: u8, id: u32, fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new(kind);
    writer.u32(id);
    fill(&mut writer);
    writer.finish()
}

fn open(path: &Path, flags: u32) -> impl FnOnce(&mut Writer) {
    let path = path.as_os_str().as_bytes().to_vec();
    move |writer| {
        writer.string(&path);
        writer.u32(flags);
        writer.u32(0);
    }
}

/// The responses without their lengths, and whether the server has ended well.
fn serve_all(input: &[u8]) -> (Vec<Vec<u8>>, bool) {
    let mut output = Vec::new();
    let ended = serve(BufReader::new(input), &mut output).is_ok();
    let (mut responses, mut rest) = (Vec::new(), output.as_slice());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (response, after) = after.split_at(u32::from_be_bytes(*length) as usize);
        responses.push(response.to_vec());
        rest = after;
    }
    (responses, ended)
}

/// The code of a status.
fn status(response: &[u8]) -> Option<u32> {
    let (head, rest) = response.split_first_chunk::<5>()?;
    let (code, _) = rest.split_first_chunk::<4>()?;
    (head[0] == answer::STATUS).then(|| u32::from_be_bytes(*code))
}

#[test]
fn a_packet_of_an_invalid_size_ends_the_server_and_takes_no_memory() {
    for (input, responses) in [
        (&b""[..], 0),
        (&[0, 0, 0, 0], 0),
        (&[0xff, 0xff, 0xff, 0xff, 1], 0),
        (&[0, 4, 0, 1, 1], 0),
        (&[0, 0, 0, 5, 1, 0, 0], 0),
        (&[0, 0], 0),
        // Without an id.
        (&[0, 0, 0, 1, 3], 0),
        // A string that is longer than its packet.
        (&[0, 0, 0, 9, 17, 0, 0, 0, 1, 0, 0, 0, 9], 1),
    ] {
        let (found, ended) = serve_all(input);
        assert_eq!(found.len(), responses, "{input:?}");
        assert_eq!(ended, input.is_empty(), "{input:?}");
    }
}

#[test]
fn the_first_response_has_the_version_and_the_extensions() {
    let (responses, ended) = serve_all(&[0, 0, 0, 5, 1, 0, 0, 0, 3]);
    assert!(ended);
    assert_eq!(responses[0][..5], [2, 0, 0, 0, 3]);
    let text = String::from_utf8_lossy(&responses[0]).into_owned();
    assert!(text.contains("posix-rename@openssh.com"));
}

#[test]
fn unknown_requests_and_handles_are_errors_and_the_server_goes_on() {
    let mut input = request(99, 1, |_| {});
    input.extend(request(kind::EXTENDED, 2, |w| w.string(b"x@y")));
    for handle in [&b""[..], b"\0\0\0\x07", b"too long for a handle"] {
        input.extend(request(kind::CLOSE, 3, |w| w.string(handle)));
    }
    input.extend(request(kind::STAT, 4, |w| w.string(b"/nul\0byte")));
    input.extend(request(kind::STAT, 5, |w| w.string(b"/nonexistent")));
    input.extend(request(kind::STAT, 6, |w| w.string(b"/")));
    let (responses, ended) = serve_all(&input);
    let codes: Vec<Option<u32>> = responses.iter().map(|r| status(r)).collect();
    let expected = [8, 8, 4, 4, 4, 4, 2].map(Some);
    assert_eq!(codes[..7], expected);
    assert_eq!((codes[7], responses[7][0]), (None, answer::ATTRS));
    assert!(ended);
}

#[test]
fn open_handles_are_limited_and_names_are_bytes() {
    let directory = tempfile::tempdir().expect("a directory");
    let name = std::ffi::OsStr::from_bytes(b"\xff\xfe name");
    let path = directory.path().join(name);
    // WRITE, CREATE, EXCLUSIVE.
    let mut input = request(kind::OPEN, 0, open(&path, 2 | 8 | 32));
    input.extend(request(kind::OPEN, 1, open(&path, 2 | 8 | 32)));
    for id in 2..300 {
        input.extend(request(kind::OPEN, id, open(&path, 1)));
    }
    let (responses, _) = serve_all(&input);
    assert!(path.exists());
    assert_eq!(responses[0][0], answer::HANDLE);
    assert_eq!(status(&responses[1]), Some(4), "it exists");
    let opened = responses.iter().filter(|r| r[0] == answer::HANDLE).count();
    assert_eq!(opened, 256);
}

#[test]
fn reads_and_writes_are_at_any_offset_and_bounded() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    let handle = 0u32.to_be_bytes();
    let write = |offset: u64, data: &'static [u8]| {
        request(kind::WRITE, 1, move |w| {
            w.string(&handle);
            w.u64(offset);
            w.string(data);
        })
    };
    let read = |offset: u64, length: u32| {
        request(kind::READ, 2, move |w| {
            w.string(&handle);
            w.u64(offset);
            w.u32(length);
        })
    };
    let mut input = request(kind::OPEN, 0, open(&path, 1 | 2 | 8));
    for part in [
        write(1 << 20, b"end"),
        write(0, b"begin"),
        read(0, 5),
        read(0, u32::MAX),
        read(1 << 30, 5),
        read(u64::MAX, 5),
    ] {
        input.extend(part);
    }
    let (responses, ended) = serve_all(&input);
    assert!(ended);
    assert_eq!(status(&responses[1]), Some(0));
    assert_eq!(responses[3][5..], *b"\0\0\0\x05begin");
    assert_eq!(responses[4].len(), 9 + MAX_READ);
    assert_eq!(status(&responses[5]), Some(1), "the end of the file");
    assert!(status(&responses[6]).is_some_and(|code| code == 1 || code == 4));
    assert_eq!(path.metadata().expect("a file").len(), (1 << 20) + 3);
}

proptest! {
    #[test]
    fn any_input_ends_without_a_panic(
        packets in prop::collection::vec((0..=16u8, prop::collection::vec(any::<u8>(), 0..40)), 0..8)
    ) {
        let mut input = Vec::new();
        for (kind, body) in packets {
            // Of the requests, only those that change nothing.
            let kind = [1, 4, 5, 7, 8, 11, 12, 16, 17, 19, 21, 99, 101, 255, 200, 0, 6][usize::from(kind)];
            let mut writer = Writer::new(kind);
            writer.bytes(&body);
            input.extend(writer.finish());
        }
        serve_all(&input);
    }
}
