//! What a sandboxed process has by itself: no capability, and no way to any.

use postern_tests::{for_each_user, stdout};
use serde_json::json;

use crate::attack::{attack, attack_of_root};

#[test]
fn no_capability_and_no_new_privileges() {
    for_each_user(|world| {
        let output = world.session(
            "",
            "grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'",
        );
        let zero = "0".repeat(16);
        assert_eq!(
            stdout(&output),
            format!("CapInh:{zero}\nCapPrm:{zero}\nCapEff:{zero}\nCapAmb:{zero}\nNoNewPrivs:1\nSeccomp:2")
        );
    });
}

#[test]
fn the_machine_is_not_for_root_inside_either() {
    for_each_user(|world| {
        // Each as a question, or with an argument that changes nothing.
        attack_of_root(
            world,
            &json!({}),
            &[
                ("another user", "mapped(lambda: os.setuid(65534)); need(os.getuid() == 65534)"),
                ("another group", "mapped(lambda: os.setgid(65534)); need(os.getgid() == 65534)"),
                ("the kernel's log", "call('syslog', 10, 0, 0)"),
                (
                    "the clock",
                    "t = ctypes.create_string_buffer(208); call('adjtimex', t); struct.pack_into('I', t, 0, 0x4000); call('adjtimex', t)",
                ),
                ("its name", "socket.sethostname(socket.gethostname())"),
                ("priority", "os.nice(-1)"),
                // Of a user that nobody else is.
                (
                    "priority of a user",
                    "pid = os.fork()\nif pid == 0: mapped(lambda: os.setuid(54321)); time.sleep(3); os._exit(0)\ntime.sleep(0.2); os.setpriority(os.PRIO_USER, 54321, 5); os.kill(pid, 9)",
                ),
                ("watch every file", "call('fanotify_init', 0, 0)"),
                (
                    "files of others",
                    "f = f'{own}/f'; open(f, 'w').close(); mapped(lambda: os.chown(f, 65534, 65534))",
                ),
                (
                    "trace the kernel",
                    "b = (ctypes.c_uint * 32)(); b[0], b[1] = 1, 128; call('perf_event_open', b, -1, 0, -1, 0)",
                ),
            ],
        );
    });
}

#[test]
fn doors_of_the_kernel_are_closed() {
    for_each_user(|world| {
        attack(
            world,
            &json!({}),
            &[
                ("a keyring of the user", "call('keyctl', 0, -3, 1)"),
                ("a key", "call('add_key', b'user', b'postern-test', b'x', 1, -3)"),
                (
                    "a requested key",
                    "try: call('request_key', b'user', b'postern-none', 0, 0)\nexcept OSError as error: need(error.errno == errno.ENOKEY, error.errno)",
                ),
                ("faults of one's own", "os.close(call('userfaultfd', 1 | os.O_CLOEXEC))"),
                ("priority of a group", "os.setpgid(0, 0); os.setpriority(os.PRIO_PGRP, 0, 5)"),
            ],
        );
    });
}
