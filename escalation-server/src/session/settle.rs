//! From judgement to decision. Pure, and never an error: what cannot be done is denied.

use std::path::Path;

use crate::flow::text::{printable, summary};
use crate::flow::{ContextId, Decision, Execution, Judgement, Request, Shape, Source, Verdict};
use crate::policy::{ApprovalPolicy, Cause};
use crate::profile::{EVERYTHING, Resolved};

/// What the decision depends on besides the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// What the asker's context may touch.
    pub(super) asker: &'a Resolved,
    /// What the turn may.
    pub(super) turn: &'a Resolved,
    /// The profile that the judgement names, if it names one.
    pub(super) named: Option<&'a Resolved>,
    /// Whether the turn denies anything.
    pub(super) denies: bool,
    /// What was granted to the turn, where the asker belongs to it.
    pub(super) granted: Option<&'a Resolved>,
    pub(super) policy: &'a ApprovalPolicy,
}

impl Facts<'_> {
    /// Whether an execution is what the turn has by now.
    fn is_granted(self, execution: &Execution) -> bool {
        let name = self.granted.map(|granted| &granted.name);
        matches!(execution, Execution::Permissions(profile) if Some(profile) == name)
    }
}

/// The name of the profile that an execution names, or becomes by what the turn denies.
pub(super) fn named(execution: Option<&Execution>, denies: bool) -> Option<&str> {
    match execution {
        Some(Execution::Permissions(name)) => Some(name),
        Some(Execution::Unsandboxed) if denies => Some(EVERYTHING),
        _ => None,
    }
}

/// What an execution becomes where the turn denies something: it stays denied everywhere, so nothing
/// runs without a sandbox.
fn held(execution: &Execution, facts: Facts<'_>) -> Execution {
    match execution {
        Execution::Unsandboxed if facts.denies => Execution::Permissions(EVERYTHING.to_owned()),
        other => other.clone(),
    }
}

/// Whether an execution gives anything that the asker does not have.
pub(super) fn is_wider(execution: &Execution, facts: Facts<'_>) -> bool {
    match execution {
        Execution::Unsandboxed => !facts.asker.unrestricted,
        Execution::TurnDefault => !facts.turn.within(facts.asker),
        // It was given to whatever the turn runs.
        Execution::Permissions(_) if facts.is_granted(execution) => false,
        Execution::Permissions(_) => facts.named.is_none_or(|profile| !profile.within(facts.asker)),
    }
}

/// What becomes of a judgement.
#[derive(Debug)]
pub(super) enum Settled {
    Decided(Decision),
    /// Somebody has to be asked.
    Asks(Question),
}

/// What is asked, and what happens after a yes.
#[derive(Debug)]
pub(super) struct Question {
    /// None: in place.
    pub(super) execution: Option<Execution>,
    /// Whether that gives anything that the asker does not have.
    pub(super) wider: bool,
    /// For people, safe to print.
    pub(super) why: String,
}

impl Question {
    /// The decision after a yes.
    pub(super) fn approved(&self, by: &str) -> Decision {
        let reason = format!("approved by {by}: {}", self.why);
        match &self.execution {
            None => Decision::Run { reason },
            Some(execution) => Decision::Escalate { execution: execution.clone(), reason },
        }
    }
}

pub(super) fn settle(request: &Request, judgement: &Judgement, facts: Facts<'_>) -> Settled {
    let deny = |why: String| {
        Settled::Decided(Decision::Deny { reason: format!("{} ({why})", summary(&request.argv)) })
    };
    let run = |reason: String| Settled::Decided(Decision::Run { reason });
    let asks = |cause, question: Question| match facts.policy.may_ask(cause) {
        Ok(()) => Settled::Asks(question),
        Err(setting) => deny(format!("{}; {setting}", question.why)),
    };
    let (cause, place, because) = match &judgement.source {
        Source::Heuristic { why } => (Cause::Command, printable(why.as_bytes()), String::new()),
        Source::Failure { how } => (Cause::Command, how.clone(), String::new()),
        Source::Skill(skill) => {
            (Cause::Skill, format!("the skill {}", printable(skill.name.as_bytes())), String::new())
        }
        Source::Rule(rule) => {
            let justification = rule.justification.as_ref();
            let because = justification.map(|text| format!(": {}", printable(text.as_bytes())));
            (Cause::Rule, format!("rule {}:{}", rule.file, rule.line), because.unwrap_or_default())
        }
    };
    let mut why = match (judgement.verdict, cause) {
        (Verdict::Forbidden, _) => return deny(format!("forbidden by {place}{because}")),
        (Verdict::Prompt, Cause::Rule) => Some(format!("{place} wants an approval{because}")),
        (Verdict::Prompt, Cause::Skill) => Some(format!("{place} declares permissions of its own")),
        (Verdict::Prompt, Cause::Command | Cause::Permissions) => Some(place.clone()),
        (Verdict::Allow, _) => None,
    };
    let Some(execution) = &judgement.allowed.execution else {
        return match why {
            Some(why) => asks(cause, Question { execution: None, wider: false, why }),
            None => run(place),
        };
    };
    let execution = &held(execution, facts);
    let wider = is_wider(execution, facts);
    // Nobody said that it is to run as a command of its own: where it cannot, it runs as any other.
    let of_turn = request.context == ContextId::TURN || facts.granted.is_some();
    let own = of_turn && request.attested.exe.is_some();
    if why.is_none() && cause == Cause::Command && !own {
        return run(place);
    }
    let mut in_place = None;
    if request.context != ContextId::TURN
        && matches!(execution, Execution::Permissions(name) if *name == facts.asker.name)
    {
        in_place = Some(format!("already under {execution}, {place}"));
    } else if !of_turn {
        let from = format!("asked from permissions({})", facts.asker.name);
        match execution {
            _ if wider || *execution == Execution::TurnDefault => {
                why = Some(match why {
                    Some(why) => format!("{from}: {why}"),
                    None => format!("{from}, {execution} needs an approval, {place}"),
                });
            }
            _ => in_place = Some(format!("{from}, {place}")),
        }
    } else if facts.asker.unrestricted && !matches!(execution, Execution::Permissions(_)) {
        in_place = Some(format!("the turn has no sandbox to leave, {place}"));
    }
    if let Some(reason) = in_place {
        return match why {
            Some(why) => asks(cause, Question { execution: None, wider: false, why }),
            None => run(reason),
        };
    }
    let Some(exe) = &request.attested.exe else {
        return deny("its file is not seen outside the sandbox, so it cannot be executed there".to_owned());
    };
    if let Shape::Script { named, interpreter: None } = &exe.shape
        && *execution != Execution::TurnDefault
        && !facts.is_granted(execution)
    {
        return deny(format!(
            "the sandbox can write its interpreter {}, or what leads to it; {place}",
            printable(named.as_os_str().as_encoded_bytes())
        ));
    }
    if wider && exe.agent_writable {
        why = why.or_else(|| {
            Some(format!(
                "the sandbox can write {}, so a rule alone cannot let it run as {execution}; {place}{because}",
                printable(exe.path.as_os_str().as_encoded_bytes())
            ))
        });
    }
    if *execution != Execution::TurnDefault {
        let Some(cwd) = &request.attested.cwd else {
            return deny("its working directory is not the same outside the sandbox".to_owned());
        };
        if !readable(facts.asker, &cwd.path) {
            return deny("its working directory is not readable inside the sandbox".to_owned());
        }
        if let Some(named) = facts.named.filter(|named| named.access(&cwd.path).is_none()) {
            return deny(format!(
                "{} does not let its working directory be seen; run it from one that it does, or let it read {}; {place}",
                printable(named.name.as_bytes()),
                printable(cwd.path.as_os_str().as_encoded_bytes())
            ));
        }
    }
    match why {
        Some(why) => asks(cause, Question { execution: Some(execution.clone()), wider, why }),
        None => Settled::Decided(Decision::Escalate {
            execution: execution.clone(),
            reason: format!("{place}{because}"),
        }),
    }
}

fn readable(asker: &Resolved, path: &Path) -> bool {
    asker.access(path).is_some()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use postern_shim::wire::{Bytes, Layer, ShellContext};

    use super::*;
    use crate::flow::{Allowed, Attested, Cwd, Executable, FileIdentity, RuleSource};
    use crate::policy::{Granular, Requested, Stance, Subject, judge, load};
    use crate::profile::Access;

    /// Policy, sandbox, command, what the turn asks for, rule, and what comes of it. `*` is any; of the
    /// rows that fit a cell the first counts.
    const TABLE: &str = "
        # A rule speaks first, whatever else there is.
        *            *            *         *   forbidden  deny
        never        *            *         *   prompt     deny
        no-rules     *            *         *   prompt     deny
        nothing      *            *         *   prompt     deny
        *            restricted   *         *   prompt     ask-outside
        *            unrestricted *         *   prompt     ask-in-place
        *            restricted   *         *   allow      escalate
        *            unrestricted *         *   allow      run
        # More than the sandbox is asked for under on-request alone, and only where there is one.
        on-request   restricted   *         yes none       ask-outside
        on-request   unrestricted dangerous yes none       ask-in-place
        on-request   unrestricted *         yes none       run
        *            *            *         yes none       refused
        # What only reads runs.
        *            restricted   harmless  no  none       run
        # What removes without a question, where nothing but a person is in its way.
        never        unrestricted dangerous no  none       run
        no-sandbox   unrestricted dangerous no  none       deny
        nothing      unrestricted dangerous no  none       deny
        *            unrestricted dangerous no  none       ask-in-place
        # What may fail is watched.
        on-failure   restricted   *         no  none       watch
        # All else is the sandbox's affair, unless nothing is trusted.
        untrusted    *            *         no  none       ask-in-place
        *            *            *         no  none       run
    ";

    fn policy(name: &str) -> ApprovalPolicy {
        let granular = |sandbox_approval, rules| {
            let all = Granular { sandbox_approval, rules, skill_approval: true, request_permissions: true };
            ApprovalPolicy::Granular(all)
        };
        match name {
            "untrusted" => ApprovalPolicy::Untrusted,
            "on-failure" => ApprovalPolicy::OnFailure,
            "on-request" => ApprovalPolicy::OnRequest,
            "never" => ApprovalPolicy::Never,
            "granular" => granular(true, true),
            "no-sandbox" => granular(false, true),
            "no-rules" => granular(true, false),
            _ => granular(false, false),
        }
    }

    fn request(line: &str) -> Request {
        let argv: Vec<Bytes> = line.split(' ').map(|word| Bytes(word.as_bytes().to_vec())).collect();
        let path = PathBuf::from("/usr/bin").join(line.split(' ').next().unwrap());
        let file = FileIdentity { dev: 1, ino: 1, mode: 0o755, uid: 0, size: 1 };
        let exe = Executable {
            path: path.clone(),
            file,
            agent_writable: false,
            shape: Shape::Binary,
            blake3: None,
        };
        let nothing = Bytes::default;
        Request {
            context: ContextId::TURN,
            attested: Attested {
                pid: 1,
                ppid: 1,
                uid: 0,
                exe: Some(exe),
                cwd: Some(Cwd { path: "/w".into(), dev: 1, ino: 1 }),
            },
            path: Bytes(path.as_os_str().as_encoded_bytes().to_vec()),
            argv,
            env: Vec::new(),
            shell: ShellContext {
                layer: Layer::Zsh,
                script: nothing(),
                line: 0,
                job: nothing(),
                functions: Vec::new(),
            },
            path_holds: true,
            skill: None,
            wish: None,
        }
    }

    /// What comes of one cell.
    fn outcome([policy, sandbox, command, asks, rule]: [&str; 5]) -> &'static str {
        let policy = self::policy(policy);
        let requested =
            Requested { execution: Execution::Unsandboxed, justification: None, prefix: Vec::new() };
        let requested = Some(requested).filter(|_| asks == "yes");
        let unrestricted = sandbox == "unrestricted";
        let stance = Stance { policy, unrestricted, requested, granted: None };
        let line = match command {
            "harmless" => "ls -l",
            "dangerous" => "rm -rf x",
            _ => "make all",
        };
        let request = request(line);
        let program = line.split(' ').next().unwrap();
        let rules = if rule == "none" {
            String::new()
        } else {
            format!("prefix_rule(['{program}'], decision = '{rule}')")
        };
        let rules = load("/home/u", [("r.rules", rules.as_str())]).unwrap();
        let path = request.given_path();
        let judgement = judge(&rules, &Subject::of(&request, &path), &Execution::Unsandboxed, &stance);
        if asks == "yes" && rule == "none" && !stance.policy.takes_requests() {
            return "refused";
        }
        let asker =
            Resolved { unrestricted, entries: vec![("/".into(), Access::Read)], ..Resolved::default() };
        let policy = &stance.policy;
        let facts = Facts { asker: &asker, turn: &asker, named: None, denies: false, granted: None, policy };
        match settle(&request, &judgement, facts) {
            Settled::Decided(Decision::Run { .. }) => "run",
            Settled::Decided(Decision::Deny { .. }) => "deny",
            Settled::Decided(Decision::Escalate { execution: Execution::Unsandboxed, .. }) => "escalate",
            Settled::Decided(Decision::Escalate { execution: Execution::TurnDefault, .. }) => "watch",
            Settled::Asks(Question { execution: None, wider: false, .. }) => "ask-in-place",
            Settled::Asks(Question { execution: Some(Execution::Unsandboxed), wider: true, .. }) => {
                "ask-outside"
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_cell_of_the_truth_table() {
        let rows: Vec<Vec<&str>> = TABLE
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let mut used = vec![0; rows.len()];
        let mut cells = 0;
        for policy in [
            "untrusted",
            "on-failure",
            "on-request",
            "never",
            "granular",
            "no-sandbox",
            "no-rules",
            "nothing",
        ] {
            for sandbox in ["restricted", "unrestricted"] {
                for command in ["harmless", "unknown", "dangerous"] {
                    for asks in ["yes", "no"] {
                        for rule in ["none", "allow", "prompt", "forbidden"] {
                            let cell = [policy, sandbox, command, asks, rule];
                            let fits = |row: &&Vec<&str>| {
                                row.iter().zip(cell).all(|(want, is)| *want == "*" || *want == is)
                            };
                            let (at, row) = rows.iter().enumerate().find(|(_, row)| fits(row)).unwrap();
                            assert_eq!(outcome(cell), row[5], "{cell:?}, by the row {row:?}");
                            used[at] += 1;
                            cells += 1;
                        }
                    }
                }
            }
        }
        println!("{cells} cells of the truth table, by {} rows", rows.len());
        assert!(used.iter().all(|count| *count > 0), "{used:?}");
    }

    #[test]
    fn a_script_that_the_sandbox_can_write_is_asked_about_whatever_a_rule_says() {
        let settled = |verdict, execution, interpreter: Option<&str>| {
            let mut request = request("deploy.sh now");
            let exe = request.attested.exe.as_mut().unwrap();
            exe.agent_writable = true;
            let interpreter = interpreter.map(PathBuf::from);
            exe.shape = Shape::Script { named: "/bin/sh".into(), interpreter };
            let rule = RuleSource { file: "r".to_owned(), line: 1, justification: None };
            let judgement = Judgement {
                verdict,
                source: Source::Rule(rule),
                allowed: Allowed { execution: Some(execution), env_keep: Vec::new() },
                matched: Vec::new(),
                audit: false,
            };
            let asker = Resolved { entries: vec![("/".into(), Access::Read)], ..Resolved::default() };
            let named = Resolved { network: true, ..asker.clone() };
            let policy = ApprovalPolicy::OnRequest;
            let named = Some(&named);
            settle(
                &request,
                &judgement,
                Facts { asker: &asker, turn: &asker, named, denies: false, granted: None, policy: &policy },
            )
        };
        let network = || Execution::Permissions("network".to_owned());
        for verdict in [Verdict::Allow, Verdict::Prompt] {
            for execution in [Execution::Unsandboxed, network()] {
                let asked = settled(verdict, execution.clone(), Some("/usr/bin/dash"));
                let wanted = Some(execution.clone());
                assert!(
                    matches!(&asked, Settled::Asks(question) if question.wider && question.execution == wanted),
                    "{verdict:?} {execution}: {asked:?}"
                );
                // Not if its interpreter could be another by then.
                let denied = settled(verdict, execution, None);
                assert!(matches!(denied, Settled::Decided(Decision::Deny { .. })), "{denied:?}");
            }
        }
        let turn = settled(Verdict::Allow, Execution::TurnDefault, None);
        assert!(matches!(turn, Settled::Decided(Decision::Escalate { .. })), "{turn:?}");
    }
}
