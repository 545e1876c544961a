//! Other processes by their files in `/proc`: the session's own, above all.

use std::path::Path;

use postern_tests::{World, for_each_user};
use serde_json::json;

use crate::attack::{Attacks, Waiting, attack, has_root, running};

/// Processes that descend from this one and are Postern's own.
fn family(of: i64) -> Vec<i64> {
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let mut all: Vec<i64> =
        children.split_whitespace().map(|pid| pid.parse().unwrap()).flat_map(family).collect();
    let name = std::fs::read_to_string(format!("/proc/{of}/comm")).unwrap_or_default();
    if name.starts_with("postern") {
        all.push(of);
    }
    all
}

/// Of one of the processes `pids`, by the number that it has where the attack runs, or of any that
/// is there and neither the attack nor its shell.
const OF_OTHERS: &str = "
def others():
    lines = {os.getpid(), os.getppid(), *shells}
    return [str(p) for p in pids] + [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in lines]
shells = set()
p = os.getpid()
while p > 1:
    status = dict(line.split(':\\t', 1) for line in open(f'/proc/{p}/status') if ':\\t' in line)
    if status['Name'].strip() not in ('python3', 'zsh', 'sh'): break
    shells.add(p)
    p = int(status['PPid'])
def anyone(attempt):
    for p in others():
        try:
            if attempt(p): return
        except OSError: pass
    need(False)
";

const ATTACKS: [(&str, &str); 10] = [
    ("be seen", "need(any(str(p) in os.listdir('/proc') for p in pids))"),
    ("root", "anyone(lambda p: os.stat(f'/proc/{p}/root/etc').st_ino)"),
    ("root, for writing", "anyone(lambda p: open(f'/proc/{p}/root{target}', 'a'))"),
    ("working directory", "anyone(lambda p: os.listdir(f'/proc/{p}/cwd/'))"),
    ("descriptors", "anyone(lambda p: os.listdir(f'/proc/{p}/fd') and os.readlink(f'/proc/{p}/fd/0'))"),
    ("what a descriptor leads to", "anyone(lambda p: open(f'/proc/{p}/fd/0', 'rb'))"),
    ("memory", "anyone(lambda p: open(f'/proc/{p}/mem', 'r+b'))"),
    ("environment", "anyone(lambda p: b'=' in open(f'/proc/{p}/environ', 'rb').read())"),
    ("executable", "anyone(lambda p: open(f'/proc/{p}/exe', 'rb'))"),
    ("namespaces", "anyone(lambda p: os.open(f'/proc/{p}/ns/mnt', os.O_RDONLY))"),
];

#[test]
fn the_files_of_other_processes_are_closed() {
    for_each_user(|world: &World| {
        let victim = running(world.plain_command("sleep").arg("300"));
        let mut session = Waiting::start(world, &mut world.postern(), "eval $(<../order)");
        let mut pids = family(i64::from(session.front.0.id()));
        assert!(pids.contains(&session.server) && pids.contains(&session.spawner), "{pids:?}");
        assert!(pids.len() > 3, "the first process of the sandbox is one of them: {pids:?}");
        pids.push(i64::from(victim.0.id()));
        let codes = ATTACKS.map(|(name, code)| (name, format!("{OF_OTHERS}{code}")));
        let attacks = Attacks::new(world, &json!({ "pids": pids }), &codes);
        world.write("order", attacks.command());
        attacks.outside(true);
        attacks.inside(|_| session.go());
    });
}

#[test]
fn outside_the_spawner_is_open_to_its_user_and_the_server_is_not() {
    // So that above it is the sandbox that keeps the spawner closed.
    for_each_user(|world| {
        let mut session = Waiting::start(world, &mut world.postern(), "");
        for (pid, open) in [(session.spawner, true), (session.server, has_root(world))] {
            let look = format!("cat /proc/{pid}/environ && ls /proc/{pid}/root/ && ls /proc/{pid}/fd/");
            let output = world.plain("sh", &["-c", &look]);
            assert_eq!(output.status.success(), open, "{}", postern_tests::text(&output.stderr));
        }
        session.go();
    });
}

#[test]
fn ones_own_root_is_the_sandboxs() {
    for_each_user(|world| {
        assert!(Path::new("/proc/self/root").exists());
        attack(
            world,
            &json!({}),
            &[
                ("write", "open(f'/proc/self/root{target}', 'w').close()"),
                ("of a thread", "open(f'/proc/thread-self/root{target}', 'w').close()"),
                ("by the working directory", "open('/proc/self/cwd/../outside/target', 'w').close()"),
                (
                    "by a mapped file",
                    "open(f'/proc/self/root/proc/self/root{outside}/more', 'w').close(); os.unlink(f'{outside}/more')",
                ),
            ],
        );
    });
}
