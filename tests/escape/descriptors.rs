//! What a careless caller leaves open: files and directories outside, by number.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Output};

use postern_tests::{World, finish, for_each_user, prefix, stdout};
use serde_json::json;

use crate::attack::{Attacks, attack_handed};

/// A caller that leaves 3 to 9 open.
fn careless(world: &World, shell: &Path, script: &str) -> Output {
    let outside = world.outside.display();
    let open = format!(
        "exec 3<>{outside}/target 4<{outside} 5<.git/hooks 6>>.git/config 7<>{outside}/target 8</ 9<{outside}/secret"
    );
    let mut command = world.plain_command("bash");
    finish(command.args(["-c", &format!("{open}; exec {} -fc \"$0\"", shell.display()), script]))
}

#[test]
fn what_a_caller_leaves_open_does_not_arrive() {
    for_each_user(|world| {
        world.write("outside/secret", "secret");
        let at = "for n in (3, 4, 5, 6, 7, 8, 9):\n    try:\n        ";
        let each = |code: &str| format!("hit = 0\n{at}{code}; hit = 1\n    except OSError: pass\nneed(hit)");
        let list = [
            ("write", each("os.write(n, b'x')")),
            ("read", each("need(b'secret' in os.pread(n, 100, 0))")),
            (
                "make",
                each(
                    "os.close(os.open('evil', os.O_CREAT | os.O_WRONLY, dir_fd=n)); os.unlink('evil', dir_fd=n)",
                ),
            ),
            ("go there", each("os.fchdir(n); open('evil', 'w').close(); os.unlink('evil')")),
            ("change", each("os.fchmod(n, 0o755)")),
            ("map", each("mmap.mmap(n, 1, mmap.MAP_SHARED)")),
            ("open again", each("open(f'/proc/self/fd/{n}/target', 'w').write('xx')")),
        ];
        let attacks = Attacks::new(world, &json!({}), &list);
        attacks.outside_by(true, |script| careless(world, Path::new("/bin/bash"), script));
        attacks.inside(|script| careless(world, &prefix().join("bin/posternsh"), script));
    });
}

#[test]
fn no_descriptor_but_the_standard_ones_and_the_gate_is_there() {
    for_each_user(|world| {
        world.write("outside/secret", "");
        world.write("outside/target", "");
        let list = "python3 -c 'import os\nfor n in range(256):\n  try: os.fstat(n); print(n)\n  except OSError: pass'";
        let numbers = |shell: &Path| {
            let output = careless(world, shell, list);
            stdout(&output).lines().map(|line| line.parse().unwrap()).collect::<Vec<u32>>()
        };
        assert!(numbers(Path::new("/bin/bash")).starts_with(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
        assert_eq!(numbers(&prefix().join("bin/posternsh")), [0, 1, 2, 63]);
    });
}

#[test]
fn a_directory_as_a_standard_descriptor_leads_nowhere() {
    for_each_user(|world| {
        let make =
            "os.close(os.open('evil', os.O_CREAT | os.O_WRONLY, dir_fd=9)); os.unlink('evil', dir_fd=9)";
        let go = "os.fchdir(9); open('evil', 'w').close(); os.unlink('evil')";
        let attacks = Attacks::new(world, &json!({}), &[("make", make), ("go there", go)]);
        for (number, directory) in [(0, ".git/hooks"), (1, ".git/hooks"), (2, "../outside"), (0, "..")] {
            let handed = |mut command: Command, script: &str| {
                // Where it says so must not be what is handed in.
                let said = world.workspace.join("said");
                let to = format!("9<&{number} 0</dev/null >{} 2>/dev/null; :", said.display());
                let file = File::open(world.workspace.join(directory)).unwrap();
                command.args(["-c", &format!("{script} {to}")]);
                let command = match number {
                    0 => command.stdin(file),
                    1 => command.stdout(file),
                    _ => command.stderr(file),
                };
                let status = command.spawn().unwrap().wait().unwrap();
                Output { status, stdout: std::fs::read(&said).unwrap(), stderr: Vec::new() }
            };
            attacks.outside_by(true, |script| handed(world.plain_command("bash"), script));
            attacks.inside(|script| handed(world.posternsh(), script));
        }
    });
}

/// What a daemon of the machine, or somebody on its network, would get.
const AIMED: &str = "s = socket.socket(fileno=9)\n";

#[test]
fn a_datagram_socket_of_the_caller_reaches_nobody_else() {
    for_each_user(|world| {
        let daemon = UnixDatagram::bind(world.outside.join("log")).unwrap();
        open_to_everybody(world, "log");
        let pair = "[s.detach() for s in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)][0]";
        let connect = format!("{AIMED}s.connect(f'{{outside}}/log'); s.send(b'x')");
        let send = format!("{AIMED}s.sendto(b'x', f'{{outside}}/log')");
        attack_handed(world, &json!({}), pair, &[("aimed", &connect), ("sent", &send)]);
        daemon.set_nonblocking(true).unwrap();
        assert_eq!(std::iter::from_fn(|| daemon.recv(&mut [0; 8]).ok()).count(), 2, "those of outside");
    });
}

#[test]
fn a_stream_socket_of_the_caller_reaches_nobody_else() {
    for_each_user(|world| {
        let _daemon = UnixListener::bind(world.outside.join("docker.sock")).unwrap();
        open_to_everybody(world, "docker.sock");
        let unaimed = "socket.socket(socket.AF_UNIX).detach()";
        let connect = format!("{AIMED}s.connect(f'{{outside}}/docker.sock'); s.send(b'x')");
        attack_handed(world, &json!({}), unaimed, &[("aimed", &connect)]);
    });
}

#[test]
fn a_network_socket_of_the_caller_reaches_nobody_else() {
    for_each_user(|world| {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let given =
            json!({ "udp": udp.local_addr().unwrap().port(), "tcp": tcp.local_addr().unwrap().port() });
        let connect = format!("{AIMED}s.connect(('127.0.0.1', tcp)); s.send(b'x')");
        attack_handed(world, &given, "socket.socket().detach()", &[("TCP", &connect)]);
        let send = format!("{AIMED}s.sendto(b'x', ('127.0.0.1', udp))");
        let datagrams = "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()";
        attack_handed(world, &given, datagrams, &[("UDP", &send)]);
    });
}

fn open_to_everybody(world: &World, name: &str) {
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(world.outside.join(name), everybody).unwrap();
}
