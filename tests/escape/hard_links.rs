//! A second name for a file, on the other side of the border.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::attack;

#[test]
fn no_link_crosses_the_border() {
    for_each_user(|world| {
        attack(
            world,
            &json!({}),
            &[
                ("out of the roots", "os.link(target, f'{own}/l'); open(f'{own}/l', 'w').close()"),
                ("into the roots' outside", "open(f'{own}/f', 'w').close(); os.link(f'{own}/f', new)"),
                ("of the configuration", "os.link('.git/config', f'{own}/l'); open(f'{own}/l', 'a').close()"),
                (
                    "by descriptor",
                    "f = os.open(target, os.O_RDONLY); followed(f'/proc/self/fd/{f}', f'{own}/l')",
                ),
                ("of a link", "os.symlink(target, f'{own}/s'); followed(f'{own}/s', f'{own}/l')"),
                (
                    "a file without a name, named outside",
                    "f = os.open(own, os.O_TMPFILE | os.O_RDWR); followed(f'/proc/self/fd/{f}', new)",
                ),
                (
                    "by descriptors of directories",
                    "a = os.open(outside, os.O_PATH); b = os.open(own, os.O_PATH); os.link('target', 'l', src_dir_fd=a, dst_dir_fd=b)",
                ),
                ("within the outside", "os.link(target, new)"),
            ],
        );
    });
}
