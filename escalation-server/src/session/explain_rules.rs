//! What a session's rules would say of a command, and why: nothing is started.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use postern_shim::wire::Bytes;

use super::Options;
use super::intake::leads;
use super::launch::{LaunchError, prepare, real};
use super::settle::{Facts, held, is_wider};
use crate::flow::{Execution, Source, Verdict};
use crate::policy::{self, Counts, Rule, Subject};
use crate::profile::EVERYTHING;

/// A rule as it is written, for people.
#[derive(Debug)]
pub(crate) struct Written {
    /// File and line.
    pub(crate) place: String,
    pub(crate) pattern: String,
    pub(crate) decision: &'static str,
    pub(crate) execution: Option<String>,
    pub(crate) justification: Option<String>,
}

impl Written {
    fn of(rule: &Rule) -> Self {
        let words = rule.pattern.iter().map(|alternatives| alternatives.join("|"));
        Self {
            place: format!("{}:{}", rule.file, rule.line),
            pattern: words.collect::<Vec<_>>().join(" "),
            decision: rule.verdict.name(),
            execution: rule.allowed.execution.as_ref().map(ToString::to_string),
            justification: rule.justification.clone(),
        }
    }
}

/// Every rule that a session would have, in the order of loading.
///
/// # Errors
/// As for the start of a session.
pub(crate) fn list_rules(options: &Options) -> Result<Vec<Written>, LaunchError> {
    let prepared = prepare(options)?;
    let rules = prepared.config.policy.rules().iter().map(Written::of).collect();
    prepared.discard();
    Ok(rules)
}

/// What rules come to for one command.
#[derive(Debug)]
pub(crate) struct Explained {
    /// The file that would be executed.
    pub(crate) program: Option<PathBuf>,
    /// Every rule about a program of its name, and what becomes of it.
    pub(crate) rules: Vec<(Written, String)>,
    pub(crate) decision: String,
}

/// Explains what would become of a command in a session that started here.
///
/// # Errors
/// As for the start of a session.
pub(crate) fn explain_rules(options: &Options, argv: &[Bytes]) -> Result<Explained, LaunchError> {
    let prepared = prepare(options)?;
    let given = argv.first().map(|zeroth| found(zeroth.as_slice())).unwrap_or_default();
    let holds = leads(&given, &prepared.reach);
    let program = holds.clone().or_else(|| given.canonicalize().ok()).filter(|path| path.is_file());
    let subject = Subject {
        given: &given,
        resolved: program.as_deref(),
        given_holds: holds.is_some(),
        agent_writable: program.as_ref().is_some_and(|path| prepared.reach.could_change(&real(path))),
        argv,
        skill: None,
    };
    let judgement = policy::judge(
        &prepared.config.policy,
        &subject,
        &prepared.config.default_execution,
        &prepared.stance(),
    );
    let wins = |rule: &Rule| match &judgement.source {
        Source::Rule(source) => source.file == rule.file && source.line == rule.line,
        Source::Skill(_) | Source::Heuristic { .. } => false,
    };
    let rules = policy::consider(&prepared.config.policy, &subject)
        .into_iter()
        .map(|looked| {
            let rule = looked.hit.rule;
            let said = match looked.counts {
                Counts::OtherWords => "the words after the first are others",
                Counts::NotListed => "host_executable says that programs of this name lie elsewhere",
                Counts::NotTrusted => "it allows, and a sandbox could have put this file or its name there",
                Counts::Yes if wins(rule) => "it decides",
                Counts::Yes => "it matches, and a stricter or narrower one decides",
            };
            (Written::of(rule), said.to_owned())
        })
        .collect();
    let denies = prepared.turn.denies();
    let named = match &judgement.allowed.execution {
        Some(Execution::Permissions(name)) => prepared.named.get(name),
        Some(Execution::Unsandboxed) if denies => prepared.named.get(EVERYTHING),
        _ => None,
    };
    let policy = &prepared.config.approval;
    let facts = Facts { asker: &prepared.turn, turn: &prepared.turn, named, denies, policy };
    let decision = match (judgement.verdict, &judgement.source, &judgement.allowed.execution) {
        (Verdict::Allow, Source::Heuristic { why }, _) => {
            format!("it runs in place, inside the sandbox: {why}")
        }
        (Verdict::Prompt, Source::Heuristic { why }, None) => {
            format!("it waits for an approval, to run in place: {why}")
        }
        (Verdict::Forbidden, ..) => "it is denied".to_owned(),
        (Verdict::Prompt, _, Some(execution)) => {
            format!("it waits for an approval, and with a yes runs {}", held(execution, facts))
        }
        (Verdict::Allow, _, Some(execution)) => {
            let execution = held(execution, facts);
            if is_wider(&execution, facts) && subject.agent_writable {
                format!(
                    "it waits for an approval: the sandbox can write the file, and {execution} is more than it has"
                )
            } else {
                format!("it runs {execution}")
            }
        }
        (_, _, None) => "it is denied: the rule gives no execution".to_owned(),
    };
    prepared.discard();
    Ok(Explained { program, rules, decision })
}

/// Where a word leads as a command: a path as it stands, a name by `PATH`.
fn found(word: &[u8]) -> PathBuf {
    let word = Path::new(OsStr::from_bytes(word));
    if word.as_os_str().as_bytes().contains(&b'/') {
        return std::path::absolute(word).unwrap_or_else(|_| word.to_path_buf());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| {
            found.is_file() && std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111 != 0
        })
    };
    std::env::split_paths(&path)
        .map(|directory| directory.join(word))
        .find(executable)
        .unwrap_or_else(|| word.to_path_buf())
}
