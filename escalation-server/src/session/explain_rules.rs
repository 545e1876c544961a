//! What a session's rules would say of a command, and why: nothing is started.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use postern_shim::wire::Bytes;

use super::Options;
use super::intake;
use super::launch::{LaunchError, executable, prepare};
use super::settle::{Facts, Question, Settled, named, settle};
use crate::flow::{Decision, Execution, Source};
use crate::policy::{self, Counts, NetworkRule, Rule, Subject};

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

    fn of_host(rule: &NetworkRule) -> Self {
        Self {
            place: format!("{}:{}", rule.file, rule.line),
            pattern: format!("host {} by {}", rule.host, rule.protocol),
            decision: rule.verdict.name(),
            execution: None,
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
    let policy = &prepared.config.policy;
    let rules = policy.rules().iter().map(Written::of).chain(policy.network().iter().map(Written::of_host));
    let rules = rules.collect();
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
    /// What was configured and is not given.
    pub(crate) said: Vec<String>,
}

/// Explains what would become of a command in a session that started here.
///
/// # Errors
/// As for the start of a session.
pub(crate) fn explain_rules(options: &Options, argv: &[Bytes]) -> Result<Explained, LaunchError> {
    let prepared = prepare(options)?;
    let given = argv.first().map(|zeroth| found(zeroth.as_slice())).unwrap_or_default();
    let request = intake::imagined(&given, argv, &prepared);
    let subject = Subject::of(&request, &given);
    let config = &prepared.config;
    let judgement = policy::judge(&config.policy, &subject, &config.default_execution, &prepared.stance());
    let wins = |rule: &Rule| match &judgement.source {
        Source::Rule(source) => source.file == rule.file && source.line == rule.line,
        Source::Skill(_) | Source::Failure { .. } | Source::Heuristic { .. } => false,
    };
    let rules = policy::consider(&config.policy, &subject)
        .into_iter()
        .map(|looked| {
            let rule = looked.hit.rule;
            let said = match looked.counts {
                Counts::OtherWords => "the words after the first are others",
                Counts::NotListed => "host_executable says that programs of this name lie elsewhere",
                Counts::NotTrusted => "it allows, and a sandbox could have put this file or its name there",
                Counts::Yes if wins(rule) => "it decides",
                Counts::Yes => "it matches, and another one decides",
            };
            (Written::of(rule), said.to_owned())
        })
        .collect();
    let denies = prepared.turn.denies();
    let named = named(judgement.allowed.execution.as_ref(), denies);
    let facts = Facts {
        asker: &prepared.turn,
        turn: &prepared.turn,
        named: named.and_then(|name| prepared.named.get(name)).map(AsRef::as_ref),
        denies,
        granted: None,
        policy: &config.approval,
    };
    let place = |execution: Option<Execution>| {
        execution.map_or_else(|| "in place".to_owned(), |execution| execution.to_string())
    };
    let program = request.attested.exe.as_ref().map(|exe| exe.path.clone());
    let decision = match settle(&request, &judgement, facts) {
        _ if program.is_none() => "nothing runs".to_owned(),
        _ if !program.as_deref().is_some_and(executable) => {
            "nothing runs: the file is not executable".to_owned()
        }
        Settled::Decided(Decision::Run { reason }) => format!("it runs in place: {reason}"),
        Settled::Decided(Decision::Deny { reason }) => format!("it is denied: {reason}"),
        Settled::Decided(Decision::Escalate { execution, reason }) => {
            format!("it runs {execution}: {reason}")
        }
        Settled::Asks(Question { execution, why, .. }) => match config.patience {
            None if config.reviewers.programs().next().is_some() => {
                format!("reviewers are asked, and with a yes it runs {}: {why}", place(execution))
            }
            Some(_) => format!("it waits for an approval, and with a yes runs {}: {why}", place(execution)),
            None => format!("it is denied: nobody is asked (on_prompt is `deny`): {why}"),
        },
    };
    let said = prepared.said().to_vec();
    prepared.discard();
    Ok(Explained { program, rules, decision, said })
}

/// Where a word leads as a command: a path as it stands, a name by `PATH`.
fn found(word: &[u8]) -> PathBuf {
    let word = Path::new(OsStr::from_bytes(word));
    if word.as_os_str().as_bytes().contains(&b'/') {
        return std::path::absolute(word).unwrap_or_else(|_| word.to_path_buf());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(word))
        .find(|path| executable(path))
        .unwrap_or_else(|| word.to_path_buf())
}
