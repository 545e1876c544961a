//! Files outside the roots, by any path.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::attack;

#[test]
fn nothing_outside_the_roots_is_written_made_or_removed() {
    for_each_user(|world| {
        std::fs::create_dir(world.outside.join("empty")).unwrap();
        attack(
            world,
            &json!({}),
            &[
                ("write", "open(target, 'w').write('y')"),
                ("append", "open(target, 'a').write('y')"),
                ("create", "open(new, 'w').close()"),
                ("truncate", "os.truncate(target, 0)"),
                ("unlink", "os.unlink(target); open(target, 'w').close()"),
                ("make a directory", "os.mkdir(new)"),
                ("remove a directory", "os.rmdir(f'{outside}/empty'); os.mkdir(f'{outside}/empty')"),
                ("link symbolically", "os.symlink('/', new)"),
                ("a file without a name", "os.close(os.open(outside, os.O_TMPFILE | os.O_RDWR))"),
                ("by dot dot", "open('../outside/target', 'w').close()"),
                (
                    "by a link in the workspace",
                    "os.symlink(outside, f'{own}/way'); open(f'{own}/way/target', 'w').close()",
                ),
                (
                    "by a descriptor of a directory",
                    "d = os.open(outside, os.O_PATH); os.close(os.open('target', os.O_WRONLY, dir_fd=d))",
                ),
                (
                    "by opening it again for writing",
                    "f = os.open(target, os.O_RDONLY); open(f'/proc/self/fd/{f}', 'w').close()",
                ),
                (
                    "by a shared mapping",
                    "f = os.open(target, os.O_RDWR); os.write(f, b'x'); mmap.mmap(f, 1, mmap.MAP_SHARED)[0:1] = b'x'",
                ),
                ("the home directory", "open(f'{root}/home/.profile', 'w').close()"),
                ("the workspace itself", "os.rename(workspace, new); os.rename(new, workspace)"),
            ],
        );
    });
}
