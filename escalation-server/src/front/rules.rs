//! `postern rules`: what there is, and what it says of a command.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::flow::text::printable;
use crate::session::{ConfigError, Options, Written, bytes, check_rules, explain_rules, list_rules};

/// The rules that match, and the strictest decision if any does, as JSON.
///
/// # Errors
/// A rule file that cannot be read or understood.
pub(crate) fn check(rules: &[PathBuf], command: &[OsString]) -> Result<String, ConfigError> {
    let argv: Vec<_> = command.iter().map(|word| bytes(word)).collect();
    let program = command.first().map_or(Path::new(""), Path::new);
    let matched = check_rules(rules, program, &argv)?;
    let list: Vec<Value> = matched
        .iter()
        .map(|hit| {
            let mut one = Map::new();
            one.insert("matchedPrefix".to_owned(), json!(hit.prefix));
            one.insert("decision".to_owned(), json!(hit.decision));
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
    if let Some(decision) = matched.iter().max_by_key(|hit| hit.rank).map(|hit| hit.decision) {
        answer.insert("decision".to_owned(), json!(decision));
    }
    Ok(Value::Object(answer).to_string())
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
    for (rule, said) in &explained.rules {
        text.push_str(&format!("rule      {}\n          {said}\n", line(rule)));
    }
    text.push_str(&format!("decision  {}\n", explained.decision));
    Ok(text)
}
