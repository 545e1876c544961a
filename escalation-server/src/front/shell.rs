//! The front of a session: starts it, relays signals, and ends as the shell ended.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{getpgrp, tcgetpgrp};
use postern_shim::wire::Bytes;

use crate::runner::{FrontOrder, FrontReport, kill_descendants, terminated};
use crate::session::{Directories, Early, Options, Running, bytes, launch, prepare};
use crate::sys::process::{self, Change, Image};

/// The exit status when no session could be started.
const NOT_STARTED: i32 = 125;

/// The exit status when the session's time was over, as timeout(1) has it.
const TIMED_OUT: i32 = 124;

/// Runs a shell with these arguments, of which the first is its name; never returns.
///
/// Inside a session this is that session's own zsh, which a server has to confirm. Everywhere else
/// it starts a session of its own, and variables that say otherwise are ignored.
pub(crate) fn run(options: &Options, arguments: &[OsString], may_join: bool) -> i32 {
    let argv: Vec<Bytes> = arguments.iter().map(|argument| bytes(argument)).collect();
    let socket = std::env::var_os(postern_shim::SOCKET_VARIABLE);
    if may_join && postern_shim::client::inside(socket.as_ref().map(|text| text.as_bytes())) {
        return join(argv);
    }
    let running = Early::start().and_then(|early| {
        let prepared = prepare(options)?;
        prepared.said().iter().for_each(|what| warn(what));
        launch(early, prepared, argv)
    });
    match running {
        Ok(running) => relay(&running),
        Err(error) => refuse(&error.to_string()),
    }
}

#[expect(clippy::print_stderr, reason = "what was asked for is not given: who asked has to know")]
fn warn(what: &str) {
    eprintln!("postern: {what}");
}

#[expect(clippy::print_stderr, reason = "no session was started: this is the only place to say why")]
fn refuse(what: &str) -> i32 {
    eprintln!("postern: {what}");
    NOT_STARTED
}

/// Becomes the session's zsh.
fn join(argv: Vec<Bytes>) -> i32 {
    let zsh = match Directories::find() {
        Ok(directories) => directories.zsh(),
        Err(what) => return refuse(&what),
    };
    let path = CString::new(zsh.as_os_str().as_bytes()).unwrap_or_default();
    let error = become_program(&path, &argv, &environment());
    refuse(&format!("{}: {error}", zsh.display()))
}

/// This process's environment.
pub(super) fn environment() -> Vec<Bytes> {
    std::env::vars_os()
        .map(|(name, value)| Bytes([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect()
}

/// Executes a program in place of this one. Returns why that did not happen.
pub(super) fn become_program(path: &CStr, argv: &[Bytes], env: &[Bytes]) -> io::Error {
    // Ignored by Rust's runtime for its own sake.
    process::default_signal(libc::SIGPIPE);
    match terminated(argv).and_then(|argv| Ok((argv, terminated(env)?))) {
        Ok((argv, env)) => process::execute(&Image::Path(path), argv.as_slice(), env.as_slice()),
        Err(error) => error,
    }
}

fn relay(running: &Running) -> i32 {
    const RELAYED: [i32; 12] = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGCONT,
        libc::SIGPWR,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
    ];
    let _adopts = process::become_subreaper();
    let Ok(signals) = process::signals_as_messages(&RELAYED) else {
        return refuse("cannot listen to signals");
    };
    let stdin = io::stdin();
    let foreground = tcgetpgrp(&stdin).is_ok_and(|group| group == getpgrp());
    let (mut failure, mut timed_out) = (None, false);
    let mut server_open = true;
    loop {
        let mut polls = vec![
            PollFd::new(running.spawner.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        if server_open {
            polls.push(PollFd::new(running.server.as_fd(), PollFlags::POLLIN));
        }
        let _interrupted = poll(&mut polls, PollTimeout::NONE);
        // The server says why it could not start, or closes its end when it has.
        if server_open {
            match running.server.receive::<FrontReport>() {
                Ok(Some((FrontReport::Failed { what }, _))) => failure = Some(what),
                Ok(Some((FrontReport::TimedOut, _))) => timed_out = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => server_open = false,
            }
        }
        while let Some(came) = process::next_signal(&signals) {
            let order = FrontOrder::Signal { signal: came.signal, by_kernel: came.by_kernel };
            let _gone = running.spawner.send(&order, &[]);
        }
        match running.spawner.receive::<FrontReport>() {
            Ok(Some((FrontReport::Failed { what }, _))) => return refuse(&failure.unwrap_or(what)),
            Ok(Some((FrontReport::Stopped, _))) => stop(running, foreground, stdin.as_fd()),
            Ok(Some((FrontReport::Ended { status }, _))) => {
                take_back(foreground, stdin.as_fd());
                return if timed_out { TIMED_OUT } else { end_as(status) };
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The server's.
            Ok(Some((FrontReport::TimedOut, _))) => {}
            Ok(None) | Err(_) => {
                // The spawner is gone, and its sandboxes with it; what else it left is ours now.
                kill_descendants(std::process::id().cast_signed(), false);
                take_back(foreground, stdin.as_fd());
                return refuse(
                    &failure
                        .unwrap_or_else(|| "the session's spawner died, and the session with it".to_owned()),
                );
            }
        }
    }
}

/// The shell may have made its own group the terminal's foreground; whoever started us wants it
/// back where it was.
fn take_back(foreground: bool, terminal: BorrowedFd<'_>) {
    if foreground && tcgetpgrp(terminal).is_ok_and(|group| group != getpgrp()) {
        let _hung_up = process::take_terminal(terminal, getpgrp().as_raw());
    }
}

/// The shell stopped: so do we, and go on together.
fn stop(running: &Running, foreground: bool, terminal: BorrowedFd<'_>) {
    let group = tcgetpgrp(terminal);
    take_back(foreground, terminal);
    process::suffer(libc::SIGSTOP);
    if let (true, Ok(group)) = (foreground, group) {
        let _hung_up = process::take_terminal(terminal, group.as_raw());
    }
    let _gone = running.spawner.send(&FrontOrder::Continue, &[]);
}

/// The same exit status, or the same signal.
fn end_as(status: i32) -> i32 {
    match process::change(status) {
        Some(Change::Exited(code)) => code,
        Some(Change::Signaled(signal)) => {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            let _no_core = process::set_limit(libc::RLIMIT_CORE, none);
            process::suffer(signal);
            128 + signal
        }
        _ => NOT_STARTED,
    }
}
