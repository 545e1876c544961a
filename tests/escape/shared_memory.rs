//! Memory and queues that have names of their own: System V's, POSIX's, and files of shared memory.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use postern_tests::for_each_user;
use serde_json::Value;

use crate::attack::{attack, running};

/// Makes one of each, says what they are, and takes them away when its input ends.
const OWNER: &str = "
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
segment, semaphore, queue = libc.shmget(0, 4096, 0o1600), libc.semget(0, 1, 0o1600), libc.msgget(0, 0o1600)
keyed_key = 0x50000000 | os.getpid()
keyed = libc.shmget(keyed_key, 4096, 0o1600)
name = f'postern-test-{os.getpid()}'
posix = libc.syscall(240, name.encode(), os.O_CREAT | os.O_RDWR, 0o600, 0)
assert -1 not in (segment, semaphore, queue, keyed, posix), ctypes.get_errno()
open(f'/dev/shm/{name}', 'w').write('x')
print(json.dumps(dict(segment=segment, semaphore=semaphore, queue=queue, key=keyed_key, name=name)), flush=True)
sys.stdin.read()
libc.shmctl(segment, 0, 0); libc.shmctl(keyed, 0, 0); libc.semctl(semaphore, 0, 0); libc.msgctl(queue, 0, 0)
libc.syscall(241, name.encode())
os.unlink(f'/dev/shm/{name}')
";

#[test]
fn what_is_shared_outside_is_not_shared_inside() {
    for_each_user(|world| {
        let mut command = world.plain_command("python3");
        let mut owner = running(command.args(["-c", OWNER]).stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut line = String::new();
        BufReader::new(owner.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let given: Value = serde_json::from_str(&line).unwrap();
        let exists = |code: &str| {
            // No such identifier is what the kernel says so.
            format!(
                "try: {code}\nexcept OSError as error: need(error.errno not in (errno.EINVAL, errno.EIDRM), errno.ENOENT); raise"
            )
        };
        let list = [
            ("memory", exists("call('shmat', segment, 0, 0)")),
            ("memory, by its key", exists("call('shmat', call('shmget', key, 4096, 0), 0, 0)")),
            ("a semaphore", exists("call('semop', semaphore, struct.pack('HhH', 0, 1, 0), 1)")),
            ("its value", exists("call('semctl', semaphore, 0, 12)")),
            ("a queue", exists("call('msgsnd', queue, struct.pack('l', 1) + b'x', 1, 0o4000)")),
            ("remove", exists("call('shmctl', segment, 2, ctypes.create_string_buffer(112))")),
            ("a POSIX queue", "os.close(call('mq_open', name.encode(), os.O_RDWR, 0, 0))".to_owned()),
            ("a file", "open(f'/dev/shm/{name}', 'r+').close()".to_owned()),
            (
                "a file, mapped",
                "f = os.open(f'/dev/shm/{name}', os.O_RDWR); mmap.mmap(f, 1)[0:1] = b'y'".to_owned(),
            ),
            ("any at all", "need(len(open('/proc/sysvipc/shm').readlines()) > 1)".to_owned()),
        ];
        attack(world, &given, &list);
        drop(owner.0.stdin.take());
        assert!(owner.0.wait().unwrap().success());
    });
}
