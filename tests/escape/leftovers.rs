//! Processes that leave their parents, their group and their session, and hear no signal.

use std::process::Command;

use postern_tests::{World, eventually, for_each_user, lives};

use crate::attack::{Waiting, running};

const DAEMON: &str = "
import os, signal, sys
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD): signal.signal(number, signal.SIG_IGN)
os.chdir('/')
os.closerange(0, 256)
os.execvp('sleep', ['sleep', sys.argv[1]])
";

/// The pids of those that sleep so long.
fn sleepers(long: &str) -> Vec<i64> {
    let wanted = format!("sleep\0{long}\0");
    let pids = std::fs::read_dir("/proc").unwrap();
    pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted.as_bytes())
        })
        .filter(|pid| lives(*pid))
        .collect()
}

fn kill(pid: i64) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// A number that nobody else sleeps.
fn long(world: &World, which: usize) -> String {
    let name = world.root.file_name().unwrap().to_string_lossy();
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    format!("7{digits}{which}")
}

#[test]
fn outside_a_daemon_stays() {
    // Or the test below would show nothing.
    for_each_user(|world| {
        let (daemon, long) = (world.write("daemon.py", DAEMON), long(world, 9));
        let parent = running(
            world
                .plain_command("bash")
                .args(["-c", &format!("python3 {} {long}; sleep 20", daemon.display())]),
        );
        eventually("it runs", || sleepers(&long).len() == 1);
        drop(parent);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let left = sleepers(&long);
        assert_eq!(left.len(), 1);
        kill(left[0]);
    });
}

#[test]
fn no_daemon_is_left_however_the_session_is_ended() {
    for_each_user(|world| {
        let daemon = world.write("daemon.py", DAEMON).display().to_string();
        // In place, and in each kind of execution that a rule can give.
        let executions = ["turn_default", "network", "git", "unsandboxed"];
        let all: Vec<String> = (0..=executions.len()).map(|which| long(world, which)).collect();
        let rules: String = executions
            .iter()
            .zip(&all[1..])
            .map(|(execution, long)| {
                format!("prefix_rule(['python3', '{daemon}', '{long}'], execution = '{execution}')\n")
            })
            .collect();
        let rules = world.write("r.rules", rules);
        let script: String = all.iter().map(|long| format!("python3 {daemon} {long} & ")).collect();
        for victim in ["front", "server", "spawner"] {
            let mut command = world.postern();
            let mut session =
                Waiting::start(world, command.arg("--rules").arg(&rules), &format!("{script} sleep 60"));
            std::io::Write::write_all(session.front.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
            for long in &all {
                eventually("each has one", || sleepers(long).len() == 1);
            }
            let front = i64::from(session.front.0.id());
            kill(match victim {
                "server" => session.server,
                "spawner" => session.spawner,
                _ => front,
            });
            for long in &all {
                eventually(&format!("none is left of {victim}'s"), || sleepers(long).is_empty());
            }
            eventually("no part of the session is", || {
                !lives(session.server) && !lives(session.spawner) && !lives(front)
            });
        }
    });
}
