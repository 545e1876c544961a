//! Namespaces and mounts: what paths, processes and users mean.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::{attack, attack_of_root, running};

#[test]
fn no_namespace_is_made() {
    for_each_user(|world| {
        let new = |flags: &str| {
            [
                (
                    format!("unshare {flags}"),
                    format!("need(libc.unshare(NEWUSER | {flags}) == 0, ctypes.get_errno())"),
                ),
                // Without a stack of its own the child is a fork.
                (
                    format!("clone {flags}"),
                    format!(
                        "pid = call('clone', NEWUSER | {flags} | 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)"
                    ),
                ),
                (
                    format!("clone3 {flags}"),
                    format!(
                        "a = (ctypes.c_uint64 * 11)(NEWUSER | {flags}); a[4] = 17; pid = call('clone3', a, 88)\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)"
                    ),
                ),
            ]
        };
        let flags = ["0", "NEWNS", "NEWPID", "NEWNET", "NEWIPC", "NEWUTS", "NEWCGROUP"];
        let list: Vec<_> = flags.into_iter().flat_map(new).collect();
        attack(world, &json!({}), &list);
    });
}

#[test]
fn nothing_is_mounted_and_no_root_is_changed() {
    for_each_user(|world| {
        // Outside anybody can in namespaces of their own, where it does no harm to the machine.
        let apart = |code: &str| {
            format!("own_namespaces(NEWNS | NEWNET | NEWUTS)\nat = os.path.abspath(own).encode()\n{code}")
        };
        let list = [
            ("a new filesystem", "call('mount', b'none', at, b'tmpfs', 0, 0)"),
            ("bind", "call('mount', outside.encode(), at, 0, 4096, 0)"),
            ("remount", "call('mount', b'none', at, b'tmpfs', 0, 0); call('mount', 0, at, 0, 32 | 4096, 0)"),
            ("make private", "call('mount', 0, b'/', 0, 0x44000, 0)"),
            ("unmount", "call('mount', b'none', at, b'tmpfs', 0, 0); call('umount2', at, 2)"),
            ("copy a mount", "os.close(call('open_tree', -100, outside.encode(), 1))"),
            (
                "copy a mount, with attributes",
                "os.close(call('open_tree_attr', -100, outside.encode(), 1, (ctypes.c_uint64 * 4)(1, 0, 0, 0), 32))",
            ),
            (
                "move a mount",
                "t = call('open_tree', -100, outside.encode(), 1); call('move_mount', t, b'', -100, at, 4)",
            ),
            (
                "attributes of a mount",
                "t = call('open_tree', -100, outside.encode(), 1); call('mount_setattr', t, b'', 0x1000, (ctypes.c_uint64 * 4)(1, 0, 0, 0), 32)",
            ),
            ("a filesystem's context", "os.close(call('fsopen', b'tmpfs', 0))"),
            ("change the root", "call('chroot', outside.encode())"),
            (
                "swap the root",
                "call('mount', b'none', at, b'tmpfs', 0, 0); os.mkdir(at + b'/old'); call('pivot_root', at, at + b'/old')",
            ),
            ("enter a namespace", "call('setns', os.open('/proc/self/ns/net', 0), 0)"),
            ("enter that of a process", "call('setns', call('pidfd_open', os.getpid(), 0), NEWUTS)"),
            ("name the machine", "socket.sethostname('evil')"),
        ];
        let list: Vec<_> = list.iter().map(|(name, code)| (*name, apart(code))).collect();
        attack(world, &json!({}), &list);
    });
}

#[test]
fn the_namespaces_of_other_processes_are_not_entered() {
    for_each_user(|world| {
        let victim = running(world.plain_command("sleep").arg("300"));
        let enter = |kind: &str| {
            format!(
                "for p in victim, 1:\n    try: call('setns', os.open(f'/proc/{{p}}/ns/{kind}', 0), 0); break\n    except OSError: pass\nelse: need(False)"
            )
        };
        let list = ["mnt", "net", "ipc", "uts", "pid", "cgroup"].map(|kind| (kind, enter(kind)));
        attack_of_root(world, &json!({ "victim": victim.0.id() }), &list);
    });
}
