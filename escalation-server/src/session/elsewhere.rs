//! Carries an escalation out: orders the command from the spawner, lets it go once it is on record, and
//! tells the waiter all that happens to it but, mostly, its end, and of a short one its start.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_shim::wire::{Answer, Bytes};

use super::asker::Asker;
use super::grants::Starting;
use super::intake::Handles;
use super::pipeline::{ended_as, micros};
use super::rerun::{Rerun, Room};
use super::server::{Session, has_ended};
use crate::flow::{Outcome, Status};
use crate::runner::{self, Channel, Command, Cwd, Go, Inherited, Report, Target, terminated};
use crate::sys::process;

/// Signals that a waiter may pass on: what a process can catch and people send.
const PASSED_ON: [i32; 18] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    libc::SIGIO,
    libc::SIGPWR,
];

/// So long nobody looks whether a waiter lives whose command starts: longer than the spawner keeps a start
/// to itself, or each command that takes longer than that would be watched.
const SOON: Duration = Duration::from_millis(5);

/// How a command ended, and what is left to be answered.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    /// None where its waiter has been told.
    pub(super) answer: Option<Answer<'static>>,
}

/// A command whose process gets ready, and which is not on record yet. Dropped it does not run: that
/// process sees the end of `go`, and ends.
#[derive(Debug)]
pub(super) struct Ordered<'a> {
    listed: Listed<'a>,
    command: Command,
    go: Channel,
    inherited: Inherited,
    starting: Starting,
    /// Whether the spawner tells its waiter how it ended.
    told: bool,
    room: Option<Room>,
}

/// While this lives a command is among those that the session knows of.
#[derive(Debug)]
struct Listed<'a> {
    session: &'a Session,
    id: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        // Taken already where it came so far that its calls were answered.
        self.session.scripts.borrow_mut().remove(&self.id);
        self.session.live.borrow_mut().remove(&self.id);
    }
}

/// Gives the order, with every descriptor that it needs.
///
/// # Errors
/// Why nothing runs.
pub(super) async fn order<'a>(
    session: &'a Session,
    rerun: &mut Rerun,
    handles: &Handles,
    asker: &Asker,
) -> Result<Ordered<'a>, String> {
    let starting = session.grants.starting();
    let mut start = rerun.start.clone();
    start.id = session.next_command();
    let (id, told) = (start.id, start.tells_end);
    let gate = match (&start.target, start.gate) {
        (_, None) => None,
        // A new sandbox is a context of its own, with a socket of its own.
        (Target::Profile(name), Some(_)) => Some(session.open_context(name)),
        (_, Some(_)) => Some(session.turn_gate()),
    };
    let gate = gate.transpose().map_err(|error| format!("open a request socket: {error}"))?;
    // Last, so that it knows this command's own too.
    start.gates = session.gates().map_err(|error| format!("look at the request sockets: {error}"))?;
    let (go, goes) = Channel::pair().map_err(|error| format!("make a socket: {error}"))?;
    let mut fds = vec![asker.as_fd(), rerun.executable.as_fd(), goes.as_fd()];
    if start.cwd == Cwd::Descriptor {
        let cwd = handles.cwd.as_ref().ok_or("its working directory cannot be opened")?;
        fds.push(cwd.as_fd());
    }
    fds.extend(gate.as_ref().map(AsFd::as_fd));
    session.live.borrow_mut().insert(id, std::mem::take(&mut rerun.live));
    if let Some(script) = &rerun.script {
        session.scripts.borrow_mut().insert(id, Arc::clone(script));
    }
    let listed = Listed { session, id };
    let command =
        session.link.start(start, &fds).await.map_err(|error| format!("order the command: {error}"))?;
    // The kernel mostly wakes a process where the one runs that woke it. There the spawner would wait until this one
    // sleeps, and the command with it, which needs what follows here only later.
    std::thread::yield_now();
    let inherited = inherited(handles).map_err(|error| format!("read what it inherits: {error}"))?;
    Ok(Ordered { listed, command, go, inherited, starting, told, room: rerun.keep_room() })
}

/// What a plain exec would keep of a waiter's process and it cannot set as it likes. It only hands over now; one that
/// changes it meanwhile changes its own.
///
/// # Errors
/// If it has ended. Its number may have been another's then.
fn inherited(waiter: &Handles) -> std::io::Result<Inherited> {
    let limits = process::limits(waiter.pid)?;
    let nice = process::nice(waiter.pid);
    if process::pidfd_ended(&waiter.peer) {
        return Err(ErrorKind::NotFound.into());
    }
    Ok(Inherited { limits: limits.iter().map(|limit| (limit.rlim_cur, limit.rlim_max)).collect(), nice })
}

/// Runs what was ordered, to its end. What is returned says what its waiter is still to be told.
pub(super) async fn run(
    ordered: Ordered<'_>,
    environment: &[Bytes],
    handles: &Handles,
    asker: &Asker,
    began: Instant,
) -> Ended {
    follow(ordered, environment, (handles, asker), began).await.unwrap_or_else(|what| {
        asker.deny(&what);
        Ended { outcome: Outcome::new(Status::Lost, micros(began)), answer: None }
    })
}

async fn follow(
    ordered: Ordered<'_>,
    environment: &[Bytes],
    (handles, asker): (&Handles, &Asker),
    began: Instant,
) -> Result<Ended, String> {
    let Ordered { listed, mut command, go, inherited, starting, told, room: _room } = ordered;
    let Listed { session, id } = &listed;
    let env = terminated(environment).map_err(|error| format!("its environment: {error}"))?;
    match go.send(&Go { env, inherited }, &[]) {
        // One that has gone has reported why.
        Err(error) if !matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            return Err(format!("let the command go: {error}"));
        }
        _ => drop(go),
    }
    let mut starting = Some(starting);
    let mut stops = 0;
    let mut started = false;
    let mut waiter_gone = false;
    let mut waiter_ended = std::pin::pin!(async {
        // Most commands run before that.
        tokio::time::sleep(SOON).await;
        has_ended(&handles.peer).await;
    });
    loop {
        tokio::select! {
            report = command.report() => match report {
                Some(Report::Started { pid, .. }) => {
                    started = true;
                    drop(starting.take());
                    if let Some(live) = session.live.borrow_mut().get_mut(id) {
                        live.pid = Some(pid);
                    }
                    asker.answer(Answer::Started);
                }
                Some(Report::Refused { errno, .. }) => {
                    let outcome = Outcome::new(Status::Refused(errno), micros(began));
                    return Ok(Ended { outcome, answer: Some(Answer::Refused { errno }) });
                }
                Some(Report::Failed { what, .. }) => return Err(what),
                Some(Report::Stopped { number, signal, .. }) => {
                    stops = number;
                    asker.answer(Answer::Stopped { number, signal });
                }
                Some(Report::Continued { number, .. }) => {
                    asker.answer(Answer::Continued { number });
                    // It may have been stopped while the command already went on.
                    if runner::is_stopped(handles.pid) {
                        let _gone = process::pidfd_signal(&handles.peer, libc::SIGCONT);
                    }
                }
                Some(Report::Ended { fds, status, user_us, sys_us, maxrss_kb, .. }) => {
                    let change = process::change(status);
                    let answer = change.filter(|_| !told).and_then(runner::answer);
                    let outcome = Outcome {
                        user_us: Some(user_us),
                        sys_us: Some(sys_us),
                        maxrss_kb: Some(maxrss_kb),
                        fds,
                        ..Outcome::new(ended_as(change), micros(began))
                    };
                    return Ok(Ended { outcome, answer });
                }
                // About the session, not this command.
                Some(
                    Report::Covered { .. }
                    | Report::Uncovered { .. }
                    | Report::Served { .. }
                    | Report::ShellStarted { .. }
                    | Report::ShellEnded { .. },
                ) => {}
                None => return Err("the spawner is gone, and the command with it".to_owned()),
            },
            // Until the command has started its own process reads what the waiter hands over.
            notice = asker.notice(), if started && !waiter_gone => match notice {
                Ok(notice) => {
                    let continues = notice.signal == libc::SIGCONT;
                    // From outside comes the echo of what continued the whole group, too.
                    let stale = continues && notice.from_outside && notice.stop != stops;
                    if !stale && PASSED_ON.contains(&notice.signal) {
                        command.signal(notice.signal, notice.from_outside).await;
                    }
                    if continues {
                        asker.answer(Answer::Continued { number: stops });
                    }
                }
                Err(_) => {
                    waiter_gone = true;
                    command.kill().await;
                }
            },
            () = &mut waiter_ended, if !started && !waiter_gone => {
                waiter_gone = true;
                command.kill().await;
            }
        }
    }
}
