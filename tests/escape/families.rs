//! Families of sockets, with the network and without.

use postern_tests::{World, for_each_user};
use serde_json::json;

use crate::attack::{Attacks, networked, session};

/// Outside, namespaces of one's own give what it takes to make them.
fn made(family: &str, kind: &str, protocol: &str) -> String {
    // A family that this kernel has not is one that it was asked for.
    format!(
        "own_namespaces(NEWNET)\ntry: socket.socket({family}, {kind}, {protocol}).close()\n\
         except OSError as error: need(error.errno in (errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENODEV, errno.ENOPROTOOPT), error.errno)"
    )
}

/// What no sandbox has, whatever its profile.
fn foreign() -> Vec<(String, String)> {
    let kinds = [
        ("packets", "socket.AF_PACKET", "socket.SOCK_RAW", "0"),
        ("packets, the old way", "socket.AF_INET", "10", "0"),
        ("raw", "socket.AF_INET", "socket.SOCK_RAW", "socket.IPPROTO_RAW"),
        ("raw, IPv6", "socket.AF_INET6", "socket.SOCK_RAW", "58"),
        ("machines", "socket.AF_VSOCK", "socket.SOCK_STREAM", "0"),
        ("machines, datagrams", "socket.AF_VSOCK", "socket.SOCK_DGRAM", "0"),
        ("daemons", "socket.AF_UNIX", "socket.SOCK_STREAM", "0"),
        ("daemons, datagrams", "socket.AF_UNIX", "socket.SOCK_DGRAM", "0"),
        ("daemons, packets", "socket.AF_UNIX", "socket.SOCK_SEQPACKET", "0"),
    ];
    let mut all: Vec<_> =
        kinds.map(|(name, family, kind, protocol)| (name.to_owned(), made(family, kind, protocol))).into();
    // All that is neither AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET nor AF_VSOCK, and some more.
    for family in (3..=50).filter(|family| ![10, 16, 17, 40].contains(family)) {
        for kind in ["1", "2", "3", "5"] {
            all.push((format!("family {family}, {kind}"), made(&family.to_string(), kind, "0")));
        }
    }
    // NETLINK_ROUTE is 0.
    all.extend((1..=23).map(|protocol| {
        (format!("netlink {protocol}"), made("socket.AF_NETLINK", "socket.SOCK_RAW", &protocol.to_string()))
    }));
    all
}

fn attacks<'a>(world: &'a World, list: &'a [(String, String)]) -> Attacks<'a> {
    Attacks::new(world, &json!({}), list)
}

#[test]
fn without_the_network_there_is_no_socket() {
    for_each_user(|world| {
        let mut all = foreign();
        for (name, family) in [("IPv4", "socket.AF_INET"), ("IPv6", "socket.AF_INET6")] {
            for kind in ["STREAM", "DGRAM"] {
                all.push((format!("{name} {kind}"), made(family, &format!("socket.SOCK_{kind}"), "0")));
            }
        }
        all.push(("routes".to_owned(), made("socket.AF_NETLINK", "socket.SOCK_RAW", "0")));
        all.push(("a pair of another family".to_owned(), "try: socket.socketpair(30)\nexcept OSError as error: need(error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP), error.errno)".to_owned()));
        let attacks = attacks(world, &all);
        attacks.outside(true);
        attacks.inside(|command| session(world, &[], command));
    });
}

#[test]
fn with_the_network_there_are_tcp_udp_and_routes_alone() {
    for_each_user(|world| {
        let all = foreign();
        let attacks = attacks(world, &all);
        attacks.outside(true);
        attacks.inside(|command| networked(world, command));
        // It is on, or this would show nothing.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let on = format!(
            "import socket; socket.create_connection(('127.0.0.1', {})); socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('on')",
            listener.local_addr().unwrap().port()
        );
        let file = world.write("on.py", on);
        let output = networked(world, &format!("python3 {}", file.display()));
        assert_eq!(postern_tests::stdout(&output), "on", "{}", postern_tests::text(&output.stderr));
    });
}
