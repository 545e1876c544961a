//! Golden bytes: what one build writes another must read, or refuse by name.

use postern_shim::wire::{
    self, Answer, Bytes, FrameError, Handover, Kind, Layer, More, Notice, Plea, Request, ShellContext,
    VERSION, Wish,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn frame<T: serde::Serialize>(kind: Kind, body: &T) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let length = wire::encode(kind, body, &mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

fn bytes(text: &[u8]) -> Bytes {
    Bytes(text.to_vec())
}

fn request() -> Request {
    Request {
        path: bytes(b"/bin/true"),
        has_cwd: true,
        context: ShellContext {
            layer: Layer::Zsh,
            script: bytes(b"s"),
            line: 300,
            job: bytes(b""),
            functions: vec![bytes(b"f\xff")],
        },
        argv: vec![bytes(b"true"), bytes(b"")],
        env: vec![bytes(b"A=b")],
        wish: None,
    }
}

fn more() -> More {
    More { profile: bytes(b"{}"), base: bytes(b"/w") }
}

#[test]
fn every_message_has_the_bytes_that_it_always_had() {
    for (name, written, golden) in [
        (
            "request",
            frame(Kind::Request, &request()),
            "5053544e0500010023000000092f62696e2f747275650100017\
3fb2c01000102\
66ff0204747275650001\
03413d6200",
        ),
        (
            "a request that asks for more",
            frame(
                Kind::Request,
                &Request {
                    wish: Some(Wish {
                        more: Some(more()),
                        justification: bytes(b"j"),
                        prefix: vec![bytes(b"p")],
                    }),
                    ..request()
                },
            ),
            "5053544e050001002f000000092f62696e2f7472756501000173fb2c0100010266ff020474727565000103413d620101027b7d022f77016a010170",
        ),
        (
            "plea",
            frame(Kind::Plea, &Plea { more: more(), justification: bytes(b"j") }),
            "5053544e0500070008000000027b7d022f77016a",
        ),
        (
            "run",
            frame(Kind::Answer, &Answer::Run),
            "5053544e05000400\
0100000000",
        ),
        (
            "deny",
            frame(Kind::Answer, &Answer::Deny { reason: b"no" }),
            "5053544e05000400040000000102\
6e6f",
        ),
        ("waiting", frame(Kind::Answer, &Answer::Waiting { text: b"?" }), "5053544e05000400030000000a013f"),
        ("escalate", frame(Kind::Answer, &Answer::Escalate), "5053544e050004000100000002"),
        ("refused", frame(Kind::Answer, &Answer::Refused { errno: 8 }), "5053544e05000400020000000410"),
        (
            "stopped",
            frame(Kind::Answer, &Answer::Stopped { number: 1, signal: 20 }),
            "5053544e0500040003000000050128",
        ),
        ("exited", frame(Kind::Answer, &Answer::Exited { code: 3 }), "5053544e05000400020000000706"),
        ("signaled", frame(Kind::Answer, &Answer::Signaled { signal: 15 }), "5053544e0500040002000000081e"),
        (
            "handover",
            frame(
                Kind::Handover,
                &Handover {
                    last: true,
                    blocked: 1 << 63,
                    ignored: 1 << 16,
                    umask: 0o22,
                    numbers: vec![0, 1, 63],
                },
            ),
            "5053544e050005001400000001fd0000000000000080fc00000100120300013f",
        ),
        (
            "notice",
            frame(Kind::Notice, &Notice { signal: 2, from_outside: false, stop: 0 }),
            "5053544e0500060003000000040000",
        ),
        ("hello", frame(Kind::Hello, &()), "5053544e0500030000000000"),
    ] {
        assert_eq!(hex(&written), golden, "{name}");
    }
}

#[test]
fn what_is_written_is_read() {
    let written = frame(Kind::Request, &request());
    assert_eq!(wire::decode::<Request>(Kind::Request, &written).unwrap(), request());
}

#[test]
fn every_cut_and_every_changed_header_is_refused() {
    let written = frame(Kind::Request, &request());
    for length in 0..written.len() {
        assert!(wire::decode::<Request>(Kind::Request, &written[..length]).is_err(), "{length}");
    }
    let mut longer = written.clone();
    longer.push(0);
    assert_eq!(wire::decode::<Request>(Kind::Request, &longer), Err(FrameError::Length));
    let mut other = written.clone();
    other[4] = 200;
    let error = wire::decode::<Request>(Kind::Request, &other).unwrap_err();
    assert_eq!(error, FrameError::Version(200));
    assert!(error.to_string().contains("protocol 200") && error.to_string().contains(&VERSION.to_string()));
    for at in 0..wire::HEADER {
        let mut changed = written.clone();
        changed[at] ^= 0x40;
        assert!(wire::decode::<Request>(Kind::Request, &changed).is_err(), "{at}");
    }
}

#[test]
fn a_length_that_promises_the_world_allocates_nothing() {
    // path of 2^64-1 bytes
    let body = [&[0xfd][..], &[0xff; 8]].concat();
    let frame = [&wire::encode_header(Kind::Request, body.len() as u32)[..], &body].concat();
    assert_eq!(wire::decode::<Request>(Kind::Request, &frame), Err(FrameError::Body));
}
