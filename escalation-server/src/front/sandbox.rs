//! `postern sandbox explain`: what a profile gives, and what enforces it.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::flow::text::printable;
use crate::session::{
    Options, convert as convert_file, explain as explain_session, intersect as intersect_files, name,
};

/// What `postern sandbox explain` was asked.
#[derive(Debug, Args)]
pub(crate) struct ExplainArguments {
    /// This profile, in place of the one that a session would start with
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Only what is given at this path, and which entry decides
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// A profile as JSON, in place of a named one
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    permissions: Option<PathBuf>,
    /// A profile as JSON that is added to it
    #[arg(long, value_name = "FILE")]
    add: Option<PathBuf>,
    /// A configuration file, read last
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Further project directories
    #[arg(long, value_name = "DIR", num_args = 1..)]
    add_dir: Vec<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What a converted profile becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// A profile
    Permissions,
    /// One of the modes that there were before profiles
    Legacy,
}

/// Converts a profile or a legacy mode; the text for standard output.
///
/// # Errors
/// What is wrong with the file, or what a legacy mode cannot say.
pub(crate) fn convert(file: &std::path::Path, to: Shape) -> Result<String, String> {
    convert_file(file, to == Shape::Legacy).map(|json| format!("{json}\n"))
}

/// What of a request was granted; the text for standard output.
///
/// # Errors
/// What is wrong with a file.
pub(crate) fn intersect(requested: &std::path::Path, granted: &std::path::Path) -> Result<String, String> {
    intersect_files(requested, granted).map(|json| format!("{json}\n"))
}

/// Explains; the text for standard output.
///
/// # Errors
/// What would keep a session from starting here.
pub(crate) fn explain(arguments: ExplainArguments) -> Result<String, String> {
    let ExplainArguments { profile, path, permissions, add, config, add_dir, json } = arguments;
    let options = Options { permissions, add, config, add_dirs: add_dir, ..Options::default() };
    let explained = explain_session(&options, profile.as_deref()).map_err(|error| error.to_string())?;
    let shown = |path: &std::path::Path| printable(path.as_os_str().as_encoded_bytes());
    if let Some(path) = path {
        let verdict = explained.at(&path);
        let access = verdict.access.map_or("none", name);
        if json {
            let object = json!({ "profile": explained.profile, "path": shown(&verdict.path), "access": access, "why": verdict.why });
            return Ok(format!("{object}\n"));
        }
        return Ok(format!("{access}  {}\n{}\n", shown(&verdict.path), printable(verdict.why.as_bytes())));
    }
    if json {
        let entries: Vec<_> = explained
            .entries
            .iter()
            .map(|entry| json!({ "path": shown(&entry.path), "access": name(entry.access), "written": entry.written }))
            .collect();
        let steps: serde_json::Map<_, _> =
            explained.steps.iter().map(|(title, lines)| (title.clone(), json!(lines))).collect();
        let object = json!({
            "profile": explained.profile, "strength": explained.strength, "network": explained.network,
            "entries": entries, "patterns": explained.patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), "steps": steps, "notes": explained.notes,
        });
        return Ok(format!("{object}\n"));
    }
    let mut text = format!("profile {}: {}\n", explained.profile, explained.strength);
    let network = if explained.network { "on" } else { "off" };
    let _infallible = writeln!(text, "network {network}");
    let _infallible = writeln!(text, "\nentries; the most specific one decides");
    for entry in &explained.entries {
        let _infallible =
            writeln!(text, "  {:<5} {}  ({})", name(entry.access), shown(&entry.path), entry.written);
    }
    for pattern in &explained.patterns {
        let _infallible = writeln!(text, "  none  {}  (pattern)", printable(pattern.to_string().as_bytes()));
    }
    for (title, lines) in explained.steps.iter().filter(|(_, lines)| !lines.is_empty()) {
        let _infallible = writeln!(text, "\n{title}");
        for line in lines {
            let _infallible = writeln!(text, "  {}", printable(line.as_bytes()));
        }
    }
    for note in &explained.notes {
        let _infallible = writeln!(text, "\nnote: {}", printable(note.as_bytes()));
    }
    Ok(text)
}
