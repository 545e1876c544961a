//! Files by their number in a filesystem, past every path.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::attack_of_root;

const HANDLE: &str = "
handle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0), 136)
mount = ctypes.c_int()
call('name_to_handle_at', -100, target.encode(), handle, ctypes.byref(mount), 0)
def opened(way, flags):
    f = call('open_by_handle_at', os.open(way, os.O_RDONLY), handle, flags)
    return f
";

#[test]
fn no_file_is_opened_by_its_handle() {
    for_each_user(|world| {
        let list = [
            ("to read", "os.read(opened(workspace, os.O_RDONLY), 1)"),
            ("to write", "os.write(opened(workspace, os.O_WRONLY), b'x')"),
            ("by the place itself", "os.write(opened(outside, os.O_WRONLY), b'x')"),
        ];
        let list = list.map(|(name, code)| (name, format!("{HANDLE}{code}")));
        attack_of_root(world, &json!({}), &list);
    });
}
