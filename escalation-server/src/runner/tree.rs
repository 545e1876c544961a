//! Processes by descent, from `/proc`.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What proc_pid_stat(5) says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: u8,
    parent: i32,
    group: i32,
}

impl Stat {
    /// None if the process is gone.
    fn of(pid: i32) -> Option<Self> {
        let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything.
        let after = text.rsplit(|&byte| byte == b')').next()?;
        let mut fields = std::str::from_utf8(after).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        Some(Self { state, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
    }

    fn lives(self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }

    fn stopped(self) -> bool {
        self.state == b'T'
    }
}

fn all() -> impl Iterator<Item = (i32, Stat)> {
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, Stat::of(pid)?))
    })
}

/// Everything that descends from a process, children before theirs.
fn descendants(root: i32) -> Vec<(i32, Stat)> {
    let mut children: HashMap<i32, Vec<(i32, Stat)>> = HashMap::new();
    for (pid, stat) in all() {
        children.entry(stat.parent).or_default().push((pid, stat));
    }
    let mut found = children.remove(&root).unwrap_or_default();
    let mut at = 0;
    while let Some((pid, _)) = found.get(at) {
        found.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    found
}

/// The parent of a process; none if it is gone.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    Stat::of(pid).map(|stat| stat.parent)
}

/// Whether a process has children, ended ones included; true if that cannot be seen.
pub(super) fn has_children(pid: i32) -> bool {
    let first =
        File::open(format!("/proc/{pid}/task/{pid}/children")).and_then(|list| list.read_at(&mut [0], 0));
    first.map_or(true, |length| length > 0)
}

/// Whether a process is stopped.
pub(crate) fn is_stopped(pid: i32) -> bool {
    Stat::of(pid).is_some_and(Stat::stopped)
}

/// Kills all that descends from a process, and it too if `itself`; again until none is left, since
/// they fork meanwhile.
pub(crate) fn kill_descendants(root: i32, itself: bool) {
    const ROUNDS: usize = 64;
    for _ in 0..ROUNDS {
        let mut doomed = descendants(root);
        doomed.extend(Stat::of(root).filter(|_| itself).map(|stat| (root, stat)));
        let living = doomed.iter().filter(|(_, stat)| stat.lives());
        let killed = living.filter(|(pid, _)| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok()).count();
        if killed == 0 {
            return;
        }
    }
}

/// Hangs up what descends from a process and is stopped, as the kernel does with a stopped group
/// whose shell is gone (setpgid(2), orphaned process groups).
pub(super) fn hang_up_stopped(root: i32) {
    for (pid, _) in descendants(root).into_iter().filter(|(_, stat)| stat.stopped()) {
        for signal in [Signal::SIGHUP, Signal::SIGCONT] {
            let _gone = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Sends a signal to the group that a process stands in, but for one member.
pub(super) fn signal_group_of(pid: i32, signal: Signal, except: i32) {
    let Some(Stat { group, .. }) = Stat::of(pid) else { return };
    for (member, _) in all().filter(|(member, stat)| stat.group == group && *member != except) {
        let _gone = kill(Pid::from_raw(member), signal);
    }
}
