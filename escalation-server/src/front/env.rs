//! `postern env`: what of the caller's environment a sandboxed shell would get, and why.

use std::path::PathBuf;

use serde_json::json;

use crate::flow::text::{printable, to_json};
use crate::session::{Options, environment};

/// Explains; the text for standard output.
///
/// # Errors
/// A configuration that is wrong.
pub(crate) fn env(config: Option<PathBuf>, as_json: bool) -> Result<String, String> {
    let options = Options { config, ..Options::default() };
    let fates = environment(&options).map_err(|error| error.to_string())?;
    if as_json {
        let variables = fates.iter().map(
            |fate| json!({ "name": to_json(fate.name.as_slice()), "arrives": fate.arrives, "why": fate.why }),
        );
        return Ok(variables.map(|line| format!("{line}\n")).collect());
    }
    let line = |mark: &str, name: &[u8], why: &str| format!("{mark}  {}  ({why})\n", printable(name));
    Ok(fates
        .iter()
        .map(|fate| line(if fate.arrives { "given   " } else { "withheld" }, fate.name.as_slice(), &fate.why))
        .collect())
}
