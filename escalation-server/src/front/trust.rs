//! `postern trust`: a project's own policy and skills, before they count.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::flow::text::printable;
use crate::session::{distrust, show_trust, trust as accept};

/// Without an option: shows what a project says, and by which hash it is trusted.
#[derive(Debug, Args)]
pub(crate) struct TrustArguments {
    /// The project, or a directory in it
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Trust what has this hash
    #[arg(long, value_name = "HASH", conflicts_with = "revoke")]
    accept: Option<String>,
    /// Trust it no more
    #[arg(long)]
    revoke: bool,
}

/// The text for standard output.
///
/// # Errors
/// What keeps it from being shown or trusted.
pub(crate) fn trust(arguments: &TrustArguments) -> Result<String, String> {
    let directory: &Path = &arguments.directory;
    if arguments.revoke {
        distrust(directory)?;
        return Ok("it is not trusted any more\n".to_owned());
    }
    if let Some(hash) = &arguments.accept {
        accept(directory, hash)?;
        return Ok("sessions that start from now on go by it, as long as it stays as it is\n".to_owned());
    }
    let shown = show_trust(directory)?;
    let mut text = String::new();
    for one in &shown.texts {
        text.push_str(&format!("{}\n", printable(one.path.as_os_str().as_encoded_bytes())));
        indent(&mut text, &one.text);
    }
    for one in shown.skills.iter().flat_map(|skills| &skills.files) {
        text.push_str(&format!("{}\n", printable(one.path.as_os_str().as_encoded_bytes())));
        let program = if one.executable { "a program, " } else { "" };
        text.push_str(&format!("    {program}{} bytes, blake3 {}\n", one.size, one.hash.to_hex()));
        if let Some(declares) = &one.text {
            indent(&mut text, if one.path.ends_with("SKILL.md") { front_matter(declares) } else { declares });
        }
    }
    text.push_str(&match (&shown.changed, shown.trusted) {
        (_, true) => "trusted: sessions here go by it\n".to_owned(),
        (None, false) => {
            format!("not trusted: it does not count; to let it, type postern trust --accept {}\n", shown.hash)
        }
        (Some(changed), false) => format!(
            "changed since it was trusted, which does not count: {changed}; to let it, type postern trust --accept {}\n",
            shown.hash
        ),
    });
    Ok(text)
}

fn indent(text: &mut String, what: &str) {
    text.extend(what.lines().map(|line| format!("    {}\n", printable(line.as_bytes()))));
}

/// What a skill declares, to the line that ends it; everything where there is no such line.
fn front_matter(text: &str) -> &str {
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        at += line.len();
        if number > 0 && line.trim_end() == "---" {
            return text.get(..at).unwrap_or(text);
        }
    }
    text
}
