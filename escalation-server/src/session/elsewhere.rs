//! Carries an escalation out: orders the command from the spawner and tells the waiter all that
//! happens to it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use postern_shim::wire::Answer;

use super::asker::Asker;
use super::grants::Starting;
use super::intake::Handles;
use super::pipeline::{ended_as, micros};
use super::rerun::Rerun;
use super::server::{Session, has_ended};
use crate::flow::{Outcome, Status};
use crate::runner::{self, Command, Cwd, Report, Target};
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

/// How a command ended, and what is left to be answered.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    /// None where its waiter has been told.
    pub(super) answer: Option<Answer<'static>>,
}

/// Runs a command elsewhere, to its end, which its waiter is still to be told.
pub(super) async fn run(
    session: &Session,
    id: u64,
    mut rerun: Rerun,
    handles: &Handles,
    asker: &Asker,
    began: Instant,
) -> Ended {
    let starting = session.grants.starting();
    let _room = rerun.keep_room();
    let told = rerun.start.tells_end;
    session.live.borrow_mut().insert(id, std::mem::take(&mut rerun.live));
    if let Some(script) = &rerun.script {
        session.scripts.borrow_mut().insert(id, Arc::clone(script));
    }
    let followed = match order(session, id, rerun, handles, asker).await {
        Ok(command) => follow(session, id, command, Some(starting), (handles, asker), began).await,
        Err(what) => Err(what),
    };
    let followed = followed.map(|ended| match ended.outcome.status {
        Status::Exited(_) | Status::Signaled(_) if told => Ended { answer: None, ..ended },
        _ => ended,
    });
    // Where it did not come so far that its calls were answered.
    session.scripts.borrow_mut().remove(&id);
    session.live.borrow_mut().remove(&id);
    followed.unwrap_or_else(|what| {
        asker.deny(&what);
        Ended { outcome: Outcome::new(Status::Lost, micros(began)), answer: None }
    })
}

/// Gives the order, with every descriptor that it needs.
async fn order(
    session: &Session,
    id: u64,
    rerun: Rerun,
    handles: &Handles,
    asker: &Asker,
) -> Result<Command, String> {
    let mut start = rerun.start;
    start.id = id;
    let gate = match (&start.target, start.gate) {
        (_, None) => None,
        // A new sandbox is a context of its own, with a socket of its own.
        (Target::Profile(name), Some(_)) => Some(session.open_context(name)),
        (_, Some(_)) => Some(session.turn_gate()),
    };
    let gate = gate.transpose().map_err(|error| format!("open a request socket: {error}"))?;
    // Last, so that it knows this command's own too.
    start.gates = session.gates().map_err(|error| format!("look at the request sockets: {error}"))?;
    let mut fds = vec![asker.as_fd(), rerun.executable.as_fd()];
    if start.cwd == Cwd::Descriptor {
        let cwd = handles.cwd.as_ref().ok_or("its working directory cannot be opened")?;
        fds.push(cwd.as_fd());
    }
    fds.extend(gate.as_ref().map(AsFd::as_fd));
    session.link.start(start, &fds).await.map_err(|error| format!("order the command: {error}"))
}

async fn follow(
    session: &Session,
    id: u64,
    mut command: Command,
    mut starting: Option<Starting>,
    (handles, asker): (&Handles, &Asker),
    began: Instant,
) -> Result<Ended, String> {
    let mut fds = Vec::new();
    let mut stops = 0;
    let mut started = false;
    let mut waiter_gone = false;
    let mut waiter_ended = std::pin::pin!(has_ended(&handles.peer));
    loop {
        tokio::select! {
            report = command.report() => match report {
                Some(Report::Started { fds: handed, pid, .. }) => {
                    fds = handed;
                    started = true;
                    drop(starting.take());
                    if let Some(live) = session.live.borrow_mut().get_mut(&id) {
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
                Some(Report::Ended { status, user_us, sys_us, maxrss_kb, .. }) => {
                    let change = process::change(status);
                    let answer = change.and_then(runner::answer);
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
