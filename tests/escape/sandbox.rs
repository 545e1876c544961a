//! Out of the turn's sandbox: files, processes, sockets, system calls.

use postern_tests::{World, for_each_user, stdout, text};

/// Runs a Python attack outside, where it must print `done`, and inside, where it must not.
fn attack(world: &World, name: &str, code: &str) {
    let code = format!(
        "import os, socket, sys, ctypes, signal, errno\nlibc = ctypes.CDLL(None, use_errno=True)\nprint('began', flush=True)\n{code}\nprint('done')\n"
    );
    let path = world.write("attack.py", code);
    let path = path.to_str().unwrap();
    let outside = world.plain("python3", &[path]);
    assert_eq!(
        stdout(&outside).lines().last(),
        Some("done"),
        "{name} does not work where nothing defends: {}",
        text(&outside.stderr)
    );
    let inside = world.session("", &format!("python3 {path}"));
    assert_eq!(stdout(&inside), "began", "{name} works inside, or was not tried: {}", text(&inside.stderr));
}

#[test]
fn files_outside_and_protected_ones() {
    for_each_user(|world| {
        let outside = world.outside.display().to_string();
        world.write("outside/target", "x");
        world.write("ws/.git/description", "x");
        attack(world, "write outside", &format!("open('{outside}/target', 'w').write('y')"));
        attack(world, "create outside", &format!("open('{outside}/new', 'w').close()"));
        attack(world, "truncate outside", &format!("os.truncate('{outside}/target', 0)"));
        attack(
            world,
            "unlink outside",
            &format!("open('{outside}/gone', 'a').close(); os.unlink('{outside}/gone')"),
        );
        attack(world, "chmod outside", &format!("os.chmod('{outside}/target', 0o777)"));
        attack(world, "utime outside", &format!("os.utime('{outside}/target')"));
        attack(world, "xattr outside", &format!("os.setxattr('{outside}/target', 'user.x', b'y')"));
        attack(
            world,
            "rename across the border",
            &format!("open('mine','w').close(); os.rename('mine', '{outside}/moved')"),
        );
        attack(
            world,
            "hard link out",
            &format!("os.link('{outside}/target', 'linked'); os.unlink('linked')"),
        );
        attack(
            world,
            "symlink and write",
            &format!(
                "os.symlink('{outside}', 'way'); p='way/x'\ntry: open(p,'w').close()\nfinally: os.unlink('way')"
            ),
        );
        attack(world, "proc root", &format!("open('/proc/self/root{outside}/target', 'w').close()"));
        attack(world, "dot dot", "open('../outside/target', 'w').close()");
        attack(world, "hook", "open('.git/hooks/pre-commit', 'w').write('#!/bin/sh\\nevil\\n')");
        attack(world, "git config", "open('.git/config', 'a').write('[core]\\n')");
        attack(world, "move git away", "os.rename('.git', '.git2'); os.rename('.git2', '.git')");
        attack(world, "state", &format!("os.listdir('{}/state/postern')", world.root.display()));
        attack(
            world,
            "the home directory",
            &format!("open('{}/home/.profile', 'w').close()", world.root.display()),
        );
    });
}

#[test]
fn what_a_git_file_names_gives_nothing() {
    for_each_user(|world| {
        world.write("outside/secret", "secret\n");
        let config = world.write(
            "c.toml",
            format!(
                "profile = 'p'\n[permissions.p.filesystem]\n':minimal' = 'read'\n':project_roots' = 'write'\n'/proc' = 'read'\n'{}' = 'read'\n",
                postern_tests::prefix().display()
            ),
        );
        let outside = world.outside.display();
        let directory = world.root.join("plain");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join(".git"), format!("gitdir: {outside}\n")).unwrap();
        world.own();
        let mut command = world.postern();
        command
            .current_dir(&directory)
            .arg("--config")
            .arg(&config)
            .args(["--", "-fc"])
            .arg(format!("cat {outside}/secret; print $?"));
        let output = postern_tests::finish(&mut command);
        assert_eq!(stdout(&output), "1", "{}", text(&output.stderr));
    });
}

#[test]
fn other_processes() {
    for_each_user(|world| {
        // A process outside, of the same user, which attacks may try.
        let mut victim = world.plain_command("sleep").arg("300").env("SECRET", "canary").spawn().unwrap();
        let pid = victim.id();
        attack(world, "signal", &format!("os.kill({pid}, 0)"));
        attack(
            world,
            "signal every process",
            &format!("assert any(int(p) == {pid} for p in os.listdir('/proc') if p.isdigit())"),
        );
        attack(
            world,
            "environment",
            &format!("assert b'canary' in open('/proc/{pid}/environ', 'rb').read()"),
        );
        attack(world, "memory", &format!("open('/proc/{pid}/mem', 'rb').close()"));
        attack(world, "root of another", &format!("os.listdir('/proc/{pid}/root/')"));
        attack(
            world,
            "ptrace",
            &format!(
                "assert libc.ptrace(16, {pid}, 0, 0) == 0, ctypes.get_errno(); libc.ptrace(17, {pid}, 0, 0)"
            ),
        );
        attack(world, "limits", &format!("import resource; resource.prlimit({pid}, resource.RLIMIT_NOFILE)"));
        victim.kill().unwrap();
        victim.wait().unwrap();
    });
}

#[test]
fn sockets_and_system_calls() {
    for_each_user(|world| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        attack(world, "loopback", &format!("socket.create_connection(('127.0.0.1', {port})).close()"));
        attack(world, "udp", "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()");
        attack(world, "netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()");
        let path = world.root.join("outside/listening");
        let _bound = std::os::unix::net::UnixListener::bind(&path).unwrap();
        world.own();
        attack(
            world,
            "a daemon's socket",
            &format!("s=socket.socket(socket.AF_UNIX); s.connect('{}')", path.display()),
        );
        attack(world, "a datagram pair", "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)");
        attack(world, "user namespace", "assert libc.unshare(0x10000000) == 0");
        attack(world, "keyring", "assert libc.syscall(250, 0, -3, 0) >= 0");
        attack(world, "handle", "assert libc.syscall(304, -100, 0, 0) != -1 or ctypes.get_errno() != 1");
        attack(
            world,
            "io_uring",
            "p=(ctypes.c_char*256)(); assert libc.syscall(425, 4, p) >= 0 or ctypes.get_errno() != 1",
        );
        attack(
            world,
            "a foreign number",
            "r = libc.syscall(0x40000000 | 39); assert r > 0 or ctypes.get_errno() == 38",
        );
        attack(
            world,
            "clone3 with namespaces",
            "a=(ctypes.c_uint64*11)(); a[0]=0x10000000; a[4]=17; p=libc.syscall(435, a, 88)\nif p == 0: os._exit(0)\nassert p > 0",
        );
    });
}

#[test]
fn no_capability_and_no_new_privileges() {
    for_each_user(|world| {
        let output = world.session(
            "",
            "grep -E '^(Cap(Inh|Prm|Eff|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'",
        );
        let zero = "0".repeat(16);
        assert_eq!(
            stdout(&output),
            format!("CapInh:{zero}\nCapPrm:{zero}\nCapEff:{zero}\nCapAmb:{zero}\nNoNewPrivs:1\nSeccomp:2")
        );
    });
}

#[test]
fn devices_are_few() {
    for_each_user(|world| {
        let output = world.session("", "print -l /dev/*(:t) | tr '\\n' ' '; [[ -w /dev/shm ]] && echo x > /dev/null && head -c1 /dev/zero | wc -c");
        assert_eq!(
            stdout(&output),
            "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero 1"
        );
    });
}

#[test]
fn a_directory_as_a_standard_descriptor_leads_nowhere() {
    for_each_user(|world| {
        let mut command = world.posternsh();
        command.args(["-fc", "python3 -c \"import os; os.close(os.open('evil', os.O_CREAT | os.O_WRONLY, dir_fd=0)); print('done')\""]);
        let hooks = std::fs::File::open(world.workspace.join(".git/hooks")).unwrap();
        let output = postern_tests::finish(command.stdin(hooks));
        assert_ne!(stdout(&output), "done");
        assert!(!world.workspace.join(".git/hooks/evil").exists());
    });
}
