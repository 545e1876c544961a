//! Device nodes: of the outer `/dev` none but a few that give nothing away.

use postern_tests::{for_each_user, stdout, text};
use serde_json::json;

use crate::attack::{attack, attack_of_root};

const FEW: &str = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";

#[test]
fn devices_are_few() {
    for_each_user(|world| {
        let output = world.session("", "print -l /dev/*(D:t) | tr '\\n' ' '; [[ -w /dev/shm ]] && echo x > /dev/null && head -c1 /dev/zero | wc -c");
        assert_eq!(stdout(&output), format!(".nothing {FEW} 1"), "{}", text(&output.stderr));
    });
}

#[test]
fn no_other_node_is_reached() {
    for_each_user(|world| {
        let found = world.plain("find", &["/dev", "-mindepth", "1", "-not", "-type", "d"]);
        let few: Vec<_> = FEW.split(' ').map(|name| format!("/dev/{name}")).collect();
        let others: Vec<_> = stdout(&found)
            .lines()
            .map(str::to_owned)
            .filter(|path| !few.contains(path) && !path.starts_with("/dev/pts/"))
            .collect();
        assert!(!others.is_empty());
        attack(
            world,
            &json!({ "others": others }),
            &[
                ("by its name", "need(any(os.path.lexists(p) for p in others))"),
                ("by the root", "need(any(os.path.lexists(f'/proc/self/root{p}') for p in others))"),
                ("by the directory", "os.chdir('/dev'); need(any(os.path.lexists(p[5:]) for p in others))"),
            ],
        );
    });
}

#[test]
fn the_few_do_not_do_as_root_says() {
    for_each_user(|world| {
        // No bits are added to what the kernel believes to have of entropy.
        let list = [
            (
                "entropy",
                "f = os.open('/dev/random', os.O_WRONLY); fcntl.ioctl(f, 0x40045201, struct.pack('i', 0))",
            ),
            ("mode", "os.chmod('/dev/null', 0o666)"),
            (
                "a node",
                "os.mknod(f'/dev/postern-test-{os.getpid()}', stat.S_IFIFO | 0o600); os.unlink(f'/dev/postern-test-{os.getpid()}')",
            ),
        ];
        attack_of_root(world, &json!({}), &list);
    });
}
