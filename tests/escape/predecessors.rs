//! Through a sandbox in which an earlier command ran, to the next one.

use postern_tests::{World, for_each_user, stdout, text};

/// Two rules of one profile, and one of another.
const RULES: &str = "prefix_rule(['python3'], execution = 'read-only')\n\
                     prefix_rule(['sh'], execution = 'read-only')\n\
                     prefix_rule(['readlink'], execution = 'network')\n";

/// Its process namespace.
const WHERE: &str = "import os; print(os.readlink('/proc/self/ns/pid'))";

fn lines(world: &World, script: &str) -> Vec<String> {
    let output = world.session(RULES, script);
    let out = stdout(&output);
    assert!(output.status.success() && out.lines().count() > 1, "{out} {}", text(&output.stderr));
    out.lines().map(str::to_owned).collect()
}

#[test]
fn one_after_another_share_a_sandbox() {
    // Or the tests below would show nothing.
    for_each_user(|world| {
        let found = lines(world, &format!("repeat 6 python3 -c \"{WHERE}\""));
        assert_eq!(found[3..], [&found[3][..]; 3], "{found:?}");
        let found = lines(world, "repeat 6 readlink /proc/self/ns/pid");
        assert_eq!(found[3..], [&found[3][..]; 3], "{found:?}");
    });
}

#[test]
fn none_shares_a_namespace_with_the_turn() {
    for_each_user(|world| {
        let (kinds, one) = (["user", "net", "pid", "mnt", "ipc"], "readlink /proc/self/ns");
        let links = |program: &str| kinds.map(|kind| format!("{program} {one}/{kind}")).join("; ");
        // The second rule's profile has the network, and so the machine's namespace of it.
        let rules =
            "prefix_rule(['env'], execution = 'read-only')\nprefix_rule(['nice'], execution = 'network')\n";
        let script = format!("{}; {}; {}", links(""), links("env"), links("nice -n 0"));
        let output = world.session(rules, &script);
        let found: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
        assert_eq!(found.len(), 3 * kinds.len(), "{found:?} {}", text(&output.stderr));
        let (turn, others) = found.split_at(kinds.len());
        assert!(others.iter().all(|namespace| !turn.contains(namespace)), "{found:?}");
        let outside = world.plain("sh", &["-c", &kinds.map(|kind| format!("{one}/{kind}")).join("; ")]);
        let outside: Vec<_> = text(&outside.stdout).lines().map(str::to_owned).collect();
        let shared: Vec<_> = found.iter().filter(|namespace| outside.contains(namespace)).collect();
        assert_eq!(shared, [&outside[1]], "{found:?} {outside:?}");
    });
}

#[test]
fn two_at_a_time_do_not() {
    for_each_user(|world| {
        let waits = format!(
            "{WHERE}; import sys, time; sys.stdout.flush()\nwhile not os.path.exists('go'): time.sleep(0.01)"
        );
        let both = format!(
            "python3 -c \"{waits}\" > first & while [[ ! -s first ]] sleep 0.01; python3 -c \"{WHERE}\"; \
             : > go; wait; cat first; rm first go"
        );
        let found =
            lines(world, &format!("repeat 3 python3 -c \"{WHERE}\" > /dev/null; repeat 2 {{ {both} }}"));
        assert_eq!(found.len(), 4);
        assert!(found[0] != found[1] && found[2] != found[3], "{found:?}");
    });
}

#[test]
fn what_is_left_running_keeps_its_sandbox_to_itself() {
    for_each_user(|world| {
        let leaves = format!(
            "{WHERE}; import sys; sys.stdout.flush(); os.fork() or (os.close(0), os.close(1), os.close(2), os.setsid(), os.execlp('sleep', 'sleep', '20'))"
        );
        let looks = format!(
            "{WHERE}; print(*(open(f'/proc/{{pid}}/comm').read() for pid in os.listdir('/proc') if pid.isdigit()))"
        );
        let found = lines(world, &format!("repeat 3 python3 -c \"{leaves}\"; python3 -c \"{looks}\""));
        let mut namespaces: Vec<_> = found.iter().filter(|line| line.starts_with("pid:")).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        assert_eq!(namespaces.len(), 4, "{found:?}");
        assert!(!found.iter().any(|line| line.contains("sleep")), "{found:?}");
    });
}

#[test]
fn no_sandbox_is_used_for_one_approval_after_another() {
    for_each_user(|world| {
        let look = "ls /dev/shm | sort; readlink /proc/self/ns/ipc";
        let found = lines(
            world,
            &format!(
                "repeat 4 python3 -c \"open('/dev/shm/planted', 'w')\"; sh -c '{look}'; repeat 3 sh -c true; \
                 sh -c '{look}'; python3 -c \"import os; print(os.listdir('/dev/shm'))\""
            ),
        );
        assert!(found.iter().all(|line| !line.contains("planted")), "{found:?}");
    });
}

#[test]
fn nobody_harms_the_one_that_comes_next() {
    for_each_user(|world| {
        // The next process stands by in there while this one runs, and whose copy it is.
        let harms = "
import ctypes, os, signal, sys
others = [int(name) for name in os.listdir('/proc') if name.isdigit() and int(name) not in (1, os.getpid())]
turn = sys.argv[1:] == ['turn']
def name(pid):
    try: return open(f'/proc/{pid}/comm').read().strip()
    except OSError: pass
if turn: # The shell is there too, and its children.
    others = [pid for pid in others if name(pid) == 'postern-spawner']
for pid in [1, *others]:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR1):
        try: os.kill(pid, number); print('signalled', pid)
        except OSError: pass
    for name in ('mem', 'environ', 'maps'):
        try: open(f'/proc/{pid}/{name}', 'rb').read(1); print('read', pid, name)
        except OSError: pass
    for name in ('fd/0', 'fd/3', 'root', 'cwd'):
        try: os.stat(f'/proc/{pid}/{name}'); print('entered', pid, name)
        except OSError: pass
    if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, 0, 0) == 0: print('traced', pid)
if not turn:
    # Succeeds where each was refused, too (kill(2)): whether one was killed is seen by who runs next.
    try: os.kill(-1, signal.SIGKILL)
    except ProcessLookupError: pass
print('others', len(others), 'nice', os.nice(0), 'on', len(os.sched_getaffinity(0)))
if sys.argv[1:] == ['slow']:
    def slows(pid, *changes):
        slowed = 0
        for change in changes:
            try: change(pid); slowed = 1
            except PermissionError: pass
        return slowed
    changes = [lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19), lambda pid: os.sched_setaffinity(pid, {0})]
    print('slowed', sum(slows(pid, *changes) for pid in others), 'of', len(others))
";
        let harms = world.write("harms.py", harms);
        let found = lines(world, &format!("repeat 6 python3 {}", harms.display()));
        let ends: Vec<_> = found.iter().filter(|line| line.starts_with("others")).collect();
        assert_eq!((found.len(), ends.len()), (6, 6), "{found:?}");
        assert!(ends.iter().any(|line| line.starts_with("others 2")), "another stood by: {found:?}");
        // What was made slow does not run; what comes after it does, as fast as ever.
        let found = lines(world, &format!("repeat 9 python3 {} slow 2>&1; true", harms.display()));
        // What they are copied from has capabilities, which put its scheduling out of reach (setpriority(2)).
        let (slowed, found): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|line| line.starts_with("slowed"));
        let times = |line: &str| slowed.iter().filter(|slowed| *slowed == line).count();
        assert!(times("slowed 1 of 2") > 0 && times("slowed 2 of 2") == 0, "{slowed:?}");
        let (ran, denied): (Vec<_>, Vec<_>) = found.iter().partition(|line| line.starts_with("others"));
        assert!(
            denied.iter().all(|line| line.contains("has changed how its process is scheduled")),
            "{found:?}"
        );
        assert!(!denied.is_empty() && ran.len() > 2, "{found:?}");
        assert!(ran.iter().all(|line| line.ends_with(ran[0].split("nice").nth(1).unwrap())), "{found:?}");
        // In the turn's sandbox the shell runs all the while.
        let rules = "prefix_rule(['python3'], execution = 'turn_default')\n";
        let output = world.session(rules, &format!("repeat 6 python3 {} turn", harms.display()));
        let found = text(&output.stdout);
        assert!(found.lines().all(|line| line.starts_with("others")), "{found} {}", text(&output.stderr));
        assert_eq!((found.lines().count(), found.contains("others 2")), (6, true), "{found}");
    });
}

#[test]
fn where_nobody_stands_by_any_more_commands_run() {
    for_each_user(|world| {
        let rules = "prefix_rule(['python3'], execution = 'read-only')\n\
                     prefix_rule(['readlink'], execution = 'turn_default')\n\
                     prefix_rule(['sh'], execution = 'unsandboxed')\n";
        let ends = "children() { for status in /proc/[0-9]*/status; do \
                    grep -qs \"^PPid:.$PPID$\" $status && grep -qs '^Name:.postern-spawner$' $status || continue; \
                    pid=${status#/proc/}; echo ${pid%/status}; done | sort -n; }\n\
                    gone() { while kill -0 $1; do sleep 0.01; done 2> /dev/null; }\n\
                    case $1 in all) for pid in $(children); do kill -9 $pid; gone $pid; echo killed; done;; \
                    first) kill -STOP $(children | head -1); esac";
        let ends = world.write("ends.sh", ends);
        let once = format!("repeat 3 {{ python3 -c \"{WHERE}\"; readlink /proc/self/ns/pid }}");
        let script = format!("{once}; sh {0} all; {once}; sh {0} first; {once}", ends.display());
        let output = world.session(rules, &script);
        let found = text(&output.stdout);
        let (killed, ran): (Vec<_>, Vec<_>) = found.lines().partition(|line| *line == "killed");
        assert!(killed.len() >= 2 && ran.len() == 18, "{found} {}", text(&output.stderr));
        assert!(ran.iter().all(|line| line.starts_with("pid:")), "{found}");
    });
}

#[test]
fn no_process_hides_from_the_sandboxs_first_one() {
    for_each_user(|world| {
        // A sibling would be the spawner's child, and nobody's in there.
        let hides = "
import ctypes, os, signal, time
CLONE_PARENT = 0x8000
child = ctypes.CDLL(None, use_errno=True).syscall(56, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
if child == 0:
    os.close(0), os.close(1), os.close(2)
    time.sleep(5)
    os._exit(0)
print('hidden' if child > 0 else 'refused', os.readlink('/proc/self/ns/pid'), flush=True)
";
        let hides = world.write("hides.py", hides);
        let plain = world.plain("python3", &[hides.to_str().unwrap()]);
        assert!(stdout(&plain).starts_with("hidden"), "{}", text(&plain.stderr));
        for execution in ["read-only", "turn_default"] {
            let rules = format!("prefix_rule(['python3'], execution = '{execution}')\n");
            let output = world.session(&rules, &format!("repeat 4 python3 {}", hides.display()));
            let found = text(&output.stdout);
            assert_eq!(found.matches("refused").count(), 4, "{execution} {found} {}", text(&output.stderr));
            assert!(!found.contains("hidden"), "{execution} {found}");
        }
        // The shell itself, which no zygote made.
        let output = world.session("", &format!("exec python3 {}", hides.display()));
        assert!(stdout(&output).starts_with("refused"), "{}", text(&output.stderr));
    });
}

#[test]
fn a_file_that_is_replaced_in_between_is_not_open_to_the_next_one() {
    for_each_user(|world| {
        world.write("ws/.env", "secret");
        world.write("config.toml", "[permissions.careful.filesystem]\n':root' = 'read'\n':project_roots' = {'**/*.env' = 'none'}\nglob_scan_max_depth = 4\n");
        let rules = world.write(
            "r.rules",
            "prefix_rule(['cat'], execution = 'careful')\nprefix_rule(['mv'], execution = 'unsandboxed')\n",
        );
        let script = "repeat 4 cat .env; print new > later; repeat 3 { print new > later; mv later .env; cat .env; cat .env }; print -n done";
        let mut command = world.postern();
        let output = postern_tests::finish(
            command
                .arg("--config")
                .arg(world.root.join("config.toml"))
                .arg("--rules")
                .arg(rules)
                .args(["--", "-fc", script]),
        );
        assert_eq!(stdout(&output), "done", "{}", text(&output.stderr));
        assert!(text(&output.stderr).matches("Permission denied").count() >= 7, "{}", text(&output.stderr));
    });
}
