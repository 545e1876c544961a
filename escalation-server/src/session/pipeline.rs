//! The flow, and nothing else: intake, judge, settle, ask, record, carry out, finish. Each stage takes
//! what the one before it returned.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use postern_shim::wire::Answer;
use serde_json::json;

use super::asker::Asker;
use super::elsewhere::Ended;
use super::grants::WISHED;
use super::intake::{self, Handles, Incoming};
use super::server::Session;
use super::settle::{Facts, Settled, is_wider, named, settle};
use super::{elsewhere, prompt, rerun};
use crate::flow::text::{printable, summary};
use crate::flow::{
    Allowed, ContextId, Decision, EnvironmentChanges, Execution, Judgement, Outcome, Request, Source, Status,
    Verdict,
};
use crate::policy::{Subject, judge};
use crate::record::{self, Ticket};
use crate::sys::{process, socket};

/// Serves one connection.
pub(super) async fn run(session: &Rc<Session>, context: ContextId, asker: Asker) {
    let began = Instant::now();
    let (mut request, handles) = match intake::read(session, context, &asker).await {
        Ok(Incoming::Exec(request, handles)) => (request, handles),
        Ok(Incoming::Hello) => return asker.answer(Answer::Welcome),
        Ok(Incoming::Plea(plea, peer)) => return session.plead(context, &plea, &peer, &asker).await,
        Err(error) => {
            if session.notes_malformed() {
                let body = json!({ "context": context.0, "reason": error.to_string() });
                let _unrecorded = session.recorder.session_event("malformed", &body);
            }
            return asker.deny(&error.to_string());
        }
    };

    let given = request.given_path();
    let subject = Subject::of(&request, &given);
    let policy = session.policy();
    let judgement = match session.stance_for(&request) {
        Ok(stance) => judge(&policy, &subject, &session.default_execution, &stance),
        Err(why) => refusal(why),
    };

    let tried = attempt(session, &mut request, &handles, &asker, &judgement, began).await;
    let (ticket, went) = match tried {
        Ok(tried) => tried,
        Err(what) => return asker.deny(&what),
    };
    match went {
        Went::InPlace => {
            let peer = handles.into_peer();
            drop((asker, request));
            ticket.finished(&ran_in_place(peer, began).await);
        }
        Went::Elsewhere(ended) => {
            let failed = failure(session, &judgement, &ended.outcome);
            if failed.is_none() {
                ended.answer.into_iter().for_each(|answer| asker.answer(answer));
            }
            ticket.finished(&ended.outcome);
            if let Some(how) = failed {
                let second = again(session, &mut request, &handles, &asker, how).await;
                let answer = second.map_or(ended.answer, |second| second.answer);
                answer.into_iter().for_each(|answer| asker.answer(answer));
            }
        }
        Went::Denied(reason) => {
            asker.deny(&reason);
            ticket.finished(&refused(began));
        }
    }
}

/// The judgement of a command that asks for what it cannot.
fn refusal(why: String) -> Judgement {
    Judgement {
        verdict: Verdict::Forbidden,
        source: Source::Heuristic { why },
        allowed: Allowed::default(),
        matched: Vec::new(),
        audit: false,
    }
}

/// What became of a judgement.
enum Went {
    InPlace,
    Elsewhere(Ended),
    Denied(String),
}

/// Settles, asks, records and carries out.
///
/// # Errors
/// If nothing can be recorded: nothing ran.
async fn attempt(
    session: &Session,
    request: &mut Request,
    handles: &Handles,
    asker: &Asker,
    judgement: &Judgement,
    began: Instant,
) -> Result<(Ticket, Went), String> {
    let context_profile = session.profile_of(request.context);
    let denies = session.turn_denies();
    let named = named(judgement.allowed.execution.as_ref(), denies);
    let named = named.and_then(|name| session.grants.profile(name));
    let turn = session.profile_of(ContextId::TURN);
    let granted = session.granted(request.context);
    let facts = Facts {
        asker: &context_profile,
        turn: &turn,
        named: named.as_deref(),
        denies,
        granted: granted.as_deref(),
        policy: &session.stance.policy,
    };
    let settled = settle(request, judgement, facts);
    let unrecorded = |error| format!("{}: {error}", printable(request.path.as_slice()));
    session.recorder.works().map_err(unrecorded)?;
    let execution = match &settled {
        Settled::Decided(Decision::Escalate { execution, .. }) => Some(execution),
        Settled::Decided(_) => None,
        Settled::Asks(question) => question.execution.as_ref(),
    };
    // Before anybody is asked: what is shown is what will run.
    let mut rerun = None;
    let mut stands = Ok(());
    if let Some(execution) = execution {
        let wider = is_wider(execution, facts);
        match rerun::prepare(session, request, handles, execution, judgement, wider) {
            Ok(ready) => rerun = Some(ready),
            Err(why) => stands = Err(why),
        }
    }
    let decided_us = micros(began);
    let (decision, approval) = match (stands, settled) {
        // No rule wants it to be a command of its own.
        (Err(reason), Settled::Decided(_)) if matches!(judgement.source, Source::Heuristic { .. }) => {
            (Decision::Run { reason }, None)
        }
        (Err(reason), _) => (Decision::Deny { reason }, None),
        (Ok(()), Settled::Decided(decision)) => (decision, None),
        (Ok(()), Settled::Asks(question)) => {
            if let Some(rerun) = &mut rerun {
                rerun.environment = Some(rerun.environment(session, request, judgement));
            }
            let (decision, approval) =
                prompt::ask(session, request, handles, judgement, rerun.as_ref(), &question, asker).await;
            (decision, Some(approval))
        }
    };
    let decision = opened(session, decision, request, handles.age).await;
    rerun = rerun.filter(|_| matches!(decision, Decision::Escalate { .. }));
    // Whoever asked goes on while the rest is done here: with handing over what a rerun gets, or in place, where a
    // record may follow. Where the rest fails the waiter is denied all the same.
    match &decision {
        Decision::Run { .. } => asker.answer(Answer::Run),
        Decision::Escalate { .. } => asker.answer(Answer::Escalate),
        Decision::Deny { .. } => {}
    }
    // Its process takes its time to get ready, and waits for the record then.
    let (decision, ordered) = match &mut rerun {
        None => (decision, None),
        Some(rerun) => match elsewhere::order(session, rerun, handles, asker).await {
            Ok(ordered) => (decision, Some(ordered)),
            Err(reason) => (Decision::Deny { reason }, None),
        },
    };
    if let (Some(exe), Some(rerun)) = (&mut request.attested.exe, &rerun) {
        exe.blake3.clone_from(&rerun.blake3);
    }
    let shown = rerun.as_mut().and_then(|rerun| rerun.environment.take());
    let computed = || rerun.as_ref().map(|rerun| rerun.environment(session, request, judgement));
    let environment = shown.or_else(computed).unwrap_or_default();
    let mut body = body(session, request, judgement, &decision, &environment.changes, decided_us);
    body["approval"] = approval.unwrap_or_default();
    body["script"] =
        rerun.as_ref().and_then(|rerun| Some(rerun.script.as_ref()?.recorded())).unwrap_or_default();
    let unrecorded = |error| format!("{}: {error}", printable(request.path.as_slice()));
    let ticket = session.recorder.decided(&body, ordered.is_some()).map_err(unrecorded)?;
    drop(body);

    let went = match (decision, ordered) {
        (Decision::Run { .. }, _) => Went::InPlace,
        (Decision::Escalate { .. }, Some(ordered)) => {
            Went::Elsewhere(elsewhere::run(ordered, &environment.variables, handles, asker, began).await)
        }
        (Decision::Escalate { reason, .. } | Decision::Deny { reason }, _) => Went::Denied(reason),
    };
    Ok((ticket, went))
}

/// An approved profile of its own becomes one that commands can run under, or the command is denied; so it
/// is where what was granted has ended while somebody was asked.
async fn opened(session: &Session, decision: Decision, request: &Request, age: u64) -> Decision {
    let deny = |why: &str| Decision::Deny { reason: format!("{} ({why})", summary(&request.argv)) };
    match &decision {
        Decision::Escalate { execution: Execution::Permissions(name), .. }
            if !session.still_granted(name, request.context) =>
        {
            deny("what was granted has ended; run it again")
        }
        Decision::Escalate { execution: Execution::Permissions(name), .. } if name.starts_with(WISHED) => {
            match session.open(name, Some(age)).await {
                Ok(()) => decision,
                Err(why) => deny(&why),
            }
        }
        _ => decision,
    }
}

/// How a command failed that was watched for it, safe to print. Its status is all that there is: what a
/// program prints, it may print to be let out.
fn failure(session: &Session, judgement: &Judgement, outcome: &Outcome) -> Option<String> {
    const DENIED: i32 = 126;
    const NOT_FOUND: i32 = 127;
    let watched = rerun::watches(session, judgement);
    match outcome.status {
        Status::Exited(code) if watched && !matches!(code, 0 | DENIED | NOT_FOUND) => {
            Some(format!("it ended with status {code} inside the sandbox, and would run a second time"))
        }
        Status::Signaled(libc::SIGSYS) if watched => {
            Some("it made a system call that the sandbox refuses, and would run a second time".to_owned())
        }
        _ => None,
    }
}

/// Runs a command once more, without the sandbox, if somebody says so; none if it did not run.
async fn again(
    session: &Session,
    request: &mut Request,
    handles: &Handles,
    asker: &Asker,
    how: String,
) -> Option<Ended> {
    if session.has_declined(request) {
        return None;
    }
    let judgement = Judgement {
        verdict: Verdict::Prompt,
        source: Source::Failure { how },
        allowed: Allowed { execution: Some(Execution::Unsandboxed), env_keep: Vec::new() },
        matched: Vec::new(),
        audit: false,
    };
    let began = Instant::now();
    let (ticket, went) = attempt(session, request, handles, asker, &judgement, began).await.ok()?;
    match went {
        Went::Elsewhere(ended) => {
            ticket.finished(&ended.outcome);
            Some(ended)
        }
        Went::Denied(_) | Went::InPlace => {
            ticket.finished(&refused(began));
            None
        }
    }
}

fn refused(began: Instant) -> Outcome {
    Outcome::new(Status::Refused(libc::EACCES), micros(began))
}

fn body(
    session: &Session,
    request: &Request,
    judgement: &Judgement,
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

pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// The end of a command in the asker's own process. The kernel tells it once its parent has
/// reaped it, from Linux 6.15 on.
async fn ran_in_place(peer: OwnedFd, began: Instant) -> Outcome {
    let status = async {
        let peer = socket::watch(peer).ok()?;
        // Older kernels tell nothing, and some do not even say that it has ended.
        if process::pidfd_parent(peer.get_ref()).is_none() {
            return process::pidfd_exit_status(peer.get_ref());
        }
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
    Outcome::new(ended_as(status), micros(began))
}

/// The status of a command whose wait status says this.
pub(super) fn ended_as(change: Option<process::Change>) -> Status {
    match change {
        Some(process::Change::Exited(code)) => Status::Exited(code),
        Some(process::Change::Signaled(signal)) => Status::Signaled(signal),
        _ => Status::Unknown,
    }
}
