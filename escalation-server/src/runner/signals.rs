//! Signals that reach the spawner itself, which stands in the shell's group: witnesses of what was
//! sent to the whole group.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpgid, getpgrp, setpgid};

use crate::sys::process;

/// How long a signal to a whole group may take to reach each of its members.
const WITNESS: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Witness {
    listener: OwnedFd,
    /// When a signal last came.
    seen: HashMap<i32, Instant>,
    /// Signals to commands that wait for the witness.
    delayed: Vec<(Instant, u64, i32)>,
}

impl Witness {
    pub(super) fn new() -> io::Result<Self> {
        let caught: Vec<i32> =
            (1..32).filter(|signal| !matches!(*signal, libc::SIGKILL | libc::SIGSTOP)).collect();
        let listener = process::signals_as_messages(&caught)?;
        Ok(Self { listener, seen: HashMap::new(), delayed: Vec::new() })
    }

    /// Notes what has come.
    pub(super) fn look(&mut self) {
        while let Some(came) = process::next_signal(&self.listener) {
            self.seen.insert(came.signal, Instant::now());
        }
    }

    /// Whether a signal has come after this time.
    pub(super) fn saw(&self, signal: i32, since: Instant) -> bool {
        self.seen.get(&signal).is_some_and(|at| *at > since)
    }

    /// Holds a signal back until it is clear whether its sender reached the whole group.
    pub(super) fn delay(&mut self, id: u64, signal: i32) {
        self.delayed.push((Instant::now() + WITNESS, id, signal));
    }

    pub(super) fn waits(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// Signals that have waited and that nobody else delivered.
    pub(super) fn due(&mut self) -> Vec<(u64, i32)> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.delayed).into_iter().partition(|(when, ..)| *when <= now);
        self.delayed = later;
        let unseen = |&(when, _, signal): &(Instant, u64, i32)| {
            self.seen.get(&signal).is_none_or(|at| when - *at >= 4 * WITNESS)
        };
        due.into_iter().filter(unseen).map(|(_, id, signal)| (id, signal)).collect()
    }
}

impl AsFd for Witness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Whether a process stands in this one's group.
pub(super) fn shares_group(pid: i32) -> bool {
    getpgid(Some(Pid::from_raw(pid))).is_ok_and(|group| group == getpgrp())
}

/// kill(2) of a child that is not reaped yet, so that its number is its own.
pub(super) fn send(pid: i32, signal: i32) {
    match Signal::try_from(signal) {
        Ok(signal) => drop(kill(Pid::from_raw(pid), signal)),
        // Real-time signals have no name here.
        Err(_) => process::kill_by_number(pid, signal),
    }
}

/// Takes this process, which stands by, out of the shell's group: what is sent to the shell's meanwhile would
/// wait in it for the command that it becomes.
pub(super) fn leave_group() {
    let own = Pid::from_raw(0);
    let _only_fails_for_leaders = setpgid(own, own);
}

/// Puts a child that has not executed yet into the group of the job that asked; false if that has
/// left this session.
pub(super) fn join_job(pid: i32, asker: i32) -> bool {
    let (pid, asker) = (Pid::from_raw(pid), Pid::from_raw(asker));
    let same_session = nix::unistd::getsid(Some(asker)) == nix::unistd::getsid(None);
    let joined = same_session && getpgid(Some(asker)).and_then(|group| setpgid(pid, group)).is_ok();
    if !joined {
        // It will begin a session, which who leads a group cannot.
        let _gone = setpgid(pid, getpgrp());
    }
    joined
}
