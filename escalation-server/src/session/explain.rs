//! What a session's profiles would give here, and why: nothing is started.

use std::path::{Path, PathBuf};

use super::Options;
use super::config::json_profile;
use super::directories::Directories;
use super::launch::{LaunchError, Prepared, prepare, real};
use crate::profile::{Access, Bases, Denied, Entry, Place, Profile, Resolved, to_json, to_legacy};
use crate::sandbox::{Facts, matches, plan};

/// A profile as it would be enforced.
#[derive(Debug)]
pub(crate) struct Explanation {
    pub(crate) profile: String,
    pub(crate) strength: String,
    pub(crate) network: bool,
    /// Each entry with what it was written as.
    pub(crate) entries: Vec<Explained>,
    /// Patterns that deny.
    pub(crate) patterns: Vec<Denied>,
    /// Headings with lines below; empty without a sandbox.
    pub(crate) steps: Vec<(String, Vec<String>)>,
    pub(crate) notes: Vec<String>,
    resolved: Resolved,
    /// What covers paths, whatever their entries say.
    masked: Vec<PathBuf>,
    /// What can be used in `/dev`, where that and `/proc` are the sandbox's own.
    devices: Option<Vec<PathBuf>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Explained {
    pub(crate) path: PathBuf,
    pub(crate) access: Access,
    pub(crate) written: String,
}

/// What a profile gives at one path.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// The path without symlinks, as far as it exists.
    pub(crate) path: PathBuf,
    pub(crate) access: Option<Access>,
    pub(crate) why: String,
}

/// Explains the profile of this name, or the turn's.
///
/// # Errors
/// As for the start of a session, and if there is no such profile.
pub(crate) fn explain(options: &Options, name: Option<&str>) -> Result<Explanation, LaunchError> {
    let prepared = prepare(options)?;
    let explained = explain_prepared(&prepared, name);
    prepared.discard();
    explained
}

/// A profile or legacy mode from a JSON file, as the other one: `legacy`, or the profile.
///
/// # Errors
/// What is wrong with the file, or what a legacy mode cannot say.
pub(crate) fn convert(path: &Path, legacy: bool) -> Result<serde_json::Value, String> {
    let directories = Directories::find()?;
    let profile = json_profile("converted", path, &directories).map_err(|error| error.to_string())?;
    let cwd = std::env::current_dir().map_err(|error| format!("find the working directory: {error}"))?;
    if legacy { to_legacy(&profile, &cwd) } else { Ok(to_json(&profile)) }
}

/// What of a requested profile a granted one grants, as JSON.
///
/// # Errors
/// What is wrong with a file, or would keep a session from starting here.
pub(crate) fn intersect(requested: &Path, granted: &Path) -> Result<serde_json::Value, String> {
    let directories = Directories::find()?;
    let read = |path| json_profile("granted", path, &directories).map_err(|error| error.to_string());
    let (requested, granted) = (read(requested)?, read(granted)?);
    let prepared = prepare(&Options::default()).map_err(|error| error.to_string())?;
    let both = Profile::granted(&requested, &granted, &prepared.bases);
    prepared.discard();
    Ok(to_json(&both))
}

fn explain_prepared(prepared: &Prepared, name: Option<&str>) -> Result<Explanation, LaunchError> {
    let turn = &prepared.config.turn;
    let name = name.unwrap_or(&turn.name);
    let (written, resolved, planned) = if name == turn.name {
        (turn, prepared.turn.clone(), prepared.plan.clone())
    } else {
        let missing = || LaunchError::Find(format!("there is no profile `{name}`"));
        let written = prepared.config.named.get(name).ok_or_else(missing)?;
        let resolved = prepared.named.get(name).ok_or_else(missing)?;
        let facts = Facts::gather(resolved, &prepared.own, &prepared.abilities)?;
        let plan = plan(resolved, &facts, &prepared.abilities);
        (written, plan.profile.clone(), Some(plan))
    };
    let sources = sources(&[written, turn], &prepared.bases);
    let entries = resolved
        .entries
        .iter()
        .map(|(path, access)| {
            let found = sources.iter().find(|(at, given, _)| at == path && given == access);
            let written = found.map_or_else(
                || match access {
                    Access::Read => "protected".to_owned(),
                    _ => "of the session".to_owned(),
                },
                |(_, _, written)| written.clone(),
            );
            Explained { path: path.clone(), access: *access, written }
        })
        .collect();
    Ok(Explanation {
        profile: name.to_owned(),
        strength: planned.as_ref().map_or_else(|| "no sandbox".to_owned(), crate::sandbox::Plan::strength),
        network: resolved.network,
        entries,
        patterns: resolved.denied.clone(),
        steps: planned.as_ref().map(crate::sandbox::Plan::describe).unwrap_or_default(),
        notes: prepared.notes.clone(),
        masked: planned.iter().flat_map(crate::sandbox::Plan::masked).map(Path::to_path_buf).collect(),
        devices: planned.as_ref().filter(|plan| !plan.is_alone()).map(crate::sandbox::Plan::devices),
        resolved,
    })
}

/// Where entries of profiles lead, and how they are written.
fn sources(profiles: &[&Profile], bases: &Bases) -> Vec<(PathBuf, Access, String)> {
    let entries = profiles
        .iter()
        .flat_map(|profile| profile.filesystem.iter().flatten().map(|entry| (profile.name.as_str(), entry)));
    entries
        .flat_map(|(name, entry)| {
            let alone = Profile { filesystem: Some(vec![entry.clone()]), ..Profile::named(name) };
            let written = format!("{name}: {}", write(entry));
            let paths = alone.resolve(bases).entries.into_iter();
            paths.map(move |(path, access)| (real(&path), access, written.clone()))
        })
        .collect()
}

fn write(entry: &Entry) -> String {
    let place = match &entry.place {
        Place::Path(path) => path.display().to_string(),
        Place::Root => ":root".to_owned(),
        Place::Cwd => "the working directory".to_owned(),
        Place::ProjectRoots(None) => ":project_roots".to_owned(),
        Place::ProjectRoots(Some(below)) => format!(":project_roots {}", below.display()),
        Place::Tmpdir => ":tmpdir".to_owned(),
        Place::SlashTmp => ":slash_tmp".to_owned(),
        Place::Minimal => ":minimal".to_owned(),
        Place::Glob(pattern) | Place::Unknown(pattern) => pattern.clone(),
    };
    format!("{place} = {}", name(entry.access))
}

/// An access as profiles write it.
pub(crate) fn name(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
        Access::None => "none",
    }
}

impl Explanation {
    /// What it gives at a path, and which entry decides.
    pub(crate) fn at(&self, path: &Path) -> Verdict {
        let path = real(&std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()));
        if path.components().any(|part| part == std::path::Component::ParentDir) {
            let why = "it leads through a directory that does not exist".to_owned();
            return Verdict { path, access: None, why };
        }
        if self.resolved.unrestricted {
            let why = "the profile restricts nothing".to_owned();
            return Verdict { path, access: Some(Access::Write), why };
        }
        let reopened = |above: &Path| {
            self.resolved.deciding(&path).is_some_and(|(entry, _)| entry.starts_with(above) && entry != above)
        };
        if let Some(devices) = &self.devices {
            let one = devices.iter().any(|device| path.starts_with(device));
            let own = |place: &str| format!("the sandbox has a {place} of its own");
            match path {
                _ if one => return Verdict { path, access: Some(Access::Write), why: own("/dev") },
                _ if path.starts_with("/dev") => return Verdict { path, access: None, why: own("/dev") },
                _ if path.starts_with("/proc") => {
                    return Verdict {
                        path,
                        access: Some(Access::Read),
                        why: own("/proc, of its processes,"),
                    };
                }
                _ => {}
            }
        }
        let denies = |above: &&Path| self.patterns.iter().any(|pattern| matches(pattern, above));
        if let Some(above) = path.ancestors().find(denies).filter(|above| !reopened(above)) {
            let pattern = self.patterns.iter().find(|pattern| matches(pattern, above));
            let why = format!(
                "the pattern {} denies {}",
                pattern.map(ToString::to_string).unwrap_or_default(),
                above.display()
            );
            return Verdict { path, access: None, why };
        }
        let gives = self.resolved.access(&path).is_some();
        if let Some(at) = self.masked.iter().find(|at| path.starts_with(at) && gives && !reopened(at)) {
            let why = format!("{} is Postern's own, or denied by another path of it", at.display());
            return Verdict { path, access: None, why };
        }
        let Some((at, access)) = self.resolved.deciding(&path) else {
            return Verdict { path, access: None, why: "no entry gives it".to_owned() };
        };
        let entry = self.entries.iter().find(|entry| entry.path == *at && entry.access == *access);
        let written = entry.map_or("", |entry| entry.written.as_str());
        let why = format!("the entry for {} decides ({written})", at.display());
        Verdict { access: self.resolved.access(&path), path, why }
    }
}
