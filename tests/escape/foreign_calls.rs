//! System calls by other numbers than x86-64's own, which a filter of those would not know.
#![cfg(target_arch = "x86_64")]

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::attack;

/// Machine code: `int 0x80` with these registers.
const INT_80: &str = "
def int80(number, ebx=0, ecx=0, edx=0):
    code = b'\\x53\\xb8' + struct.pack('<I', number) + b'\\xbb' + struct.pack('<I', ebx)
    code += b'\\xb9' + struct.pack('<I', ecx) + b'\\xba' + struct.pack('<I', edx) + b'\\xcd\\x80\\x5b\\xc3'
    page = mmap.mmap(-1, 4096, prot=7)
    page[:len(code)] = code
    here = ctypes.c_char.from_buffer(page)
    result = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(here))()
    need(result >= 0, -result)
    return result
";

/// What a kernel without the emulation says stands for what one with it does: the call arrived.
fn arrives(code: &str) -> String {
    format!("try: {code}\nexcept OSError as error: need(error.errno == errno.ENOSYS, error.errno)")
}

#[test]
fn numbers_of_x32_are_deadly() {
    for_each_user(|world| {
        let x32 = |number: u32| arrives(&format!("call(0x40000000 | {number}, 0, 0, 0)"));
        let list = [
            ("getpid", x32(39)),
            ("socket", x32(41)),
            ("ptrace", x32(521)),
            ("unshare", x32(272)),
            ("above all", x32(511)),
        ];
        attack(world, &json!({}), &list);
    });
}

#[test]
fn calls_of_32_bit_programs_are_deadly() {
    for_each_user(|world| {
        let list = [
            ("getpid", "int80(20)"),
            ("socket", "int80(359, socket.AF_INET, socket.SOCK_DGRAM, 0)"),
            ("unshare", "int80(310, NEWUSER)"),
            ("a keyring", "int80(288, 0, 0xfffffffd, 1)"),
        ];
        // A kernel without them ends the process itself, inside and outside; then the two are told
        // apart by what a sandbox always sets.
        let list = list.map(|(name, code)| {
            let came = format!("{INT_80}came = child(lambda: {code})\n");
            let none =
                "if came == -signal.SIGSEGV: need('NoNewPrivs:\t0' in open('/proc/self/status').read())";
            (name, format!("{came}{none}\nelse: need(came == 0)"))
        });
        attack(world, &json!({}), &list);
    });
}
