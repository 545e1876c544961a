//! What becomes of commands: stops, continues and ends, signals to them, and the end of it all.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::commands::{SHELL, Stage};
use super::enter::readable;
use super::handover::{answer, tell_waiter};
use super::message::{FromInit, FrontReport, Report, ToInit};
use super::signals::{send, shares_group};
use super::spawner::{LEFT, STARTING, Spawner};
use super::tree::{kill_descendants, signal_group_of};
use crate::sys::process::{self, Change, Usage};

// Changes of children.
impl Spawner {
    pub(super) fn reap(&mut self) {
        // A child may end before it is known which it was.
        let ids: Vec<u64> = self.commands.reporting().map(|(id, _)| id).collect();
        for id in ids {
            self.take_report(id);
        }
        while let Ok(Some((pid, status, usage))) = process::wait_any(true) {
            self.changed(pid, status, usage);
        }
    }

    pub(super) fn changed(&mut self, pid: i32, status: i32, usage: Usage) {
        let Some(change) = process::change(status) else { return };
        if matches!(change, Change::Exited(_) | Change::Signaled(_))
            && self.commands.sandbox_ended(pid).is_some()
        {
            return;
        }
        let Some(id) = self.commands.changed(pid, (status, usage)) else { return };
        // The exec may have happened and its report not been read.
        self.take_report(id);
        // What is told here supposes that the start was. An end tells both.
        if id == SHELL || matches!(change, Change::Stopped(_) | Change::Continued) {
            self.tell_started(id);
        }
        let Some(command) = self.commands.get_mut(id) else { return };
        match change {
            Change::Stopped(signal) => {
                command.stopped = true;
                command.stops += 1;
                let number = command.stops;
                if id == SHELL {
                    self.tell_front(&FrontReport::Stopped);
                } else {
                    self.tell_server(&Report::Stopped { id, number, signal });
                }
            }
            Change::Continued => {
                command.stopped = false;
                let number = command.stops;
                if id != SHELL {
                    self.tell_server(&Report::Continued { id, number });
                }
            }
            Change::Exited(_) | Change::Signaled(_) => self.ended(id, status, usage),
        }
    }

    /// Waits for the end of every sandbox in which nothing runs any more: whoever started the shell
    /// finds nothing left of it when the shell has ended.
    fn await_sandboxes(&mut self) {
        const PATIENCE: Duration = Duration::from_millis(100);
        let deadline = Instant::now() + PATIENCE;
        let mut lingering = Vec::new();
        loop {
            let finished = self.commands.finished();
            let Some((init, control)) = finished.into_iter().find(|(init, _)| !lingering.contains(init))
            else {
                return;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polls = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
            let _interrupted = poll(&mut polls, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
            match control.receive::<FromInit>() {
                Ok(Some((FromInit::Empty, _))) => drop(self.commands.sandbox_ended(init)),
                Ok(Some((news @ (FromInit::Covered { .. } | FromInit::Uncovered { .. }), _))) => {
                    self.pass_on(news);
                }
                _ => lingering.push(init),
            }
        }
    }

    /// Waits until what somebody has uncovered is covered again, in all sandboxes or only in the one with this
    /// first process: before anybody learns that a command has ended, which may have done it, and before one goes
    /// there. A sandbox whose first process does not answer ends: nobody would know what is open in it.
    pub(super) fn recover(&mut self, only: Option<i32>) {
        const PATIENCE: Duration = Duration::from_secs(5);
        self.recoveries = self.recoveries.wrapping_add(1);
        let number = self.recoveries;
        for (init, control) in self.commands.changed_sandboxes(only) {
            let deadline = Instant::now() + PATIENCE;
            let asked = control.send(&ToInit::Recover(number), &[]).is_ok();
            let answered = asked
                && loop {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if !readable(control, Some(left)).unwrap_or(false) {
                        break false;
                    }
                    match control.receive::<FromInit>() {
                        Ok(Some((FromInit::Recovered(of), _))) if of == number => break true,
                        Ok(Some((news, _))) => self.pass_on(news),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Ok(None) | Err(_) => break false,
                    }
                };
            if !answered {
                send(init, libc::SIGKILL);
            }
        }
    }

    fn ended(&mut self, id: u64, status: i32, usage: Usage) {
        let Some(command) = self.commands.forget(id) else { return };
        self.recover(None);
        if id == SHELL {
            self.shell_ended = true;
            self.hang_up = Some(Instant::now() + LEFT);
            self.let_kept_go();
            self.await_sandboxes();
        }
        if command.stage == Stage::Over {
            return;
        }
        if id == SHELL {
            self.tell_server(&Report::ShellEnded { status });
            self.tell_front(&FrontReport::Ended { status });
        } else {
            // Somebody may wait for that, and nobody for what the server is told.
            if let Some((waiter, answer)) = command.waiter.zip(process::change(status).and_then(answer)) {
                tell_waiter(&waiter, answer);
            }
            let Usage { user_us, sys_us, maxrss_kb } = usage;
            self.tell_server(&Report::Ended { id, fds: command.fds, status, user_us, sys_us, maxrss_kb });
        }
    }
}

// Signals and ends.
impl Spawner {
    pub(super) fn in_our_group(&self, id: u64) -> bool {
        self.commands.get(id).and_then(|command| command.pid).is_some_and(shares_group)
    }

    /// Whether a signal that its waiter kept for it has reached a command by its group. Before it is known to
    /// run the waiter keeps all.
    pub(super) fn has_had(&mut self, id: u64, signal: i32) -> bool {
        let joined = self.commands.get(id).and_then(|command| command.joined);
        let Some(joined) = joined.filter(|joined| joined.elapsed() < STARTING) else { return false };
        self.witness.look();
        self.in_our_group(id) && self.witness.saw(signal, joined)
    }

    pub(super) fn signal(&mut self, id: u64, signal: i32) {
        let Some(command) = self.commands.get_mut(id) else { return };
        match command.pid {
            None => command.signals.push(signal),
            // What the terminal stopped was the whole job. Its shell reached the asker, and from there
            // this came.
            Some(pid) if signal == libc::SIGCONT && command.stopped && id != SHELL => {
                signal_group_of(pid, Signal::SIGCONT, command.asker);
            }
            Some(pid) => send(pid, signal),
        }
    }

    pub(super) fn kill(&mut self, id: u64) {
        let Some(command) = self.commands.get_mut(id) else { return };
        match (command.init, command.pid) {
            (Some(init), _) => {
                self.commands.doom(init);
                send(init, libc::SIGKILL);
            }
            (None, Some(pid)) => kill_descendants(pid, true),
            (None, None) => command.doomed = true,
        }
    }

    /// Ends what runs under these profiles, and what it has left behind.
    pub(super) fn lapse(&mut self, profiles: &[String]) {
        // One that is ordered and not started yet finds none.
        self.standbys.forget(profiles);
        let (commands, sandboxes) = self.commands.under(profiles);
        for id in commands {
            self.kill(id);
        }
        for init in sandboxes {
            self.commands.doom(init);
            send(init, libc::SIGKILL);
        }
    }

    pub(super) fn end(&mut self) {
        if self.ending.is_some() {
            return;
        }
        self.ending = Some(Instant::now());
        for pid in self.commands.pids() {
            send(pid, libc::SIGHUP);
            send(pid, libc::SIGCONT);
        }
    }
}
