//! Processes by descent, from `/proc`.

use std::collections::HashMap;

/// Parent of a process, from `/proc/PID/stat` (proc(5)); none if it is gone.
pub(crate) fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything.
    let after = stat.rsplit(|&byte| byte == b')').next()?;
    std::str::from_utf8(after).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Kills all that descends from a process, and it too if `itself`; again until none is left, since
/// they fork meanwhile.
pub(crate) fn kill_descendants(root: i32, itself: bool) {
    const ROUNDS: usize = 64;
    for _ in 0..ROUNDS {
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            if let Some(parent) = parent_of(pid) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let mut doomed = if itself { vec![root] } else { children.remove(&root).unwrap_or_default() };
        let mut killed = 0;
        while let Some(pid) = doomed.pop() {
            doomed.extend(children.remove(&pid).unwrap_or_default());
            let alive = !is_zombie(pid);
            let sent = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            killed += usize::from(alive && sent.is_ok());
        }
        if killed == 0 {
            return;
        }
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(|&byte| byte == b')').next().unwrap_or_default();
    matches!(after.get(1), Some(b'Z' | b'X') | None)
}
