//! What events say, in names that stay. `postern log --json` joins them to one object a line.

use postern_shim::wire::{Bytes, Layer};
use serde_json::{Map, Value, json};

use super::secrets::{redact, redact_text};
use crate::flow::text::{list_to_json, summary, to_json};
use crate::flow::{Decision, EnvironmentChanges, Execution, Judgement, Outcome, Request, Source, Status};

/// Bytes of an argument vector that are kept; of longer ones, the length and the hash are.
const KEPT: usize = 16 * 1024;

fn argv(request: &Request) -> Value {
    let redacted = redact(&request.argv);
    let bytes: usize = redacted.iter().map(|word| word.as_slice().len() + 1).sum();
    if bytes <= KEPT {
        return list_to_json(&redacted);
    }
    let mut hasher = blake3::Hasher::new();
    for word in &request.argv {
        hasher.update(word.as_slice()).update(&[0]);
    }
    let head: Vec<_> = redacted.into_iter().take(8).filter(|word| word.as_slice().len() < 256).collect();
    json!({
        "head": list_to_json(&head),
        "words": request.argv.len(),
        "bytes": bytes,
        "blake3": hasher.finalize().to_hex().as_str(),
    })
}

/// Names of variables, as many and as much of them as a reader has use for.
fn names(list: &[Bytes]) -> Value {
    const MOST: usize = 64;
    const LONGEST: usize = 128;
    let mut kept: Vec<Value> = list
        .iter()
        .take(MOST)
        .map(|name| to_json(name.as_slice().get(..LONGEST).unwrap_or(name.as_slice())))
        .collect();
    if list.len() > MOST {
        kept.push(Value::from(format!("and {} more", list.len() - MOST)));
    }
    Value::Array(kept)
}

fn execution(execution: &Execution) -> Value {
    match execution {
        Execution::Unsandboxed => json!("unsandboxed"),
        Execution::TurnDefault => json!("turn_default"),
        Execution::Permissions(profile) => json!({ "permissions": profile }),
    }
}

/// The reason, which may begin with the command.
fn reason(request: &Request, decision: &Decision) -> String {
    decision.reason().replace(&summary(&request.argv), &summary(&redact(&request.argv)))
}

/// The arguments of a shell, among which may be a whole script, fit to be kept.
pub(crate) fn shell_arguments(argv: &[Bytes]) -> Value {
    let kept: Vec<Bytes> = redact(argv).iter().map(|word| Bytes(redact_text(word.as_slice()))).collect();
    list_to_json(&kept)
}

/// The body of a `decided` event. `sandbox` is what enforces the place that the command runs in.
pub(crate) fn decided(
    request: &Request,
    judgement: &Judgement,
    decision: &Decision,
    env: &EnvironmentChanges,
    sandbox: (&str, &[&str]),
    decide_us: u64,
) -> Value {
    let attested = &request.attested;
    let exe = attested.exe.as_ref().map(|exe| {
        json!({
            "path": to_json(exe.path.as_os_str().as_encoded_bytes()),
            "dev": exe.file.dev,
            "ino": exe.file.ino,
            "mode": exe.file.mode,
            "uid": exe.file.uid,
            "size": exe.file.size,
            "blake3": exe.blake3,
            "agent_writable": exe.agent_writable,
        })
    });
    let rule = match &judgement.source {
        Source::Rule(rule) => {
            json!({ "file": rule.file, "line": rule.line, "justification": rule.justification })
        }
        Source::Skill(_) | Source::Failure { .. } | Source::Heuristic { .. } => Value::Null,
    };
    let skill = match &judgement.source {
        Source::Skill(skill) => {
            json!({ "name": skill.name, "directory": to_json(skill.directory.as_os_str().as_encoded_bytes()) })
        }
        _ => Value::Null,
    };
    let shell = &request.shell;
    json!({
        "turn": 1,
        "context": request.context.0,
        "parent": Value::Null,
        "attested": {
            "pid": attested.pid,
            "ppid": attested.ppid,
            "uid": attested.uid,
            "exe": exe,
            "cwd": attested.cwd.as_ref().map(|cwd| to_json(cwd.path.as_os_str().as_encoded_bytes())),
        },
        "claimed": {
            "argv": argv(request),
            "path": to_json(request.path.as_slice()),
            "layer": match shell.layer {
                Layer::Zsh => "zsh",
                Layer::Exec => "exec",
            },
            "context": {
                "script": to_json(shell.script.as_slice()),
                "line": shell.line,
                "functions": list_to_json(&shell.functions),
                "job": to_json(&redact_text(shell.job.as_slice())),
            },
        },
        "judgement": {
            "decision": judgement.verdict.name(),
            "source": match &judgement.source {
                Source::Rule(_) => "rule",
                Source::Skill(_) => "skill",
                Source::Failure { .. } => "failure",
                Source::Heuristic { .. } => "heuristic",
            },
            "rule": rule,
            "skill": skill,
            "matched": judgement.matched,
            "audit": judgement.audit,
        },
        "decision": decision.name(),
        "reason": reason(request, decision),
        "execution": match decision {
            Decision::Escalate { execution: place, .. } => execution(place),
            _ => Value::Null,
        },
        "env": { "kept": names(&env.kept), "dropped": names(&env.dropped) },
        "sandbox": { "strength": sandbox.0, "missing": sandbox.1 },
        "approval": Value::Null,
        "decide_us": decide_us,
    })
}

/// The body of a `finished` event.
pub(crate) fn finished(outcome: &Outcome) -> Value {
    let (status, code, signal) = match outcome.status {
        Status::Exited(code) => ("exited", Some(code), None),
        Status::Signaled(signal) => ("signaled", None, Some(signal)),
        Status::Refused(errno) => ("refused", Some(errno), None),
        Status::Lost => ("lost", None, None),
        Status::Unknown => ("unknown", None, None),
    };
    let fds: Map<String, Value> =
        outcome.fds.iter().map(|(number, kind)| (number.to_string(), Value::from(kind.as_str()))).collect();
    json!({
        "outcome": {
            "status": status,
            "code": code,
            "signal": signal,
            "wall_us": outcome.wall_us,
            "user_us": outcome.user_us,
            "sys_us": outcome.sys_us,
            "maxrss_kb": outcome.maxrss_kb,
        },
        "fds": if fds.is_empty() { Value::Null } else { Value::Object(fds) },
    })
}
