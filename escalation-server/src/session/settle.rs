//! From judgement to decision. Pure, and never an error: what cannot be done is denied.

use std::path::Path;

use crate::flow::text::{printable, summary};
use crate::flow::{ContextId, Decision, Execution, Judgement, Request, Shape, Source, Verdict};
use crate::profile::{EVERYTHING, Resolved};

/// What the decision depends on besides the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// What the asker's context may touch.
    pub(super) asker: &'a Resolved,
    /// The profile that the judgement names, if it names one.
    pub(super) named: Option<&'a Resolved>,
    /// Whether the turn denies anything.
    pub(super) denies: bool,
}

/// What an execution becomes where the turn denies something: it stays denied everywhere, so nothing
/// runs without a sandbox.
pub(super) fn held(execution: &Execution, facts: Facts<'_>) -> Execution {
    match execution {
        Execution::Unsandboxed if facts.denies => Execution::Permissions(EVERYTHING.to_owned()),
        other => other.clone(),
    }
}

/// Whether an execution gives anything that the asker does not have.
pub(super) fn is_wider(execution: &Execution, facts: Facts<'_>) -> bool {
    match execution {
        Execution::Unsandboxed => !facts.asker.unrestricted,
        Execution::TurnDefault => false,
        Execution::Permissions(_) => facts.named.is_none_or(|profile| !profile.within(facts.asker)),
    }
}

pub(super) fn settle(request: &Request, judgement: &Judgement, facts: Facts<'_>) -> Decision {
    let deny = |why: String| Decision::Deny { reason: format!("{} ({why})", summary(&request.argv)) };
    let rule = match &judgement.source {
        Source::Heuristic => return Decision::Run { reason: "no rule matches".to_owned() },
        Source::Rule(rule) => rule,
    };
    let place = format!("{}:{}", rule.file, rule.line);
    let because = rule
        .justification
        .as_ref()
        .map(|text| format!(": {}", printable(text.as_bytes())))
        .unwrap_or_default();
    let prompt =
        |why: &str| deny(format!("{why}, and nobody can approve in this session; rule {place}{because}"));
    match judgement.verdict {
        Verdict::Forbidden => return deny(format!("forbidden by rule {place}{because}")),
        Verdict::Prompt => return prompt("needs an approval"),
        Verdict::Allow => {}
    }
    let Some(execution) = &judgement.allowed.execution else {
        return deny("the rule gives no execution".to_owned());
    };
    let execution = &held(execution, facts);
    let wider = is_wider(execution, facts);
    if request.context != ContextId::TURN {
        return match execution {
            Execution::Permissions(name) if *name == facts.asker.name => {
                Decision::Run { reason: format!("already under {execution}, rule {place}") }
            }
            _ if wider || *execution == Execution::TurnDefault => prompt(&format!(
                "asked from permissions({}), {execution} needs an approval",
                facts.asker.name
            )),
            _ => Decision::Run {
                reason: format!("asked from permissions({}), rule {place}", facts.asker.name),
            },
        };
    }
    if facts.asker.unrestricted && !matches!(execution, Execution::Permissions(_)) {
        return Decision::Run { reason: format!("the turn has no sandbox to leave, rule {place}") };
    }
    let Some(exe) = &request.attested.exe else {
        return deny("its file is not seen outside the sandbox, so it cannot be executed there".to_owned());
    };
    if let Shape::Script { named, interpreter } = &exe.shape
        && *execution != Execution::TurnDefault
    {
        if exe.agent_writable {
            return deny(format!(
                "the sandbox can write this script, so what was judged might not be what runs as {execution}; rule {place}"
            ));
        }
        if interpreter.is_none() {
            return deny(format!(
                "the sandbox can write its interpreter {}, or what leads to it; rule {place}",
                printable(named.as_os_str().as_encoded_bytes())
            ));
        }
    }
    if wider && exe.agent_writable {
        return prompt(&format!(
            "the sandbox can write {}, so a rule alone cannot let it run as {execution}",
            printable(exe.path.as_os_str().as_encoded_bytes())
        ));
    }
    if *execution != Execution::TurnDefault {
        let Some(cwd) = &request.attested.cwd else {
            return deny("its working directory is not the same outside the sandbox".to_owned());
        };
        if !readable(facts.asker, &cwd.path) {
            return deny("its working directory is not readable inside the sandbox".to_owned());
        }
    }
    Decision::Escalate { execution: execution.clone(), reason: format!("rule {place}{because}") }
}

fn readable(asker: &Resolved, path: &Path) -> bool {
    asker.access(path).is_some()
}
