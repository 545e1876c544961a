//! `postern why`: one record in plain words. What was asked, what decided, and what would have to
//! change.

use serde_json::Value;

use crate::flow::text::printable;
use crate::record::{Filter, Reader};
use crate::session::Directories;

/// Explains a record, of the newest session that has one of this number; the text for standard
/// output.
///
/// # Errors
/// What keeps the records from being read, or if there is no such decision.
pub(crate) fn why(seq: i64, session: Option<String>) -> Result<String, String> {
    let directories = Directories::find()?;
    let reader = Reader::open(&directories.state).map_err(|error| error.to_string())?;
    let filter = Filter { session, seq: Some(seq), ..Filter::default() };
    let mut lines = reader.lines(&filter).map_err(|error| error.to_string())?;
    let line = lines.pop().ok_or_else(|| format!("there is no record {seq}; `postern log` lists them"))?;
    if line.kind != "decided" {
        return Err(format!(
            "record {seq} is no decision but the event `{}`; see `postern log show {seq}`",
            line.kind
        ));
    }
    Ok(explain(&line.json).map(|sentence| format!("{sentence}\n")).collect())
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text.as_bytes()),
        Value::Null => "?".to_owned(),
        other => other.to_string(),
    }
}

/// Sentences, most important first.
fn explain(record: &Value) -> impl Iterator<Item = String> {
    let mut sentences = vec![asked(record), decided(record), source(record)];
    sentences.extend(reviewed(record));
    sentences.extend(answered(record));
    sentences.push(change(record));
    sentences.extend(environment(record));
    sentences.extend(outcome(record));
    sentences.into_iter()
}

fn asked(record: &Value) -> String {
    let words: Vec<String> = match &record["claimed"]["argv"] {
        Value::Array(words) => words.iter().map(text).collect(),
        shortened => shortened["head"].as_array().into_iter().flatten().map(text).collect(),
    };
    let (claimed, attested) = (&record["claimed"]["context"], &record["attested"]);
    let functions: Vec<String> = claimed["functions"].as_array().into_iter().flatten().map(text).collect();
    let within = if functions.is_empty() { String::new() } else { format!(", in {}", functions.join(" < ")) };
    let file = match &attested["exe"] {
        Value::Null => "no file that is seen outside the sandbox".to_owned(),
        exe => text(&exe["path"]),
    };
    let by = match record["claimed"]["layer"].as_str() {
        Some("exec") => "`postern exec` inside the session".to_owned(),
        _ => format!("{} line {}{within}", text(&claimed["script"]), text(&claimed["line"])),
    };
    format!(
        "Asked at {}: {}\n  which is {file}, in {}, by {by}.",
        text(&record["time"]),
        words.join(" "),
        text(&attested["cwd"]),
    )
}

fn place(execution: &Value) -> String {
    match (execution.as_str(), &execution["permissions"]) {
        (Some("unsandboxed"), _) => "without a sandbox, as the user".to_owned(),
        (Some("turn_default"), _) => "as a command of its own in the shell's sandbox".to_owned(),
        (_, Value::String(profile)) => {
            format!("in a sandbox of its own, under the profile {}", printable(profile.as_bytes()))
        }
        _ => "in place".to_owned(),
    }
}

fn decided(record: &Value) -> String {
    match record["decision"].as_str() {
        Some("run") => "Decided: it ran in place, inside the sandbox that the shell is in.".to_owned(),
        Some("escalate") => format!("Decided: it ran {}.", place(&record["execution"])),
        _ => format!("Decided: it was denied.\n  {}", text(&record["reason"])),
    }
}

fn rule(record: &Value) -> Option<String> {
    let rule = record["judgement"]["rule"].as_object()?;
    Some(format!("{}:{}", text(&rule["file"]), text(&rule["line"])))
}

fn source(record: &Value) -> String {
    if let Some(name) = record["judgement"]["skill"]["name"].as_str() {
        let name = printable(name.as_bytes());
        return format!("Because: it is a script of the skill {name}, which runs under what that declares.");
    }
    let judgement = &record["judgement"];
    let Some(rule) = rule(record) else {
        return match (judgement["source"].as_str(), judgement["decision"].as_str()) {
            (Some("failure"), _) => {
                "Because: it failed inside the sandbox, and under the approval policy on-failure somebody may let it \
                 run a second time without one."
            }
            (_, Some("prompt")) if record["claimed"]["layer"] == "exec" => {
                "Because: no rule matches, and it asks for more than the sandbox has."
            }
            (_, Some("prompt")) => {
                "Because: no rule matches, and the approval policy, or what the turn asks for, wants a question."
            }
            _ if record["execution"]["permissions"].as_str().is_some_and(|name| name.starts_with("granted:")) => {
                "Because: no rule matches, and more was granted to every command of the shell's (the event `granted`)."
            }
            _ if record["decision"] == "escalate" => {
                "Because: no rule matches, and under the approval policy on-failure it runs as a command of its own, \
                 so that a failure is seen."
            }
            _ => "Because: no rule matches, and what no rule matches runs in place.",
        }
        .to_owned();
    };
    let matched: Vec<String> = judgement["matched"].as_array().into_iter().flatten().map(text).collect();
    let justification = match &judgement["rule"]["justification"] {
        Value::Null => String::new(),
        said => format!("\n  It says: {}", text(said)),
    };
    format!(
        "Because: of the rule at {rule}, which matches `{}` and says {}.{justification}",
        matched.join(" "),
        text(&judgement["decision"])
    )
}

/// What programs said before.
fn reviewed(record: &Value) -> impl Iterator<Item = String> {
    record["approval"]["reviews"].as_array().into_iter().flatten().map(|review| {
        let said = match review["outcome"].as_str() {
            Some(outcome) => format!("said {outcome}"),
            None => "gave no answer".to_owned(),
        };
        let why = text(&review["rationale"]);
        let colon = if why.is_empty() { "" } else { ": " };
        format!("Reviewer: {} {said}{colon}{why}.", text(&review["by"]))
    })
}

fn answered(record: &Value) -> Option<String> {
    let approval = record["approval"].as_object()?;
    let by = text(&approval["by"]);
    let seconds = approval["wait_us"].as_f64().unwrap_or_default() / 1e6;
    Some(match approval["decision"].as_str() {
        Some("approved") => {
            format!("Asked: {by} approved it after {seconds:.1} s ({}).", text(&approval["scope"]))
        }
        Some("granted") => format!("Asked: no, {by} had approved the same before."),
        Some("denied") => format!("Asked: {by} denied it after {seconds:.1} s."),
        Some("aborted") => format!("Asked: {by} aborted it after {seconds:.1} s."),
        Some("timed_out") => format!("Asked: nobody answered in {seconds:.1} s."),
        Some("withdrawn") => "Asked: whoever asked was gone before the answer.".to_owned(),
        Some("full") => "Asked: no, too many questions waited already.".to_owned(),
        _ => "Asked: nobody is asked in this session.".to_owned(),
    })
}

fn change(record: &Value) -> String {
    let writable = record["attested"]["exe"]["agent_writable"] == true;
    if let Some(directory) = record["judgement"]["skill"].get("directory") {
        return format!(
            "To change that: the skill's declaration in {}, or a rule that forbids it.",
            text(directory)
        );
    }
    match (rule(record), record["decision"].as_str(), record["judgement"]["decision"].as_str()) {
        (None, ..) => "To change that: a rule for it, with the execution that it should have.".to_owned(),
        (Some(rule), Some("deny"), Some("allow")) if writable => format!(
            "To change that: the sandbox can write this file, and a rule alone never gives such a file more than the \
             sandbox has. Say yes where it is asked (`postern approve`), or put the program where no sandbox can \
             write, and name that in {rule}."
        ),
        (Some(rule), Some("deny"), Some("allow")) => {
            format!("To change that: the rule at {rule} allows it; what stood against it is said above.")
        }
        (Some(rule), Some("deny"), Some("prompt")) => format!(
            "To change that: a yes where it was asked (`postern approve`), or {rule} has to allow it, or no longer match."
        ),
        (Some(rule), ..) => format!("To change that: the rule at {rule}, or one that is stricter."),
    }
}

fn environment(record: &Value) -> Option<String> {
    let names = |key: &str| {
        let listed: Vec<String> = record["env"][key].as_array()?.iter().map(text).collect();
        Some(listed.join(", ")).filter(|names| !names.is_empty())
    };
    let dropped = names("dropped").map(|names| format!("\n  not taken over: {names}"));
    let kept = names("kept").map(|names| format!("\n  taken over: {names}"));
    let changes = [kept, dropped].into_iter().flatten().collect::<String>();
    Some(format!("Variables that the shell had changed:{changes}")).filter(|_| !changes.is_empty())
}

fn outcome(record: &Value) -> Option<String> {
    let outcome = record["outcome"].as_object()?;
    Some(match outcome["status"].as_str() {
        Some("exited") => format!("It ended with status {}.", text(&outcome["code"])),
        Some("signaled") => format!("It ended by signal {}.", text(&outcome["signal"])),
        Some("lost") => "What became of it is not known: it was lost on the way.".to_owned(),
        Some("refused") => return None,
        _ => "How it ended is not known.".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(decision: &str, judgement: &Value, writable: bool) -> String {
        let record = json!({
            "time": "T", "decision": decision, "reason": "git push (forbidden)", "execution": "unsandboxed", "judgement": judgement,
            "attested": { "cwd": "/w", "exe": { "path": "/usr/bin/git\u{202e}", "agent_writable": writable } },
            "claimed": { "argv": ["git", "push"], "context": { "script": "zsh", "line": 3, "functions": ["f"] } },
            "env": { "kept": [], "dropped": ["LD_PRELOAD"] }, "outcome": { "status": "exited", "code": 0 },
        });
        explain(&record).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_decision_has_its_reason_and_its_way_out() {
        let rule = json!({ "decision": "allow", "matched": ["git"], "rule": { "file": "r", "line": 2, "justification": null } });
        let escalated = said("escalate", &rule, false);
        for part in [
            "git push",
            "in /w, by zsh line 3, in f",
            "without a sandbox",
            "the rule at r:2",
            "LD_PRELOAD",
            "status 0",
        ] {
            assert!(escalated.contains(part), "{part}: {escalated}");
        }
        assert!(!escalated.contains('\u{202e}'));
        assert!(said("deny", &rule, true).contains("the sandbox can write this file"));
        let none = json!({ "decision": "allow", "matched": [], "rule": null });
        assert!(said("run", &none, false).contains("no rule matches"));
        let wish = json!({
            "decision": "escalate", "execution": { "permissions": "granted:1" }, "judgement": none,
            "claimed": { "argv": ["x"], "layer": "exec" },
        });
        let wish = explain(&wish).collect::<Vec<_>>().join("\n");
        assert!(wish.contains("more was granted") && wish.contains("by `postern exec` inside"), "{wish}");
        let prompt = json!({ "decision": "prompt", "matched": ["git"], "rule": { "file": "r", "line": 2, "justification": "ask" } });
        let denied = said("deny", &prompt, false);
        assert!(denied.contains("It says: ask") && denied.contains("a yes where it was asked"), "{denied}");
    }
}
