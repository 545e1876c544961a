//! `postern rules`: what there is, and what it says of a command.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::flow::text::printable;
use crate::flow::{Execution, Verdict};
use crate::session::{
    Amendment, ConfigError, Matched, Options, Written, add_rule, bytes, check_rules, explain_rules,
    list_rules, remove_rules, test_rules,
};

/// The rules that match, and the strictest decision if any does, as JSON.
///
/// # Errors
/// A rule file that cannot be read or understood.
pub(crate) fn check(rules: &[PathBuf], command: &[OsString]) -> Result<String, ConfigError> {
    let matched = matched(rules, command)?;
    let list: Vec<Value> = matched
        .iter()
        .map(|hit| {
            let mut one = Map::new();
            one.insert("matchedPrefix".to_owned(), json!(hit.prefix));
            one.insert("decision".to_owned(), json!(hit.verdict.name()));
            if let Some(program) = &hit.resolved_program {
                one.insert("resolvedProgram".to_owned(), json!(program));
            }
            if let Some(text) = &hit.justification {
                one.insert("justification".to_owned(), json!(text));
            }
            if let Some(execution) = &hit.execution {
                one.insert("execution".to_owned(), json!(execution));
            }
            json!({ "prefixRuleMatch": one })
        })
        .collect();
    let mut answer = Map::new();
    answer.insert("matchedRules".to_owned(), Value::Array(list));
    if let Some(decision) = decision(&matched) {
        answer.insert("decision".to_owned(), json!(decision));
    }
    Ok(Value::Object(answer).to_string())
}

/// Writes a rule; the text for standard output.
///
/// # Errors
/// What keeps it from being written.
pub(crate) fn add(
    file: Option<PathBuf>,
    decision: &str,
    execution: Option<String>,
    justification: Option<String>,
    words: Vec<String>,
) -> Result<String, String> {
    let verdict = Verdict::named(decision).ok_or_else(|| format!("there is no decision `{decision}`"))?;
    let execution = execution.map(|name| Execution::parse(&name));
    let amendment = Amendment { pattern: words, verdict, exact: false, execution, justification };
    let (line, place, new) = add_rule(file, &amendment)?;
    let said = if new { "" } else { "is there already: " };
    Ok(printable(format!("{place}  {said}{line}").as_bytes()) + "\n")
}

/// Takes rules out of a file; the text for standard output.
///
/// # Errors
/// What keeps them from being taken out.
pub(crate) fn remove(file: Option<PathBuf>, words: &[String]) -> Result<String, String> {
    let removed = remove_rules(file, words)?;
    Ok(removed.iter().map(|line| format!("removed  {}\n", printable(line.as_bytes()))).collect())
}

/// Tries rules; the text for standard output.
///
/// # Errors
/// Rules that cannot be read, an example that does not hold, or another decision than the expected one.
pub(crate) fn test(
    rules: &[PathBuf],
    expected: Option<&str>,
    command: &[OsString],
) -> Result<String, String> {
    let Some(expected) = expected else {
        let tested = test_rules(rules).map_err(|error| error.to_string())?;
        let mut text: String =
            tested.warnings.iter().map(|line| format!("warning  {}\n", printable(line.as_bytes()))).collect();
        text.push_str(&format!(
            "{} rules about commands and {} about hosts are read, and every example holds\n",
            tested.rules, tested.hosts
        ));
        return Ok(text);
    };
    let found = decision(&matched(rules, command).map_err(|error| error.to_string())?).unwrap_or("none");
    if found == expected { Ok(String::new()) } else { Err(format!("expected {expected}, found {found}")) }
}

fn matched(rules: &[PathBuf], command: &[OsString]) -> Result<Vec<Matched>, ConfigError> {
    let argv: Vec<_> = command.iter().map(|word| bytes(word)).collect();
    check_rules(rules, command.first().map_or(Path::new(""), Path::new), &argv)
}

/// The strictest.
fn decision(matched: &[Matched]) -> Option<&'static str> {
    matched.iter().map(|hit| hit.verdict).max().map(Verdict::name)
}

fn line(rule: &Written) -> String {
    let execution = rule.execution.as_ref().map(|name| format!(", {name}")).unwrap_or_default();
    let said = rule.justification.as_ref().map(|text| format!("  # {text}")).unwrap_or_default();
    printable(format!("{}  {}  ({}{execution}){said}", rule.place, rule.pattern, rule.decision).as_bytes())
}

/// Every rule that a session would have; the text for standard output.
///
/// # Errors
/// What would keep a session from starting here.
pub(crate) fn rules(options: &Options) -> Result<String, String> {
    let rules = list_rules(options).map_err(|error| error.to_string())?;
    Ok(rules.iter().map(|rule| format!("{}\n", line(rule))).collect())
}

/// What would become of a command here, and every rule that was looked at; the text for standard
/// output.
///
/// # Errors
/// What would keep a session from starting here.
pub(crate) fn explain_command(options: &Options, command: &[OsString]) -> Result<String, String> {
    let argv: Vec<_> = command.iter().map(|word| bytes(word)).collect();
    let explained = explain_rules(options, &argv).map_err(|error| error.to_string())?;
    let program = explained.program.map_or_else(
        || "no file of this name is found".to_owned(),
        |path| printable(path.as_os_str().as_encoded_bytes()),
    );
    let mut text = format!("program   {program}\n");
    for what in &explained.said {
        text.push_str(&format!("note      {}\n", printable(what.as_bytes())));
    }
    for (rule, said) in &explained.rules {
        text.push_str(&format!("rule      {}\n          {said}\n", line(rule)));
    }
    text.push_str(&format!("decision  {}\n", explained.decision));
    Ok(text)
}
