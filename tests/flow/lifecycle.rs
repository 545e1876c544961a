//! A session lives and dies with its server and its spawner.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use postern_tests::{World, eventually, finish, for_each_user, lives, status, stdout, text};
use serde_json::Value;

/// A number that no other test's sleepers sleep.
fn mark() -> u32 {
    20_000 + std::process::id() % 100_000
}

/// Processes that sleep for so long, by what the kernel says of them.
fn sleepers() -> Vec<i64> {
    let wanted = format!("sleep\0{}", mark());
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i64>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(wanted.as_bytes()) && lives(*pid)
    })
    .collect()
}

/// A session with a command in each place, all of them running.
fn start(world: &World) -> (Child, Value) {
    let mark = mark();
    let rules = world.write(
        "test.rules",
        format!("prefix_rule([\"sleep\", \"{mark}1\"], execution = \"unsandboxed\")\nprefix_rule([\"sleep\", \"{mark}2\"], execution = \"git\")"),
    );
    let mut child = world
        .postern()
        .arg("--rules")
        .arg(rules)
        .args(["--", "-fc", &format!("sleep {mark}0 & sleep {mark}1 & sleep {mark}2 & print ready; wait")])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    eventually("three sleep", || sleepers().len() == 3);
    let output = finish(world.postern().args(["log", "--json"]));
    let started = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .rfind(|line| line["event"] == "started");
    (child, started.unwrap())
}

fn kill(pid: i64, signal: &str) {
    assert!(std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn nothing_is_left(server: i64, spawner: i64) {
    eventually("no sleeper is left", || sleepers().is_empty());
    eventually("no server and no spawner is left", || !lives(server) && !lives(spawner));
}

// One test, because it counts the machine's sleepers.
#[test]
fn whoever_dies_nothing_is_left() {
    for_each_user(|world| {
        for victim in ["server", "spawner", "front"] {
            let (mut child, started) = start(world);
            let pids = [started["server"].as_i64().unwrap(), started["spawner"].as_i64().unwrap()];
            match victim {
                "front" => kill(i64::from(child.id()), "-KILL"),
                other => kill(started[other].as_i64().unwrap(), "-KILL"),
            }
            let status = child.wait().unwrap();
            assert!(!status.success(), "{victim}: {status}");
            nothing_is_left(pids[0], pids[1]);
        }
    });
}

#[test]
fn background_jobs_outlive_the_shell_and_the_session_ends_with_them() {
    for_each_user(|world| {
        let began = Instant::now();
        let output = world.session("", "(sleep 1; /bin/echo late > late) >/dev/null 2>&1 & exit 4");
        assert_eq!(status(&output), 4);
        assert!(began.elapsed() < Duration::from_millis(900), "the front waited for the job");
        let listed = finish(world.postern().arg("sessions"));
        assert_eq!(stdout(&listed).lines().count(), 1, "{}", stdout(&listed));
        eventually("the job has written", || world.workspace.join("late").exists());
        assert!(world.records().iter().any(|line| line["claimed"]["argv"][0] == "/bin/echo"));
        eventually("the session has ended", || stdout(&finish(world.postern().arg("sessions"))).is_empty());
    });
}

#[test]
fn a_lingering_session_can_be_ended() {
    for_each_user(|world| {
        world.session("", "/bin/sleep 77 >/dev/null 2>&1 & :");
        let id = stdout(&finish(world.postern().arg("sessions"))).split(' ').next().unwrap().to_owned();
        let ended = finish(world.postern().args(["sessions", "end", &id]));
        assert_eq!(status(&ended), 0, "{}", text(&ended.stderr));
        assert_eq!(stdout(&finish(world.postern().arg("sessions"))), "");
    });
}

#[test]
fn a_harness_that_waits_for_the_end_of_file_is_not_kept_waiting() {
    for_each_user(|world| {
        let mut child = world
            .posternsh()
            .args(["-fc", "/bin/echo out; sleep 20 >/dev/null 2>&1 &"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let began = Instant::now();
        let mut all = String::new();
        child.stdout.take().unwrap().read_to_string(&mut all).unwrap();
        assert_eq!(all, "out\n");
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(child.wait().unwrap().success());
        let id = stdout(&finish(world.postern().arg("sessions"))).split(' ').next().unwrap().to_owned();
        finish(world.postern().args(["sessions", "end", &id]));
    });
}

#[test]
fn signals_reach_the_shell_once() {
    for_each_user(|world| {
        // To the front alone, and to its whole group.
        for group in [false, true] {
            let mut child = world
                .posternsh()
                .args(["-fc", "n=0; trap '(( n++ ))' USR1; trap 'print $n; exit 5' TERM; print ready; while :; do /bin/sleep 0.05; done"])
                .stdout(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
            let mut out = BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            let target = if group { -i64::from(child.id()) } else { i64::from(child.id()) };
            for signal in ["-USR1", "-TERM"] {
                let sent = std::process::Command::new("/bin/kill")
                    .args([signal, "--", &target.to_string()])
                    .status();
                assert!(sent.unwrap().success());
                std::thread::sleep(Duration::from_millis(300));
            }
            line.clear();
            out.read_to_string(&mut line).unwrap();
            let ended = child.wait().unwrap();
            // A USR1 to the whole group also ends the sleep of that moment, which is as it should be.
            assert_eq!(line.lines().last(), Some("1"), "group: {group}: {line:?} {ended}");
            assert_eq!(ended.code(), Some(5));
        }
    });
}
