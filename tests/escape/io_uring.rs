//! A ring, whose operations no system call filter sees.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::{Attacks, networked, session};

/// A ring of one's own: `does` gives it one operation, and returns what came of it.
const RING: &str = "
parameters = ctypes.create_string_buffer(120)
ring = call('io_uring_setup', 4, parameters)
of = lambda at: struct.unpack_from('I', parameters, at)[0]
rings = mmap.mmap(ring, 8192, offset=0)
entries = mmap.mmap(ring, 4096, offset=0x10000000)
word = lambda at: struct.unpack_from('I', rings, at)[0]
def does(operation, fd=-1, offset=0, address=0, length=0, flags=0):
    entries[0:64] = struct.pack('<BBHiQQII', operation, 0, 0, fd, offset, address, length, flags).ljust(64, b'\\0')
    tail = word(of(44))
    struct.pack_into('I', rings, of(64) + 4 * (tail & word(of(48))), 0)
    struct.pack_into('I', rings, of(44), tail + 1)
    call('io_uring_enter', ring, 1, 1, 1, 0, 0)
    head = word(of(80))
    result = struct.unpack_from('<Qi', rings, of(100) + 16 * (head & word(of(88))))[1]
    struct.pack_into('I', rings, of(80), head + 1)
    need(result >= 0, -result)
    return result
def text(string):
    kept.append(ctypes.create_string_buffer(string))
    return ctypes.addressof(kept[-1])
kept = []
";

#[test]
fn no_ring_is_had() {
    for_each_user(|world| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let daemon = world.outside.join("daemon");
        let _listening = std::os::unix::net::UnixListener::bind(&daemon).unwrap();
        let given = json!({ "port": listener.local_addr().unwrap().port(), "daemon": daemon });
        let list = [
            ("nothing", "does(0)"),
            (
                "open for writing",
                "f = does(18, -100, 0, text(target.encode()), 0o600, os.O_WRONLY); os.write(f, b'x')",
            ),
            ("make a directory", "does(37, -100, 0, text(new.encode()), 0o700)"),
            (
                "a TCP connection",
                "s = does(45, socket.AF_INET, socket.SOCK_STREAM); does(16, s, 16, text(struct.pack('!2sH4s8x', b'\\2\\0', port, bytes([127, 0, 0, 1]))))",
            ),
            (
                "a daemon's socket",
                "s = does(45, socket.AF_UNIX, socket.SOCK_STREAM); does(16, s, len(daemon) + 3, text(b'\\1\\0' + daemon.encode()))",
            ),
        ];
        let list = list.map(|(name, code)| (name, format!("{RING}{code}")));
        let mut list: Vec<_> = list.iter().map(|(name, code)| (*name, code.as_str())).collect();
        list.push(("register", "try: call('io_uring_register', -1, 0, 0, 0)\nexcept OSError as error: need(error.errno in (errno.EBADF, errno.EINVAL), error.errno)"));
        let attacks = Attacks::new(world, &given, &list);
        attacks.outside(true);
        attacks.inside(|command| session(world, &[], command));
        attacks.inside(|command| networked(world, command));
    });
}
