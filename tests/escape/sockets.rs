//! Sockets of others: a daemon of the machine or of the session's user that would do as it is told.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use postern_tests::{World, finish, for_each_user};
use serde_json::{Value, json};

use crate::attack::{Attacks, attack, networked, session};

/// Listeners of every kind, and what an attack has to know of them. Those at a path are in a
/// directory like /run, and open to everybody.
struct Daemons {
    streams: [UnixListener; 2],
    datagrams: [UnixDatagram; 2],
    given: Value,
}

impl Daemons {
    fn listening(world: &World) -> Self {
        let path = |name: &str| world.outside.join(name);
        let hidden = |kind: &str| format!("postern-test-{}-{kind}", world.root.display());
        let at = |kind: &str| SocketAddr::from_abstract_name(hidden(kind)).unwrap();
        let daemons = Self {
            streams: [
                UnixListener::bind(path("docker.sock")).unwrap(),
                UnixListener::bind_addr(&at("stream")).unwrap(),
            ],
            datagrams: [
                UnixDatagram::bind(path("log")).unwrap(),
                UnixDatagram::bind_addr(&at("datagram")).unwrap(),
            ],
            given: json!({
                "stream": path("docker.sock"), "abstract_stream": format!("\0{}", hidden("stream")),
                "datagram": path("log"), "abstract_datagram": format!("\0{}", hidden("datagram")),
            }),
        };
        for name in ["docker.sock", "log"] {
            let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(path(name), everybody).unwrap();
        }
        daemons.streams.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        daemons.datagrams.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        daemons
    }

    /// How many have connected or sent something.
    fn reached(&self) -> usize {
        let blocked = |error: std::io::Error| assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let mut count = 0;
        for listener in &self.streams {
            while listener.accept().map_err(blocked).is_ok() {
                count += 1;
            }
        }
        for socket in &self.datagrams {
            while socket.recv(&mut [0; 64]).map_err(blocked).is_ok() {
                count += 1;
            }
        }
        count
    }
}

#[test]
fn no_daemon_is_reached() {
    for_each_user(|world| {
        let daemons = Daemons::listening(world);
        let list = [
            ("a path", "s = socket.socket(socket.AF_UNIX); s.connect(stream); s.send(b'x')"),
            ("an abstract name", "s = socket.socket(socket.AF_UNIX); s.connect(abstract_stream)"),
            (
                "a datagram to a path",
                "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', datagram)",
            ),
            (
                "a datagram to an abstract name",
                "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', abstract_datagram)",
            ),
            (
                "a datagram pair, aimed anew",
                "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.connect(datagram); a.send(b'x')",
            ),
            (
                "a datagram pair, with an address",
                "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', abstract_datagram)",
            ),
            (
                "a raw pair",
                "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW); a.sendto(b'x', datagram)",
            ),
            (
                "by flags beside the kind",
                "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK); a.connect(datagram); a.send(b'x')",
            ),
            (
                "by a link",
                "os.symlink(stream, f'{own}/s'); socket.socket(socket.AF_UNIX).connect(f'{own}/s')",
            ),
        ];
        let attacks = Attacks::new(world, &daemons.given, &list);
        attacks.outside(true);
        assert_eq!(daemons.reached(), list.len());
        attacks.inside(|command| session(world, &[], command));
        attacks.inside(|command| networked(world, command));
        assert_eq!(daemons.reached(), 0);
    });
}

#[test]
fn an_address_in_the_environment_is_of_no_use() {
    for_each_user(|world| {
        let daemons = Daemons::listening(world);
        let bus = format!("unix:path={}", world.outside.join("docker.sock").display());
        let code = "bus = os.environ['DBUS_SESSION_BUS_ADDRESS'].split('=')[1]\nneed(bus == os.environ['SSH_AUTH_SOCK'])\n\
                    s = socket.socket(socket.AF_UNIX); s.connect(bus); s.send(b'\\0AUTH EXTERNAL\\r\\n')";
        let attacks = Attacks::new(world, &daemons.given, &[("the bus", code)]);
        let run = |mut command: std::process::Command, script: &str| {
            let path = world.outside.join("docker.sock");
            command.env("DBUS_SESSION_BUS_ADDRESS", &bus).env("SSH_AUTH_SOCK", path);
            finish(command.args(["-c", script]))
        };
        attacks.outside_by(true, |script| run(world.plain_command("sh"), script));
        assert_eq!(daemons.reached(), 1);
        attacks.inside(|script| run(world.posternsh(), script));
        assert_eq!(daemons.reached(), 0);
    });
}

#[test]
fn nothing_is_sent_over_the_network_and_nobody_can_listen() {
    for_each_user(|world| {
        let stream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = |address: std::io::Result<std::net::SocketAddr>| address.unwrap().port();
        attack(
            world,
            &json!({ "tcp": port(stream.local_addr()), "udp": port(datagram.local_addr()) }),
            &[
                ("TCP", "socket.create_connection(('127.0.0.1', tcp))"),
                ("fast open", "socket.socket().sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.1', tcp))"),
                ("UDP", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', udp))"),
                ("listen", "socket.create_server(('127.0.0.1', 0))"),
                ("listen at a path", "socket.socket(socket.AF_UNIX).bind(f'{own}/s')"),
            ],
        );
        datagram.set_nonblocking(true).unwrap();
        assert_eq!(datagram.recv(&mut [0; 8]).unwrap(), 1, "the one of outside");
        assert_eq!(datagram.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    });
}
