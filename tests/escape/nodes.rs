//! Nodes that an attack makes itself.

use postern_tests::{for_each_user, stdout, text};
use serde_json::json;

use crate::attack::{attack, attack_of_root};

#[test]
fn no_device_node_is_made() {
    for_each_user(|world| {
        attack_of_root(
            world,
            &json!({}),
            &[
                ("a character device", "os.mknod(f'{own}/n', stat.S_IFCHR | 0o600, os.makedev(1, 1))"),
                ("a block device", "os.mknod(f'{own}/n', stat.S_IFBLK | 0o600, os.makedev(8, 0))"),
                (
                    "in shared memory",
                    "n = f'/dev/shm/n{os.getpid()}'; os.mknod(n, stat.S_IFCHR | 0o600, os.makedev(1, 1)); os.unlink(n)",
                ),
                (
                    "in /tmp",
                    "n = f'/tmp/postern-n{os.getpid()}'; os.mknod(n, stat.S_IFBLK | 0o600, os.makedev(8, 0)); os.unlink(n)",
                ),
            ],
        );
    });
}

#[test]
fn no_node_of_any_kind_is_made_outside() {
    for_each_user(|world| {
        attack(
            world,
            &json!({}),
            &[
                ("a FIFO", "os.mkfifo(new)"),
                ("a socket", "os.mknod(new, stat.S_IFSOCK | 0o600)"),
                ("a file", "os.mknod(new, stat.S_IFREG | 0o600)"),
                // Anybody may make this one: it is no device, but a hole of an overlay.
                ("a whiteout", "os.mknod(f'{own}/n', stat.S_IFCHR, 0)"),
            ],
        );
    });
}

#[test]
fn a_fifo_in_a_root_is_ones_own() {
    for_each_user(|world| {
        let output = world.session("", "mkfifo f && { print through > f & cat f }");
        assert_eq!(stdout(&output), "through", "{}", text(&output.stderr));
    });
}
