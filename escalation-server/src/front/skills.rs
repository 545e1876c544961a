//! `postern skills`: which there are, and what they declare.

use serde_json::json;

use crate::flow::text::printable;
use crate::session::{Declared, Options, list_skills};

/// Every skill that a session started here would have; the text for standard output.
///
/// # Errors
/// What would keep a session from starting here, a malformed declaration first of all.
pub(crate) fn skills(options: &Options, as_json: bool) -> Result<String, String> {
    let (found, notes) = list_skills(options).map_err(|error| error.to_string())?;
    if as_json {
        let line = |one: &Declared| {
            format!(
                "{}\n",
                json!({ "name": one.name, "directory": one.directory, "root": one.root, "permissions": one.profile })
            )
        };
        return Ok(found.iter().map(line).collect());
    }
    let mut text = String::new();
    for one in &found {
        let says = match &one.gives {
            None => "declares nothing: its scripts run in the shell's sandbox, without a question".to_owned(),
            Some(gives) => {
                let lines: Vec<String> = gives.iter().map(|line| printable(line.as_bytes())).collect();
                format!("asks before its scripts run, and then gives\n    {}", lines.join("\n    "))
            }
        };
        text.push_str(&format!(
            "{}  {}\n  found below {}\n  {says}\n",
            printable(one.name.as_bytes()),
            printable(one.directory.as_bytes()),
            printable(one.root.as_bytes())
        ));
    }
    text.extend(notes.iter().map(|note| format!("note: {}\n", printable(note.as_bytes()))));
    Ok(text)
}
