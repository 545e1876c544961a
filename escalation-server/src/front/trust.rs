//! `postern trust`: a project's own policy, before it counts.

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
        text.extend(one.text.lines().map(|line| format!("    {}\n", printable(line.as_bytes()))));
    }
    text.push_str(&if shown.trusted {
        "trusted: sessions here go by it\n".to_owned()
    } else {
        format!("not trusted: it does not count; to let it, type postern trust --accept {}\n", shown.hash)
    });
    Ok(text)
}
