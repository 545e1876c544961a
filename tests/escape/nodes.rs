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
fn a_node_that_lies_in_a_directory_is_no_device() {
    for_each_user(|world| {
        // As in the tree of another system's files, which somebody has unpacked.
        let beside = world.write("outside/beside", "");
        let nodes = [world.workspace.join("zero"), beside.with_file_name("zero")];
        for node in &nodes {
            let made = nix::sys::stat::mknod(
                node,
                nix::sys::stat::SFlag::S_IFCHR,
                nix::sys::stat::Mode::from_bits_truncate(0o666),
                nix::sys::stat::makedev(1, 5),
            );
            made.and_then(|()| {
                nix::sys::stat::fchmodat(
                    nix::fcntl::AT_FDCWD,
                    node,
                    nix::sys::stat::Mode::from_bits_truncate(0o666),
                    nix::sys::stat::FchmodatFlags::FollowSymlink,
                )
            })
            .expect("the tests' root makes nodes");
        }
        let [own, other] = nodes;
        let list = [
            ("reads one of its own", "need(os.read(os.open(own_node, os.O_RDONLY), 1) == b'\\0')"),
            ("writes one of its own", "os.write(os.open(own_node, os.O_WRONLY), b'x')"),
            ("reads another", "need(os.read(os.open(other_node, os.O_RDONLY), 1) == b'\\0')"),
            ("writes another", "os.write(os.open(other_node, os.O_WRONLY), b'x')"),
            (
                "by a link",
                "os.symlink(own_node, f'{own}/l'); need(os.read(os.open(f'{own}/l', os.O_RDONLY), 1) == b'\\0')",
            ),
            (
                "moved",
                "os.rename(own_node, own_node + '2'); f = os.open(own_node + '2', os.O_RDONLY | os.O_PATH); \
                 os.rename(own_node + '2', own_node); need(os.read(os.open(f'/proc/self/fd/{f}', os.O_RDONLY), 1) == b'\\0')",
            ),
        ];
        attack(world, &json!({ "own_node": own, "other_node": other }), &list);
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
