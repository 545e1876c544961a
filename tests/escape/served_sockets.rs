//! Sockets of daemons that a profile names, and none besides.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use postern_tests::{World, eventually, finish, for_each_user, stdout, text};

/// Two daemons outside, of which the profile `p` names one; the configuration.
struct Daemons {
    named: UnixListener,
    other: UnixListener,
    config: PathBuf,
}

impl Daemons {
    fn new(world: &World) -> Self {
        let at = |name: &str| world.outside.join(name);
        let listen = |name: &str| UnixListener::bind(at(name)).unwrap();
        let (named, other) = (listen("named.sock"), listen("other.sock"));
        other.set_nonblocking(true).unwrap();
        world.own();
        let config = world.write(
            "c.toml",
            format!(
                "[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n\
                 [permissions.p.network]\nunix_sockets = ['{}']\n",
                at("named.sock").display()
            ),
        );
        Self { named, other, config }
    }

    /// Answers each connection to the named one.
    fn serve(&self) {
        let named = self.named.try_clone().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut connection, _)) = named.accept() {
                let _gone = connection.write_all(b"hello");
            }
        });
    }

    fn nobody_came_to_the_other(&self) {
        assert_eq!(self.other.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

const PROLOGUE: &str = "import array, errno, os, socket, sys, threading\n\
    def reach(path, kind=socket.SOCK_STREAM):\n    s = socket.socket(socket.AF_UNIX, kind)\n    s.connect(path)\n    return s\n\
    def refused(what, attack, *errors):\n    try:\n        attack()\n        print(what, 'works')\n    except OSError as error:\n        \
    if error.errno not in errors: print(what, error)\n";

#[test]
fn the_named_one_is_reached_and_no_other() {
    for_each_user(|world| {
        let daemons = Daemons::new(world);
        daemons.serve();
        let outside = world.outside.display();
        let attack = world.write(
            "attack.py",
            format!(
                "{PROLOGUE}\
                 print(reach('{outside}/named.sock').recv(9).decode())\n\
                 os.symlink('{outside}/other.sock', 'way'); os.symlink('{outside}/named.sock', 'other')\n\
                 print(reach(os.getcwd() + '/other').recv(9).decode())\n\
                 for path in ['{outside}/other.sock', 'way', os.getcwd() + '/way', '\\0abstract', '/nowhere']:\n    \
                 refused(path, lambda: reach(path), errno.EACCES)\n\
                 refused('datagram', lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), errno.EPERM)\n\
                 refused('tcp', lambda: socket.socket(), errno.EPERM)\n\
                 refused('again', lambda: socket.fromfd(1, socket.AF_UNIX, socket.SOCK_STREAM).connect('{outside}/named.sock'), errno.ENOTSOCK, errno.EACCES)\n"
            ),
        );
        let mut command = world.postern();
        command.arg("--config").arg(&daemons.config).args(["--profile", "p", "--", "-fc"]);
        let output = finish(command.arg(format!("python3 {}", attack.display())));
        assert_eq!(stdout(&output), "hello\nhello", "{}", text(&output.stderr));
        daemons.nobody_came_to_the_other();
        let connected: Vec<_> =
            world.records().into_iter().filter(|line| line["event"] == "connected").collect();
        assert_eq!(connected.len(), 1, "the first connection is recorded: {connected:?}");
        assert!(connected[0]["path"].as_str().is_some_and(|path| path.ends_with("named.sock")));
    });
}

#[test]
fn a_thread_that_rewrites_the_address_meanwhile_gains_nothing() {
    for_each_user(|world| {
        let daemons = Daemons::new(world);
        daemons.serve();
        // One thread asks for the named socket, another writes the other's name over it.
        let source = world.write(
            "race.c",
            "#include <pthread.h>\n#include <stdio.h>\n#include <string.h>\n#include <sys/socket.h>\n\
             #include <sys/un.h>\n#include <unistd.h>\n\
             static struct sockaddr_un address; static const char *names[2]; static volatile int over;\n\
             static void *swap(void *none) { for (unsigned n = 0; !over; n++) strcpy(address.sun_path, names[n & 1]); return none; }\n\
             int main(int argc, char **argv) { pthread_t thread; int reached = 0; (void)argc;\n\
             address.sun_family = AF_UNIX; names[0] = argv[1]; names[1] = argv[2];\n\
             pthread_create(&thread, 0, swap, 0);\n\
             for (int n = 0; n < 3000; n++) { int s = socket(AF_UNIX, SOCK_STREAM, 0);\n\
             if (!connect(s, (struct sockaddr *)&address, sizeof address)) reached++; close(s); }\n\
             over = 1; pthread_join(thread, 0); printf(\"%s\\n\", reached ? \"some\" : \"none\"); return 0; }\n",
        );
        let program = world.outside.join("race");
        let built = world
            .plain("cc", &["-O2", "-pthread", "-o", program.to_str().unwrap(), source.to_str().unwrap()]);
        assert!(built.status.success(), "{}", text(&built.stderr));
        let names = ["named.sock", "other.sock"].map(|name| world.outside.join(name).display().to_string());
        let outside = world.plain(&program, &[&names[0], &names[1]]);
        assert_eq!(stdout(&outside), "some");
        assert!(daemons.other.accept().is_ok(), "outside, the other is reached");
        while daemons.other.accept().is_ok() {}
        let mut command = world.postern();
        command.arg("--config").arg(&daemons.config).args(["--profile", "p", "--", "-fc"]);
        let output = finish(command.arg(format!("{} {} {}", program.display(), names[0], names[1])));
        assert_eq!(stdout(&output), "some", "{}", text(&output.stderr));
        daemons.nobody_came_to_the_other();
    });
}

#[test]
fn a_socket_from_where_some_are_served_connects_nowhere_else() {
    for_each_user(|world| {
        let daemons = Daemons::new(world);
        let rules = world.write("r.rules", "prefix_rule(['python3'], execution = 'p')");
        let outside = world.outside.display();
        // Under the profile a socket is made and handed back, unconnected, to the turn.
        let giver = world.write(
            "giver.py",
            format!("{PROLOGUE}s = socket.socket(socket.AF_UNIX)\nsocket.send_fds(socket.socket(fileno=9), [b'x'], [s.fileno()])\n"),
        );
        let taker = world.write(
            "taker.py",
            format!(
                "{PROLOGUE}import subprocess\nours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)\n\
                 os.dup2(theirs.fileno(), 9)\n\
                 subprocess.run(['{}/bin/posternsh', '-fc', 'python3 {}'], pass_fds=[9])\n\
                 s = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])\nprint('got', flush=True)\n\
                 refused('the other', lambda: s.connect('{outside}/other.sock'), errno.EPERM)\n\
                 refused('the named', lambda: s.connect('{outside}/named.sock'), errno.EPERM)\n",
                postern_tests::prefix().display(),
                giver.display()
            ),
        );
        let mut command = world.postern();
        command.arg("--config").arg(&daemons.config).arg("--rules").arg(rules).args(["--", "-fc"]);
        // Not by its name, which the rule would match.
        let output = finish(command.arg(format!("/usr/bin/env python3 {}", taker.display())));
        assert_eq!(stdout(&output), "got", "{}", text(&output.stderr));
        daemons.nobody_came_to_the_other();
    });
}

#[test]
fn with_the_network_on_tcp_goes_on_and_other_sockets_do_not() {
    for_each_user(|world| {
        let daemons = Daemons::new(world);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let rules = world.write("r.rules", "prefix_rule(['python3'], execution = 'network')");
        let script = world.write(
            "tcp.py",
            format!(
                "{PROLOGUE}socket.create_connection(('127.0.0.1', {port})).close(); print('tcp')\n\
                 refused('nobody', lambda: socket.create_connection(('127.0.0.1', {free})), errno.ECONNREFUSED)\n\
                 refused('unix', lambda: reach('{}/other.sock'), errno.EPERM)\n",
                world.outside.display()
            ),
        );
        let mut command = world.postern();
        command.arg("--config").arg(&daemons.config).arg("--rules").arg(rules).args(["--", "-fc"]);
        let output = finish(command.arg(format!("python3 {}", script.display())));
        assert_eq!(stdout(&output), "tcp", "{}", text(&output.stderr));
        daemons.nobody_came_to_the_other();
    });
}

#[test]
fn a_socket_that_a_sandbox_could_replace_is_refused() {
    for_each_user(|world| {
        let config = world.write(
            "c.toml",
            format!(
                "[permissions.p.network]\nunix_sockets = ['{}/agent.sock', '$POSTERN_NO_SUCH']\n",
                world.workspace.display()
            ),
        );
        let output = finish(world.postern().arg("--config").arg(config).args(["--", "-fc", "true"]));
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains("could put another in its place"), "{}", text(&output.stderr));
    });
}

#[test]
fn a_connection_that_nobody_waits_for_any_more_is_given_up() {
    for_each_user(|world| {
        // A daemon that accepts nothing, with a queue of two.
        let path = world.outside.join("full.sock");
        let listen = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen(1)\ntime.sleep(60)";
        let mut daemon = world.plain_command("python3").args(["-c", listen]).arg(&path).spawn().unwrap();
        eventually("the daemon listens", || path.exists());
        let config = world.write(
            "c.toml",
            format!(
                "[permissions.p.filesystem]\n':root' = 'read'\n':project_roots' = 'write'\n\
                 [permissions.p.network]\nunix_sockets = ['{}']\n",
                path.display()
            ),
        );
        let script = world.write(
            "fill.py",
            format!(
                "{PROLOGUE}import subprocess, time\n\
                 if len(sys.argv) > 1: reach('{0}'); time.sleep(60)\n\
                 again = [sys.executable, sys.argv[0], 'one']\n\
                 clients = [subprocess.Popen(again, stderr=subprocess.DEVNULL) for n in range(80)]\n\
                 time.sleep(2)\n\
                 s = socket.socket(socket.AF_UNIX)\n\
                 refused('one more', lambda: s.connect('{0}'), errno.EAGAIN)\n\
                 print('all are taken')\n\
                 for client in clients: client.kill()\n\
                 for client in clients: client.wait()\n\
                 time.sleep(1)\n\
                 refused('another', lambda: s.connect('/nowhere'), errno.EACCES)\n",
                path.display(),
            ),
        );
        let mut command = world.postern();
        command.arg("--config").arg(&config).args(["--profile", "p", "--", "-fc"]);
        let output = finish(command.arg(format!("python3 {}", script.display())));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        assert_eq!(stdout(&output), "all are taken", "{}", text(&output.stderr));
    });
}
