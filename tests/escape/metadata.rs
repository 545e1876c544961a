//! Mode, owner, times and attributes of files outside, and of what is protected inside.

use postern_tests::for_each_user;
use serde_json::json;

use crate::attack::attack;

/// Each of them, on the file `f`, which may be a path or a descriptor for reading.
const CHANGES: [(&str, &str); 4] = [
    ("mode", "os.chmod(f, 0o777)"),
    ("owner", "os.chown(f, os.getuid(), os.getgid())"),
    ("times", "os.utime(f)"),
    ("attribute", "os.setxattr(f, 'user.x', b'y')"),
];

#[test]
fn metadata_stays_as_it_is() {
    for_each_user(|world| {
        let mut attacks = Vec::new();
        for (what, file) in [
            ("a path", "target"),
            ("a descriptor", "os.open(target, os.O_RDONLY)"),
            ("a handle", "f'/proc/self/fd/{os.open(target, os.O_PATH)}'"),
            ("a directory", "outside"),
            ("git's configuration", "'.git/config'"),
        ] {
            attacks.extend(
                CHANGES.map(|(change, code)| (format!("{change} of {what}"), format!("f = {file}; {code}"))),
            );
        }
        // FS_IOC_GETFLAGS and FS_IOC_SETFLAGS.
        let flags = "f = os.open(target, os.O_RDONLY); b = array.array('l', [0]); fcntl.ioctl(f, 0x80086601, b); fcntl.ioctl(f, 0x40086602, b)";
        attacks.push(("flags".to_owned(), flags.to_owned()));
        attack(world, &json!({}), &attacks);
    });
}
