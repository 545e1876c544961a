//! Files of rules: read, and amended.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use postern_shim::wire::Bytes;

use super::Options;
use super::config::{self, ConfigError};
use super::directories::Directories;
use crate::flow::{Execution, Verdict};
use crate::policy::{self, Amendment, Policy, Rule, Subject};

/// The rule files of a directory, by name; it need not exist.
///
/// # Errors
/// If it cannot be listed.
pub(super) fn of(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigError::Read { path: directory.to_path_buf(), error }),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| ConfigError::Read { path: directory.to_path_buf(), error })?;
        if entry.path().extension().is_some_and(|extension| extension == "rules") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads rule files, each of which must exist: names, and what is in them.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<(String, String)>, ConfigError> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| ConfigError::Read { path: path.clone(), error })?;
        Ok((path.display().to_string(), text))
    };
    paths.iter().map(read).collect()
}

/// # Errors
/// A rule that cannot be understood.
pub(super) fn parse(texts: &[(String, String)], home: &Path) -> Result<Policy, ConfigError> {
    if texts.is_empty() {
        return Ok(Policy::default());
    }
    let texts = texts.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    Ok(policy::load(&home.to_string_lossy(), texts)?)
}

/// These files, or without any what a session would load, and what an allow rule gives there.
fn loaded(paths: &[PathBuf]) -> Result<(Policy, Execution), ConfigError> {
    let directories = directories()?;
    if paths.is_empty() {
        let config = config::load(&Options::default(), &directories)?;
        return Ok((config.policy, config.default_execution));
    }
    Ok((parse(&read(paths)?, &directories.home)?, Execution::Unsandboxed))
}

fn directories() -> Result<Directories, ConfigError> {
    Directories::find().map_err(|what| ConfigError::Value { place: "environment".to_owned(), what })
}

/// Where the rules are that Postern was told to keep.
pub(super) fn own(directories: &Directories) -> PathBuf {
    directories.config.join("rules/default.rules")
}

/// Adds a line to a file of rules, if it is not there: the number that it has, and whether it is new.
///
/// # Errors
/// If the file would not be one that can be read, or cannot be written.
pub(super) fn append(path: &Path, line: &str) -> Result<(usize, bool), String> {
    let mut at = (0, false);
    rewrite(path, |text| {
        let before = text.lines().position(|other| other == line);
        at = (before.unwrap_or_else(|| text.lines().count()) + 1, before.is_none());
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        Ok(if before.is_some() { text.to_owned() } else { format!("{text}{end}{line}\n") })
    })?;
    Ok(at)
}

/// Changes a file of rules as a whole, one writer after another; whoever reads it meanwhile reads the
/// old one.
fn rewrite(path: &Path, change: impl FnOnce(&str) -> Result<String, String>) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    // What a link leads to is changed, not the link.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let directory = path.parent().unwrap_or(Path::new("."));
    let directories = directories().map_err(|error| error.to_string())?;
    let _lock = lock(&directories).map_err(failed)?;
    let found = match path.metadata() {
        Ok(found) if !found.is_file() => return Err(format!("{} is no regular file", path.display())),
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => None,
        Err(error) => return Err(failed(error)),
    };
    let text = if found.is_some() { std::fs::read_to_string(&path).map_err(failed)? } else { String::new() };
    let mode = found.as_ref().map_or(0o600, |found| found.permissions().mode() & 0o7777);
    let owner = found.map(|found| (found.uid(), found.gid()));
    let changed = change(&text)?;
    if changed == text {
        return Ok(());
    }
    policy::load(&directories.home.to_string_lossy(), [(&*path.to_string_lossy(), &*changed)])
        .map_err(|error| format!("nothing was written: {error}"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = directory.join(format!(".{name}.{}", std::process::id()));
    let write = || {
        // Left by an earlier writer, or somebody else's: never opened.
        let _stale = std::fs::remove_file(&new);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        if let Some((uid, gid)) = owner.filter(|_| nix::unistd::geteuid().is_root()) {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        file.write_all(changed.as_bytes())?;
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        let _none = std::fs::remove_file(&new);
        failed(error)
    })
}

/// What writers wait for, where no sandbox can hold it; not for ever.
fn lock(directories: &Directories) -> io::Result<Flock<File>> {
    const TRIES: u32 = 50;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
    directories.make_state()?;
    let path = directories.state.join("rules.lock");
    let mut file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for _ in 0..TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((same, _)) => file = same,
        }
        std::thread::sleep(PAUSE);
    }
    Err(io::Error::other("somebody else is writing rules: try again"))
}

/// Writes a rule to a file, or to the user's own: the line, its place, and whether it is new.
///
/// # Errors
/// As for [`Amendment::line`] and for writing the file, and if no session would know the execution.
pub(crate) fn add_rule(
    file: Option<PathBuf>,
    amendment: &Amendment,
) -> Result<(String, String, bool), String> {
    if let Some(Execution::Permissions(name)) = amendment.execution.as_ref().filter(|_| file.is_none()) {
        let directories = directories().map_err(|error| error.to_string())?;
        let config = config::load(&Options::default(), &directories).map_err(|error| error.to_string())?;
        if !config.named.contains_key(name) {
            return Err(format!("--execution: there is no profile `{name}`"));
        }
    }
    let path = named(file)?;
    let line = amendment.line()?;
    let (number, new) = append(&path, &line)?;
    Ok((line, format!("{}:{number}", path.display()), new))
}

/// Takes the rules about exactly these words out of a file, or out of the user's own: what was there.
///
/// # Errors
/// If there is none that stands in a line of its own, or the file cannot be written.
pub(crate) fn remove_rules(file: Option<PathBuf>, words: &[String]) -> Result<Vec<String>, String> {
    let path = named(file)?;
    let about = |line: &str| {
        let alone = policy::load("/", [("", line)]).ok();
        alone.is_some_and(|alone| match alone.rules() {
            [rule] => {
                rule.pattern.len() == words.len()
                    && rule.pattern.iter().zip(words).all(|(one, word)| one == std::slice::from_ref(word))
            }
            _ => false,
        })
    };
    let mut removed = Vec::new();
    rewrite(&path, |text| {
        let (gone, kept): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| about(line));
        if gone.is_empty() {
            return Err(format!(
                "{}: no rule about `{}` stands in a line of its own",
                path.display(),
                words.join(" ")
            ));
        }
        removed = gone.into_iter().map(str::to_owned).collect();
        Ok(kept.into_iter().map(|line| format!("{line}\n")).collect())
    })?;
    Ok(removed)
}

fn named(file: Option<PathBuf>) -> Result<PathBuf, String> {
    match file {
        Some(file) => std::path::absolute(&file).map_err(|error| format!("{}: {error}", file.display())),
        None => directories().map(|directories| own(&directories)).map_err(|error| error.to_string()),
    }
}

/// What was found in rules that can be read.
#[derive(Debug)]
pub(crate) struct Tested {
    pub(crate) rules: usize,
    pub(crate) hosts: usize,
    /// What an operator should look at, each with its place.
    pub(crate) warnings: Vec<String>,
}

/// Reads rules, with every example that they give.
///
/// # Errors
/// A rule file that cannot be read or understood, or an example that does not hold.
pub(crate) fn test_rules(paths: &[PathBuf]) -> Result<Tested, ConfigError> {
    let (policy, default) = loaded(paths)?;
    let wide = |rule: &&Rule| {
        let execution = rule.allowed.execution.as_ref().unwrap_or(&default);
        rule.verdict == Verdict::Allow && *execution == Execution::Unsandboxed
    };
    let warnings = policy.rules().iter().filter(wide).filter_map(|rule| {
        let program = rule.pattern.first()?.iter().find(|word| policy::runs_what_lies_there(word))?;
        Some(format!(
            "{}:{}: {program} runs what its directory or its input says, here without a sandbox: give it an \
             `execution` that has no more than it needs",
            rule.file, rule.line
        ))
    });
    let warnings = warnings.collect();
    Ok(Tested { rules: policy.rules().len(), hosts: policy.network().len(), warnings })
}

/// A rule that matches a command, for people.
#[derive(Debug)]
pub(crate) struct Matched {
    pub(crate) prefix: Vec<String>,
    pub(crate) verdict: Verdict,
    pub(crate) resolved_program: Option<String>,
    pub(crate) justification: Option<String>,
    pub(crate) execution: Option<String>,
}

/// Which rules match a command: of the named files, or without any of those that a session would
/// load.
///
/// # Errors
/// A rule file that cannot be read or understood, or a configuration that names one.
pub(crate) fn check_rules(
    paths: &[PathBuf],
    program: &Path,
    argv: &[Bytes],
) -> Result<Vec<Matched>, ConfigError> {
    let (policy, _) = loaded(paths)?;
    let subject = Subject {
        given: program,
        resolved: None,
        given_holds: true,
        agent_writable: false,
        argv,
        skill: None,
    };
    let hits = policy::matches(&policy, &subject);
    let matched = hits.iter().map(|hit| Matched {
        prefix: hit.prefix(),
        verdict: hit.rule.verdict,
        resolved_program: hit.resolved_program.map(|path| path.display().to_string()),
        justification: hit.rule.justification.clone(),
        execution: hit.rule.allowed.execution.as_ref().map(ToString::to_string),
    });
    Ok(matched.collect())
}
