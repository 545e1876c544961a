//! Renames across the border.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::attack;

#[test]
fn nothing_is_moved_across_the_border() {
    for_each_user(|world| {
        attack(
            world,
            &json!({}),
            &[
                ("out", "open(f'{own}/f', 'w').close(); os.rename(f'{own}/f', new)"),
                ("over what is there", "open(f'{own}/f', 'w').close(); os.rename(f'{own}/f', target)"),
                ("in", "os.rename(target, f'{own}/f'); os.rename(f'{own}/f', target)"),
                ("within the outside", "os.rename(target, new); os.rename(new, target)"),
                (
                    "exchanged",
                    "open(f'{own}/f', 'w').close()\nfor _ in 1, 2: call('renameat2', -100, f'{own}/f'.encode(), -100, target.encode(), 2)",
                ),
                (
                    "exchanged with a directory",
                    "for _ in 1, 2: call('renameat2', -100, own.encode(), -100, outside.encode(), 2)",
                ),
                (
                    "between roots, with a way outside",
                    "os.mkdir(f'{own}/d'); os.symlink(outside, f'{own}/w'); os.rename(f'{own}/d', f'{own}/w/moved'); os.rmdir(f'{own}/w/moved')",
                ),
                (
                    "by descriptors of directories",
                    "a = os.open(outside, os.O_PATH); b = os.open(own, os.O_PATH)\nos.rename('target', 'f', src_dir_fd=a, dst_dir_fd=b); os.rename('f', 'target', src_dir_fd=b, dst_dir_fd=a)",
                ),
            ],
        );
    });
}
