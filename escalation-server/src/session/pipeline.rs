//! The flow, and nothing else: intake, judge, settle, record, carry out, finish. Each stage takes
//! what the one before it returned.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use postern_shim::wire::{self, Answer, Kind, Notice};
use serde_json::json;
use tokio::io::unix::AsyncFd;

use super::intake::{self, Handles, Incoming};
use super::rerun::{self, Rerun};
use super::server::{Session, is_open};
use super::settle::{Facts, is_wider, settle};
use crate::flow::{ContextId, Decision, EnvironmentChanges, Execution, Outcome, Request, Status};
use crate::policy::{Subject, judge};
use crate::record;
use crate::runner::{Report, Target};
use crate::sys::{process, socket};

/// Serves one connection.
pub(super) async fn run(session: &Session, context: ContextId, connection: AsyncFd<OwnedFd>) {
    let began = Instant::now();
    let (mut request, handles) = match intake::read(session, context, &connection).await {
        Ok(Incoming::Exec(request, handles)) => (request, handles),
        Ok(Incoming::Hello) => return answer(&connection, Answer::Welcome),
        Err(error) => {
            if session.notes_malformed() {
                let body = json!({ "context": context.0, "reason": error.to_string() });
                let _unrecorded = session.recorder.session_event("malformed", &body).await;
            }
            return deny(&connection, &error.to_string());
        }
    };

    let given = request.given_path();
    let exe = request.attested.exe.as_ref();
    let judgement = judge(
        &session.policy,
        &Subject {
            given: &given,
            resolved: exe.map(|exe| exe.path.as_path()),
            given_holds: request.path_holds,
            agent_writable: exe.is_some_and(|exe| exe.agent_writable),
            argv: &request.argv,
        },
        &session.default_execution,
    );

    let asker = session.profile_of(context);
    let named = match &judgement.allowed.execution {
        Some(Execution::Permissions(name)) => session.named.get(name),
        _ => None,
    };
    let facts = Facts { asker: &asker, named, reach: &session.reach };
    let mut decision = settle(&request, &judgement, facts);
    let mut rerun = None;
    if let Decision::Escalate { execution, .. } = &decision {
        let wider = is_wider(execution, facts);
        match rerun::prepare(session, &request, &handles, execution, &judgement.allowed, wider) {
            Ok(ready) => rerun = Some(ready),
            Err(why) => decision = Decision::Deny { reason: why },
        }
    }

    let decide_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let changes = rerun.as_ref().map(|rerun| rerun.changes.clone()).unwrap_or_default();
    if let (Some(exe), Some(rerun)) = (&mut request.attested.exe, &rerun) {
        exe.blake3.clone_from(&rerun.blake3);
    }
    let body = body(session, &request, &judgement, &decision, &changes, decide_us);
    let ticket = match session.recorder.decided(&body, rerun.is_some()).await {
        Ok(ticket) => ticket,
        Err(error) => return deny(&connection, &format!("{}: {error}", wire_name(&request))),
    };

    let outcome = match (decision, rerun) {
        (Decision::Run { .. }, _) => {
            answer(&connection, Answer::Run);
            drop(connection);
            ran_in_place(handles.peer, began).await
        }
        (Decision::Escalate { .. }, Some(rerun)) => {
            let id = ticket.seq().and_then(|seq| u64::try_from(seq).ok()).unwrap_or(u64::MAX);
            elsewhere(session, id, rerun, &handles, &connection, began).await
        }
        (Decision::Escalate { reason, .. } | Decision::Deny { reason }, _) => {
            deny(&connection, &reason);
            Outcome::new(Status::Refused(libc::EACCES), micros(began))
        }
    };

    ticket.finished(&outcome);
}

fn body(
    session: &Session,
    request: &Request,
    judgement: &crate::flow::Judgement,
    decision: &Decision,
    changes: &EnvironmentChanges,
    decide_us: u64,
) -> serde_json::Value {
    let (strength, missing) = session.strength(match decision {
        Decision::Escalate { execution, .. } => Some(execution),
        _ => None,
    });
    record::decided(request, judgement, decision, changes, (&strength, &missing), decide_us)
}

fn wire_name(request: &Request) -> String {
    crate::flow::text::printable(request.path.as_slice())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Sends an answer. A peer that cannot take it is gone or hostile, and gets an end of file instead.
fn answer(connection: &AsyncFd<OwnedFd>, answer: Answer<'_>) {
    let mut frame = [0; wire::MAX_REASON + 64];
    if let Ok(length) = wire::encode(Kind::Answer, &answer, &mut frame) {
        let _gone = socket::send(connection.get_ref(), frame.get(..length).unwrap_or_default(), &[]);
    }
}

fn deny(connection: &AsyncFd<OwnedFd>, reason: &str) {
    let mut end = reason.len().min(wire::MAX_REASON - 16);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    answer(connection, Answer::Deny { reason: reason.get(..end).unwrap_or_default().as_bytes() });
}

/// The end of a command in the asker's own process. The kernel tells it once its parent has
/// reaped it, from Linux 6.15 on.
async fn ran_in_place(peer: OwnedFd, began: Instant) -> Outcome {
    let status = async {
        let peer = socket::watch(peer).ok()?;
        loop {
            let mut ready = peer.readable().await.ok()?;
            if let Some(status) = process::pidfd_exit_status(peer.get_ref()) {
                return Some(status);
            }
            if ready.ready().is_read_closed() {
                return None;
            }
            ready.clear_ready();
        }
    };
    let status = status.await.and_then(process::change);
    Outcome::new(named(status), micros(began))
}

fn named(change: Option<process::Change>) -> Status {
    match change {
        Some(process::Change::Exited(code)) => Status::Exited(code),
        Some(process::Change::Signaled(signal)) => Status::Signaled(signal),
        _ => Status::Unknown,
    }
}

/// Runs a command elsewhere, and tells the waiter all that happens to it.
async fn elsewhere(
    session: &Session,
    id: u64,
    rerun: Rerun,
    handles: &Handles,
    connection: &AsyncFd<OwnedFd>,
    began: Instant,
) -> Outcome {
    let failed = |what: String| {
        deny(connection, &what);
        Outcome::new(Status::Lost, micros(began))
    };
    let mut start = rerun.start;
    start.id = id;
    // A new sandbox is a context of its own, with a socket of its own.
    let gate = match (&start.target, start.gate) {
        (Target::Profile(name), Some(_)) => match session.open_context(name) {
            Ok(gate) => Some(gate),
            Err(error) => return failed(format!("open a request socket: {error}")),
        },
        (_, Some(_)) => match session.turn_gate() {
            Ok(gate) => Some(gate),
            Err(error) => return failed(format!("open a request socket: {error}")),
        },
        (_, None) => None,
    };
    let mut fds = vec![connection.get_ref().as_fd(), rerun.executable.as_fd()];
    if start.cwd == crate::runner::Cwd::Descriptor {
        match &handles.cwd {
            Some(cwd) => fds.push(cwd.as_fd()),
            None => return failed("its working directory cannot be opened".to_owned()),
        }
    }
    fds.extend(gate.as_ref().map(AsFd::as_fd));
    answer(connection, Answer::Escalate);
    let mut command = match session.link.start(start, &fds).await {
        Ok(command) => command,
        Err(error) => return failed(format!("the spawner is gone: {error}")),
    };
    drop((gate, rerun.executable));

    let mut fds = Vec::new();
    let mut started = false;
    let mut waiter_gone = false;
    loop {
        tokio::select! {
            report = command.report() => match report {
                Some(Report::Started { fds: handed, pid, .. }) => {
                    fds = handed;
                    started = true;
                    session.live.borrow_mut().insert(id, pid);
                    answer(connection, Answer::Started);
                }
                Some(Report::Refused { errno, .. }) => {
                    answer(connection, Answer::Refused { errno });
                    return Outcome::new(Status::Refused(errno), micros(began));
                }
                Some(Report::Failed { what, .. }) => return failed(what),
                Some(Report::Stopped { number, signal, .. }) => answer(connection, Answer::Stopped { number, signal }),
                Some(Report::Continued { number, .. }) => {
                    answer(connection, Answer::Continued { number });
                    // It may have been stopped while the command already went on.
                    let _gone = process::pidfd_signal(&handles.peer, libc::SIGCONT);
                }
                Some(Report::Ended { status, user_us, sys_us, maxrss_kb, .. }) => {
                    session.live.borrow_mut().remove(&id);
                    let change = process::change(status);
                    match change {
                        Some(process::Change::Exited(code)) => answer(connection, Answer::Exited { code }),
                        Some(process::Change::Signaled(signal)) => answer(connection, Answer::Signaled { signal }),
                        _ => {}
                    }
                    return Outcome {
                        user_us: Some(user_us),
                        sys_us: Some(sys_us),
                        maxrss_kb: Some(maxrss_kb),
                        fds,
                        ..Outcome::new(named(change), micros(began))
                    };
                }
                Some(Report::ShellStarted { .. } | Report::ShellEnded { .. }) => {}
                None => return failed("the spawner is gone, and the command with it".to_owned()),
            },
            // Until the command has started its own process reads what the waiter hands over.
            notice = next_notice(connection), if started && !waiter_gone => match notice {
                Ok(notice) => {
                    let stale = notice.signal == libc::SIGCONT && notice.stop == 0;
                    if !stale {
                        command.signal(notice.signal, notice.from_outside).await;
                    }
                }
                Err(_) => {
                    waiter_gone = true;
                    command.kill().await;
                }
            },
            () = is_open(&handles.peer), if !started && !waiter_gone => {
                waiter_gone = true;
                command.kill().await;
            }
        }
    }
}

async fn next_notice(connection: &AsyncFd<OwnedFd>) -> io::Result<Notice> {
    let mut buffer = [0; 128];
    loop {
        let mut ready = connection.readable().await?;
        match socket::receive(connection.get_ref(), &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) => return Err(error),
            Ok(message) => {
                let frame = buffer.get(..message.length).unwrap_or_default();
                return wire::decode(Kind::Notice, frame).map_err(io::Error::other);
            }
        }
    }
}
