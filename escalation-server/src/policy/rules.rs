//! Rules as values, indexed by the program that they are about.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::Path;

use crate::flow::{Allowed, Execution, Verdict};

/// One `prefix_rule`.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    /// Alternatives for each leading word.
    pub(crate) pattern: Vec<Vec<String>>,
    pub(crate) verdict: Verdict,
    pub(crate) justification: Option<String>,
    pub(crate) allowed: Allowed,
    pub(crate) audit: bool,
    /// Whether it is about a command of just these words.
    pub(crate) exact: bool,
    /// Whether it is about programs of its name wherever `host_executable` says that they lie.
    pub(crate) anywhere: bool,
    pub(crate) file: String,
    pub(crate) line: usize,
}

/// One `network_rule`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkRule {
    /// Lower case, without a port.
    pub(crate) host: String,
    pub(crate) protocol: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) justification: Option<String>,
    pub(crate) file: String,
    pub(crate) line: usize,
}

/// Every rule of a session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    rules: Vec<Rule>,
    network: Vec<NetworkRule>,
    by_program: HashMap<String, Vec<usize>>,
    /// Where executables of a name may lie; a name without an entry may lie anywhere.
    hosts: BTreeMap<String, Vec<String>>,
}

impl Policy {
    pub(crate) fn add(&mut self, rule: Rule) {
        for program in rule.pattern.first().into_iter().flatten() {
            self.by_program.entry(program.clone()).or_default().push(self.rules.len());
        }
        self.rules.push(rule);
    }

    pub(super) fn set_host(&mut self, name: String, paths: Vec<String>) {
        self.hosts.insert(name, paths);
    }

    pub(super) fn add_network(&mut self, rule: NetworkRule) {
        self.network.push(rule);
    }

    /// This, and the rules of another one besides.
    pub(crate) fn and(&self, other: Self) -> Self {
        let mut both = self.clone();
        other.rules.into_iter().for_each(|rule| both.add(rule));
        both
    }

    pub(crate) fn network(&self) -> &[NetworkRule] {
        &self.network
    }

    pub(super) fn host(&self, name: &str) -> Option<&[String]> {
        self.hosts.get(name).map(Vec::as_slice)
    }

    /// Rules whose first word may be `program`, in the order of loading.
    pub(super) fn about(&self, program: &str) -> impl Iterator<Item = &Rule> {
        self.by_program.get(program).into_iter().flatten().filter_map(|&at| self.rules.get(at))
    }

    /// Whether any rule could be about a program of this path. Where none is, nothing more has to be
    /// known of it.
    pub(crate) fn concerns(&self, path: &Path) -> bool {
        let names = [Some(path.to_string_lossy()), path.file_name().map(OsStr::to_string_lossy)];
        names.into_iter().flatten().any(|name| self.by_program.contains_key(&*name))
    }

    /// Whether any rule does more than allow.
    pub(super) fn restricts(&self) -> bool {
        self.rules.iter().any(|rule| rule.verdict != Verdict::Allow)
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Two allow rules that can match one command and of whose executions neither is narrower.
    pub(super) fn conflict(&self) -> Option<(&Rule, &Rule)> {
        self.by_program.values().find_map(|bucket| {
            let named: Vec<&Rule> = bucket
                .iter()
                .filter_map(|&at| self.rules.get(at))
                .filter(|rule| {
                    rule.verdict == Verdict::Allow
                        && matches!(rule.allowed.execution, Some(Execution::Permissions(_)))
                })
                .collect();
            named.iter().enumerate().find_map(|(at, first)| {
                named[at + 1..]
                    .iter()
                    .find(|second| {
                        first.allowed.execution != second.allowed.execution && overlap(first, second)
                    })
                    .map(|second| (*first, *second))
            })
        })
    }
}

fn overlap(first: &Rule, second: &Rule) -> bool {
    first.pattern.iter().zip(&second.pattern).all(|(one, other)| one.iter().any(|word| other.contains(word)))
}

/// How much an allow rule gives; the least wins. Profiles are not compared with each other.
pub(super) fn width(execution: &Execution) -> u8 {
    match execution {
        Execution::TurnDefault => 0,
        Execution::Permissions(_) => 1,
        Execution::Unsandboxed => 2,
    }
}
