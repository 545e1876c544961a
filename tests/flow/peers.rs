//! Peers that lie: the server refuses them, records it, and goes on.

use postern_tests::{finish, for_each_user, stdout, text};

const LIAR: &str = r#"
import os, socket, struct, array, sys
base = socket.socket(fileno=os.dup(int(os.environ['POSTERN_SOCKET'])))
def fds(*numbers): return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', numbers))]
def frame(kind, body=b'', magic=b'PSTN', version=5, length=None):
    return magic + struct.pack('<HHI', version, kind, len(body) if length is None else length) + body
def ask(message, *numbers):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    if message is not None: ours.sendmsg([message], fds(*numbers) if numbers else [])
    base.sendmsg([b'P'], fds(theirs.fileno())); theirs.close()
    try: return ours.recv(65536)
    except OSError as error: return repr(error).encode()
null = os.open('/dev/null', os.O_PATH)
true = os.open('/bin/true', os.O_PATH)
cwd = os.open('.', os.O_PATH)
string = lambda text: bytes([len(text)]) + text
def request(path=b'/bin/true', has_cwd=1, argv=(b'true',), wish=b'\0'):
    return string(path) + bytes([has_cwd]) + b'\0' + string(b'') + b'\1' + string(b'') + b'\0' + bytes([len(argv)]) + b''.join(map(string, argv)) + b'\0' + wish
def shows(name, answer): print(name, answer[12:13].hex() or 'nothing', flush=True)
shows('good', ask(frame(1, request()), true, cwd))
shows('hello', ask(frame(3)))
shows('empty', ask(b''))
shows('garbage', ask(b'\xff' * 100))
shows('magic', ask(frame(1, request(), magic=b'EVIL'), true, cwd))
shows('version', ask(frame(1, request(), version=9), true, cwd))
print('told', b'protocol 9' in ask(frame(1, request(), version=9), true, cwd))
shows('kind', ask(frame(5, b'\0\0')))
shows('length', ask(frame(1, request(), length=5), true, cwd))
shows('huge count', ask(frame(1, b'\xfd' + b'\xff' * 8), true, cwd))
shows('trailing', ask(frame(1, request() + b'x'), true, cwd))
shows('no fds', ask(frame(1, request())))
shows('extra fds', ask(frame(1, request()), true, cwd, cwd))
shows('device', ask(frame(1, request()), null, cwd))
shows('nul', ask(frame(1, request(argv=(b'a\0b',))), true, cwd))
shows('long rule', ask(frame(1, request(wish=b'\1\0\0' + bytes([65]) + string(b'w') * 65)), true, cwd))
shows('plea for nothing', ask(frame(7, string(b'{}') + string(b'/') + b'\0')))
shows('plea for what', ask(frame(7, string(b'[' * 200) + string(b'/') + b'\0')))
for below in (b'', b'x', b'../x', b'x' * 200):
    answer = ask(frame(7, string(b'{"fileSystem": {"write": ["x"]}}') + string(below) + b'\0'))
    print('plea from nowhere', b'no absolute path' in answer, flush=True)
shows('plea with nul', ask(frame(7, string(b'{"fileSystem": {"write": ["/usr\\u0000x"]}}') + string(b'/') + b'\0')))
shows('long plea', ask(frame(7, b'\xfb' + struct.pack('<H', 20000) + b' ' * 20000 + string(b'/') + b'\0')))
shows('cut plea', ask(frame(7, string(b'{}'))))
shows('long path', ask(frame(1, b'\xfb' + struct.pack('<H', 5000) + b'x' * 5000 + request()[10:]), true, cwd))
memory = os.memfd_create('m', os.MFD_ALLOW_SEALING)
os.write(memory, request())
shows('unsealed', ask(frame(2, b'', length=len(request())), true, cwd, memory))
# The session's own end, a socket of another kind, a file: none is a connection.
base.sendmsg([b'P'], fds(base.fileno()))
pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
base.sendmsg([b'P'], fds(pair[0].fileno()))
base.sendmsg([b'P'], fds(true))
base.sendmsg([b'P'], [])
for _ in range(500):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    base.sendmsg([b'P'], fds(theirs.fileno())); ours.close(); theirs.close()
shows('after all', ask(frame(1, request()), true, cwd))
"#;

#[test]
fn a_lying_peer_gains_nothing_and_the_server_goes_on() {
    for_each_user(|world| {
        let liar = world.write("liar.py", LIAR);
        let output = world.session("", &format!("python3 {}; /bin/echo still here", liar.display()));
        let run = "00";
        let deny = "01";
        let welcome = "09";
        let expected = format!(
            "good {run}\nhello {welcome}\nempty {deny}\ngarbage {deny}\nmagic {deny}\nversion {deny}\ntold True\nkind {deny}\n\
             length {deny}\nhuge count {deny}\ntrailing {deny}\nno fds {deny}\nextra fds {deny}\ndevice {deny}\nnul {deny}\n\
             long rule {deny}\nplea for nothing {deny}\nplea for what {deny}\nplea from nowhere True\n\
             plea from nowhere True\nplea from nowhere True\nplea from nowhere True\nplea with nul {deny}\n\
             long plea {deny}\ncut plea {deny}\nlong path {deny}\nunsealed {deny}\nafter all {run}\nstill here"
        );
        assert_eq!(stdout(&output), expected, "{}", text(&output.stderr));
        let malformed = world.records().iter().filter(|line| line["event"] == "malformed").count();
        assert!(malformed > 10, "{malformed}");
    });
}

#[test]
fn without_a_sandbox_a_closed_socket_stays_closed_and_denies() {
    for_each_user(|world| {
        let zsh = postern_tests::prefix().join("libexec/postern/zsh");
        let close = "import os,sys; os.closerange(3, 200); os.execv(sys.argv[1], ['zsh', '-fc', '/bin/echo no; print $?'])";
        let close = world.write("close.py", close);
        let script = format!("python3 {} {}", close.display(), zsh.display());
        let mut command = world.postern();
        let output = finish(command.args(["--sandbox", "danger-full-access", "--", "-fc", &script]));
        assert_eq!(stdout(&output), "126");
        assert!(text(&output.stderr).contains("was closed in this process"), "{}", text(&output.stderr));
    });
}

#[test]
fn the_variable_may_go_and_the_gate_stays() {
    for_each_user(|world| {
        let output = world.session(
            "prefix_rule([\"date\"], decision = \"forbidden\")",
            "unset POSTERN_SOCKET; date; print $?; POSTERN_SOCKET=0 date; print $?",
        );
        assert_eq!(stdout(&output), "126\n126");
    });
}

#[test]
fn a_variable_alone_is_not_a_session() {
    for_each_user(|world| {
        // Outside, whatever the environment says, a sandbox of its own is started.
        let socket = "import socket,os,sys; a,b=socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); os.dup2(b.fileno(), 63); a.close(); os.environ['POSTERN_SOCKET']='63'; os.execv(sys.argv[1], ['posternsh', '-fc', 'grep Seccomp: /proc/self/status'])";
        let shell = postern_tests::prefix().join("bin/posternsh");
        let output = world.plain("python3", &["-c", socket, shell.to_str().unwrap()]);
        assert_eq!(stdout(&output), "Seccomp:\t2", "{}", text(&output.stderr));
    });
}

#[test]
fn inside_a_session_posternsh_is_that_sessions_zsh() {
    for_each_user(|world| {
        let shell = postern_tests::prefix().join("bin/posternsh");
        let output = world.session(
            "prefix_rule([\"date\"], decision = \"forbidden\")",
            &format!(
                "{} -fc 'date; print $?; readlink /proc/self/ns/pid'; readlink /proc/self/ns/pid",
                shell.display()
            ),
        );
        let out = stdout(&output);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[0], "126");
        assert_eq!(lines[1], lines[2]);
        assert_eq!(world.records().iter().filter(|line| line["event"] == "started").count(), 1);
    });
}
