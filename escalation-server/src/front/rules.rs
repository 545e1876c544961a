//! `postern rules check`: what rules say of a command, in the reference's JSON.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::session::{ConfigError, bytes, check_rules};

/// Prints the rules that match, and the strictest decision if any does.
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
