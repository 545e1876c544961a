//! Taking over another process.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::{Attacks, Waiting, attack, has_root, running};

#[test]
fn no_process_outside_is_traced() {
    for_each_user(|world| {
        let victim = running(world.plain_command("sleep").arg("300"));
        let mut session = Waiting::start(world, &mut world.postern(), "eval $(<../order)");
        // The server is closed to its user outside, too.
        let mut pids = vec![session.spawner, i64::from(session.front.0.id()), i64::from(victim.0.id())];
        pids.extend(Some(session.server).filter(|_| has_root(world)));
        let all = "for pid in pids: ";
        let codes = [
            ("seize", "call('ptrace', 0x4206, pid, 0, 0)"),
            ("memory", "open(f'/proc/{pid}/mem', 'rb').close()"),
            ("a descriptor", "call('pidfd_getfd', call('pidfd_open', pid, 0), 0, 0)"),
            ("compare", "call('kcmp', os.getpid(), pid, 0, 0, 0)"),
            ("limits", "resource.prlimit(pid, resource.RLIMIT_NOFILE)"),
        ];
        let codes = codes.map(|(name, code)| (name, format!("{all}{code}")));
        let attacks = Attacks::new(world, &json!({ "pids": pids }), &codes);
        world.write("order", attacks.command());
        attacks.outside(true);
        attacks.inside(|_| session.go());
    });
}

#[test]
fn no_process_inside_is_traced_either() {
    // The waiter of an escalated command is one of them.
    const CHILD: &str = "
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    while True: time.sleep(1)
secret = ctypes.create_string_buffer(b'x' * 16)
into = ctypes.create_string_buffer(16)
here, there = [(ctypes.c_size_t * 2)(ctypes.addressof(b), 16) for b in (into, secret)]
try:
    ";
    for_each_user(|world| {
        let codes = [
            ("seize", "call('ptrace', 0x4206, pid, 0, 0)"),
            ("attach", "call('ptrace', 16, pid, 0, 0)"),
            ("be traced", "call('ptrace', 0, 0, 0, 0)"),
            ("read memory", "call('process_vm_readv', pid, here, 1, there, 1, 0)"),
            ("write memory", "call('process_vm_writev', pid, here, 1, there, 1, 0)"),
            ("a descriptor", "call('pidfd_getfd', call('pidfd_open', pid, 0), 0, 0)"),
            ("compare", "call('kcmp', os.getpid(), pid, 0, 0, 0)"),
            ("limits", "resource.prlimit(pid, resource.RLIMIT_NOFILE)"),
        ];
        let codes = codes.map(|(name, code)| (name, format!("{CHILD}{code}\nfinally: os.kill(pid, 9)")));
        attack(world, &json!({}), &codes);
    });
}
