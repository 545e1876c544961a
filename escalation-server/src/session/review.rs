//! Who answers questions, as the configuration says, and what programs among them are told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::server::Session;
use super::settle::Question;
use crate::approval::{Approver, Asked, Mode, Reviewer};
use crate::flow::Request;
use crate::flow::text::{list_to_json, to_json};

/// `[review]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    then: Option<Vec<String>>,
    all_of: Option<Vec<String>>,
    any_of: Option<Vec<String>>,
    #[serde(default)]
    programs: BTreeMap<String, Program>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    command: Vec<String>,
    /// Seconds.
    deadline: Option<u64>,
}

/// Who answers, and how answers go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reviewers {
    pub(super) mode: Mode,
    pub(super) approvers: Vec<Approver>,
}

impl Default for Reviewers {
    fn default() -> Self {
        Self { mode: Mode::Then, approvers: vec![Approver::Person] }
    }
}

/// What `[review]` calls a person.
const PERSON: &str = "person";

impl Reviewers {
    /// # Errors
    /// The key that is wrong, and how.
    pub(super) fn of(table: Table) -> Result<Self, (String, String)> {
        const DEADLINE: u64 = 30;
        const LONGEST: u64 = 600;
        let modes = [
            ("then", Mode::Then, table.then),
            ("all_of", Mode::AllOf, table.all_of),
            ("any_of", Mode::AnyOf, table.any_of),
        ];
        let mut given = modes.into_iter().filter_map(|(key, mode, names)| Some((key, mode, names?)));
        let (Some((key, mode, names)), None) = (given.next(), given.next()) else {
            return Err((String::new(), "expected one of then, all_of and any_of".to_owned()));
        };
        let mut approvers = Vec::new();
        for name in &names {
            if names.iter().filter(|other| *other == name).count() > 1 {
                return Err((format!(".{key}"), format!("`{name}` is there twice")));
            }
            if name == PERSON {
                approvers.push(Approver::Person);
                continue;
            }
            let place = format!(".programs.{name}");
            let Some(program) = table.programs.get(name) else {
                return Err((
                    format!(".{key}"),
                    format!("expected `{PERSON}` or one of programs, got `{name}`"),
                ));
            };
            let (path, arguments) = match program.command.split_first() {
                Some((path, arguments)) if path.starts_with('/') => (path, arguments),
                _ => {
                    let what = "expected a program by its absolute path, and its arguments".to_owned();
                    return Err((format!("{place}.command"), what));
                }
            };
            let seconds = program.deadline.unwrap_or(DEADLINE);
            if !(1..=LONGEST).contains(&seconds) {
                return Err((format!("{place}.deadline"), format!("expected 1 to {LONGEST} seconds")));
            }
            approvers.push(Approver::Program(Reviewer {
                name: name.clone(),
                program: PathBuf::from(path),
                arguments: arguments.to_vec(),
                deadline: Duration::from_secs(seconds),
            }));
        }
        if approvers.is_empty() {
            return Err((format!(".{key}"), "expected somebody who answers".to_owned()));
        }
        // What a person grants for longer holds without the others: they have spoken before.
        if mode == Mode::AllOf {
            approvers.sort_by_key(|approver| *approver == Approver::Person);
        }
        Ok(Self { mode, approvers })
    }

    /// The programs that answer.
    pub(super) fn programs(&self) -> impl Iterator<Item = &Reviewer> {
        self.approvers.iter().filter_map(|approver| match approver {
            Approver::Program(reviewer) => Some(reviewer),
            Approver::Person => None,
        })
    }
}

/// A question as programs read it: one line of JSON. What is in it may be the agent's.
pub(super) fn question(session: &Session, request: &Request, question: &Question, asked: &Asked) -> Vec<u8> {
    let exe = request.attested.exe.as_ref();
    let path = |path: &std::path::Path| to_json(path.as_os_str().as_encoded_bytes());
    let fields: Vec<Value> =
        asked.fields.iter().map(|field| json!({ "name": field.name, "text": field.text })).collect();
    let body = json!({
        "version": 1,
        "session": session.id,
        "argv": list_to_json(&request.argv),
        "program": exe.map(|exe| path(&exe.path)),
        "agent_writable": exe.map(|exe| exe.agent_writable),
        "cwd": request.attested.cwd.as_ref().map(|cwd| path(&cwd.path)),
        "execution": question.execution.as_ref().map_or_else(|| "in_place".to_owned(), ToString::to_string),
        "wider": question.wider,
        "reason": question.why,
        "fields": fields,
    });
    format!("{body}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Reviewers, String> {
        let table: Table = toml::from_str(text).map_err(|error| error.to_string())?;
        Reviewers::of(table).map_err(|(key, what)| format!("{key}: {what}"))
    }

    #[test]
    fn who_answers_is_named_and_people_come_last_where_all_must_agree() {
        let programs = "programs.a = { command = ['/bin/a', '-x'], deadline = 5 }\n";
        let review = read(&format!("all_of = ['person', 'a']\n{programs}")).unwrap();
        assert_eq!((review.mode, review.approvers.len()), (Mode::AllOf, 2));
        assert_eq!(review.approvers[1], Approver::Person);
        let reviewer = review.programs().next().unwrap();
        assert_eq!((reviewer.arguments.len(), reviewer.deadline.as_secs()), (1, 5));
        let alone = read(&format!("then = ['a']\n{programs}")).unwrap();
        assert!(!alone.approvers.contains(&Approver::Person));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        for (text, expected) in [
            ("", "expected one of then"),
            ("then = ['person']\nany_of = ['person']", "expected one of then"),
            ("then = []", ".then: expected somebody"),
            ("then = ['x']", ".then: expected `person` or one of programs, got `x`"),
            ("then = ['person', 'person']", ".then: `person` is there twice"),
            ("then = ['a']\nprograms.a = { command = ['a'] }", ".programs.a.command: expected a program"),
            ("then = ['a']\nprograms.a = { command = [] }", ".programs.a.command: expected a program"),
            (
                "then = ['a']\nprograms.a = { command = ['/a'], deadline = 0 }",
                ".programs.a.deadline: expected 1",
            ),
            ("then = ['a']\nprograms.a = { command = ['/a'], model = 'x' }", "unknown field"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
