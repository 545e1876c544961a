//! Options, configuration files and rule files: read once, before a session starts. Whatever is
//! wrong with them stops the start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use postern_shim::wire::Bytes;
use serde::Deserialize;

use super::directories::{Directories, SYSTEM};
use crate::flow::Execution;
use crate::policy::{self, LoadError, Policy, Subject};
use crate::profile::{self, Access, Entry, Place, Profile};

/// What the command line asks for; it wins over files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) sandbox: Option<String>,
    pub(crate) profile: Option<String>,
    pub(crate) rules: Vec<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) cwd: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path}: {error}")]
    Parse { path: PathBuf, error: Box<toml::de::Error> },
    #[error("{place}: {what}")]
    Value { place: String, what: String },
    #[error("{0}")]
    Rules(#[from] LoadError),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sandbox: Option<String>,
    profile: Option<String>,
    default_execution: Option<String>,
    #[serde(default)]
    rules: Vec<String>,
    #[serde(default)]
    log: LogTable,
    #[serde(default)]
    permissions: BTreeMap<String, PermissionsTable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    max_mib: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PermissionsTable {
    #[serde(default)]
    filesystem: BTreeMap<String, toml::Value>,
    #[serde(default)]
    network: NetworkTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkTable {
    #[serde(default)]
    enabled: bool,
}

/// Everything that files and options say.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) turn: Profile,
    /// Profiles that rules may name.
    pub(crate) named: BTreeMap<String, Profile>,
    pub(crate) default_execution: Execution,
    pub(crate) policy: Policy,
    pub(crate) log_max_bytes: u64,
    /// The files that all this came from.
    pub(crate) sources: Vec<PathBuf>,
}

const MODES: [&str; 3] = ["read-only", "workspace-write", "danger-full-access"];

fn mode(name: &str) -> Option<Profile> {
    match name {
        "read-only" => Some(profile::read_only()),
        "workspace-write" => Some(profile::workspace_write()),
        "danger-full-access" => Some(profile::danger_full_access()),
        _ => None,
    }
}

/// Reads everything.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub(crate) fn load(options: &Options, directories: &Directories) -> Result<Config, ConfigError> {
    let mut files = Vec::new();
    for path in [Path::new(SYSTEM).join("config.toml"), directories.config.join("config.toml")] {
        files.extend(read_file(&path)?.map(|file| (path, file)));
    }
    if let Some(path) = &options.config {
        let file = read_file(path)?.ok_or_else(|| ConfigError::Read {
            path: path.clone(),
            error: std::io::ErrorKind::NotFound.into(),
        })?;
        files.push((path.clone(), file));
    }

    let mut named = BTreeMap::new();
    let (mut turn, mut default_execution, mut rules, mut max_mib) = (None, None, Vec::new(), 512);
    for (path, file) in files {
        let place = |key: &str| format!("{}: {key}", path.display());
        for (name, table) in file.permissions {
            let key = place(&format!("permissions.{name}"));
            if MODES.contains(&name.as_str())
                || ["unsandboxed", "turn_default", "git", "network"].contains(&name.as_str())
            {
                return Err(ConfigError::Value {
                    place: key,
                    what: "the name is taken by a built-in".to_owned(),
                });
            }
            let profile = permissions(&name, table, &key, &directories.home)?;
            named.insert(name, profile);
        }
        turn = choose(file.sandbox, file.profile, &path.display().to_string())?.or(turn);
        if let Some(name) = file.default_execution {
            default_execution = Some((Execution::parse(&name), place("default_execution")));
        }
        rules.extend(file.rules.iter().map(|text| expand(text, &directories.home)));
        if let Some(asked) = file.log.max_mib {
            const MOST: u64 = 1 << 20;
            if asked > MOST {
                let what = format!("expected at most {MOST} MiB");
                return Err(ConfigError::Value { place: place("log.max_mib"), what });
            }
            max_mib = asked;
        }
    }
    turn = choose(options.sandbox.clone(), options.profile.clone(), "command line")?.or(turn);
    let turn = match turn {
        None => profile::workspace_write(),
        Some((name, place)) => named
            .get(&name)
            .cloned()
            .or_else(|| mode(&name))
            .ok_or_else(|| unknown_profile(&place, &name, &named))?,
    };
    // Before the profiles that start from it.
    let turn = narrow(turn)?;
    named.entry("git".to_owned()).or_insert_with(|| profile::git(&turn));
    named.entry("network".to_owned()).or_insert_with(|| profile::network(&turn));
    for name in ["read-only", "workspace-write"] {
        named.extend(mode(name).map(|profile| (name.to_owned(), profile)));
    }

    let mut paths = Vec::new();
    for directory in [Path::new(SYSTEM).join("rules"), directories.config.join("rules")] {
        paths.extend(rule_files(&directory)?);
    }
    paths.extend(rules);
    paths.extend(options.rules.iter().cloned());
    let policy = load_rules(&paths)?;
    paths.extend(options.config.clone());
    for rule in policy.rules() {
        if let Some(Execution::Permissions(name)) = &rule.allowed.execution
            && !named.contains_key(name)
        {
            return Err(unknown_profile(&format!("{}:{}:1: execution", rule.file, rule.line), name, &named));
        }
    }
    let default_execution = match default_execution {
        Some((Execution::Permissions(name), place)) if !named.contains_key(&name) => {
            return Err(unknown_profile(&place, &name, &named));
        }
        Some((execution, _)) => execution,
        None => Execution::Unsandboxed,
    };
    Ok(Config { turn, named, default_execution, policy, log_max_bytes: max_mib << 20, sources: paths })
}

/// `POSTERN_SANDBOX` may narrow what is configured, and nothing else.
fn narrow(turn: Profile) -> Result<Profile, ConfigError> {
    let Some(asked) = std::env::var_os("POSTERN_SANDBOX") else { return Ok(turn) };
    let asked = asked.to_string_lossy().into_owned();
    let value =
        |what: &str| ConfigError::Value { place: "POSTERN_SANDBOX".to_owned(), what: what.to_owned() };
    let rank = |name: &str| MODES.iter().position(|mode| *mode == name);
    let wanted =
        rank(&asked).ok_or_else(|| value("expected read-only, workspace-write or danger-full-access"))?;
    match rank(&turn.name) {
        Some(configured) if wanted <= configured => Ok(mode(&asked).unwrap_or(turn)),
        None if wanted == 0 => Ok(profile::without_writing(turn)),
        _ => Err(value(&format!(
            "`{asked}` is wider than the configured `{}`; a variable can only narrow",
            turn.name
        ))),
    }
}

fn unknown_profile(place: &str, name: &str, named: &BTreeMap<String, Profile>) -> ConfigError {
    let mut known: Vec<&str> = MODES.into_iter().chain(named.keys().map(String::as_str)).collect();
    known.sort_unstable();
    known.dedup();
    ConfigError::Value {
        place: place.to_owned(),
        what: format!("there is no profile `{name}`; known are {}", known.join(", ")),
    }
}

fn choose(
    sandbox: Option<String>,
    profile: Option<String>,
    place: &str,
) -> Result<Option<(String, String)>, ConfigError> {
    let at = |key: &str| format!("{place}: {key}");
    match (sandbox, profile) {
        (Some(_), Some(_)) => Err(ConfigError::Value {
            place: at("sandbox"),
            what: "give a sandbox mode or a profile, not both".to_owned(),
        }),
        (Some(name), None) if mode(&name).is_none() => Err(ConfigError::Value {
            place: at("sandbox"),
            what: format!("expected {}, got `{name}`", MODES.join(", ")),
        }),
        (Some(name), None) => Ok(Some((name, at("sandbox")))),
        (None, Some(name)) => Ok(Some((name, at("profile")))),
        (None, None) => Ok(None),
    }
}

fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ConfigError::Read { path: path.to_path_buf(), error }),
    }
}

fn read_file(path: &Path) -> Result<Option<File>, ConfigError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let parsed = toml::from_str(&text);
    parsed.map(Some).map_err(|error| ConfigError::Parse { path: path.to_path_buf(), error: Box::new(error) })
}

fn rule_files(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
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

/// Reads rule files, each of which must exist.
///
/// # Errors
/// A file that cannot be read, or a rule that cannot be understood.
fn load_rules(paths: &[PathBuf]) -> Result<Policy, ConfigError> {
    if paths.is_empty() {
        return Ok(Policy::default());
    }
    let texts = paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Read { path: path.clone(), error })?;
            Ok((path.display().to_string(), text))
        })
        .collect::<Result<Vec<_>, ConfigError>>()?;
    Ok(policy::load(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))?)
}

/// A rule that matches a command, for people.
#[derive(Debug)]
pub(crate) struct Matched {
    pub(crate) prefix: Vec<String>,
    pub(crate) decision: &'static str,
    /// Stricter is more.
    pub(crate) rank: u8,
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
    let policy = if paths.is_empty() {
        let directories = Directories::find()
            .map_err(|what| ConfigError::Value { place: "environment".to_owned(), what })?;
        load(&Options::default(), &directories)?.policy
    } else {
        load_rules(paths)?
    };
    let subject = Subject { given: program, resolved: None, given_holds: true, agent_writable: false, argv };
    let hits = policy::matches(&policy, &subject);
    let matched = hits.iter().map(|hit| Matched {
        prefix: hit.prefix(&subject),
        decision: hit.rule.verdict.name(),
        rank: hit.rule.verdict as u8,
        resolved_program: hit.resolved_program.map(|path| path.display().to_string()),
        justification: hit.rule.justification.clone(),
        execution: hit.rule.allowed.execution.as_ref().map(ToString::to_string),
    });
    Ok(matched.collect())
}

fn expand(text: &str, home: &Path) -> PathBuf {
    match text.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None if text == "~" => home.to_path_buf(),
        None => PathBuf::from(text),
    }
}

fn permissions(
    name: &str,
    table: PermissionsTable,
    place: &str,
    home: &Path,
) -> Result<Profile, ConfigError> {
    let mut entries = Vec::new();
    for (key, value) in table.filesystem {
        let place = format!("{place}.filesystem.\"{key}\"");
        let error = |what: String| ConfigError::Value { place: place.clone(), what };
        match value {
            toml::Value::String(text) => {
                entries.push(Entry {
                    place: self::place(&key, None, home).map_err(error)?,
                    access: access(&text).map_err(error)?,
                });
            }
            toml::Value::Table(below) => {
                for (subpath, value) in below {
                    let text = value
                        .as_str()
                        .ok_or_else(|| error(format!("`{subpath}`: expected \"read\" or \"write\"")))?;
                    let spot = self::place(&key, Some(&subpath), home).map_err(error)?;
                    entries.push(Entry { place: spot, access: access(text).map_err(error)? });
                }
            }
            _ => return Err(error("expected \"read\", \"write\" or a table of subpaths".to_owned())),
        }
    }
    Ok(Profile { name: name.to_owned(), filesystem: Some(entries), network: table.network.enabled })
}

fn access(text: &str) -> Result<Access, String> {
    match text {
        "read" => Ok(Access::Read),
        "write" => Ok(Access::Write),
        "none" => {
            Err("\"none\" cannot be enforced by this version; leave out the entry that gives access"
                .to_owned())
        }
        other => Err(format!("expected \"read\" or \"write\", got \"{other}\"")),
    }
}

fn place(key: &str, below: Option<&str>, home: &Path) -> Result<Place, String> {
    if key.contains(['*', '?', '[']) {
        return Err("globs cannot be enforced by this version; name directories".to_owned());
    }
    let below = match below {
        None | Some(".") => None,
        Some(text)
            if text.starts_with('/') || text.split('/').any(|part| matches!(part, "" | "." | "..")) =>
        {
            return Err(format!("`{text}`: expected a plain path below"));
        }
        Some(text) => Some(PathBuf::from(text)),
    };
    match (key, below) {
        (":project_roots", below) => Ok(Place::ProjectRoots(below)),
        (":root", None) => Ok(Place::Root),
        (":tmpdir", None) => Ok(Place::Tmpdir),
        (":slash_tmp", None) => Ok(Place::SlashTmp),
        (":minimal", None) => Ok(Place::Minimal),
        (token, _) if token.starts_with(':') => Err(
            "expected :root, :project_roots, :tmpdir, :slash_tmp or :minimal; subpaths only of :project_roots and paths".to_owned(),
        ),
        (path, below) => {
            let path = expand(path, home);
            if !path.is_absolute() {
                return Err("expected an absolute path, `~/…` or a special place".to_owned());
            }
            Ok(Place::Path(below.map_or(path.clone(), |below| path.join(below))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Profile, ConfigError> {
        let file: File = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { path: "c".into(), error: Box::new(error) })?;
        let (name, table) = file.permissions.into_iter().next().unwrap();
        permissions(&name, table, "c: permissions.p", Path::new("/home/u"))
    }

    #[test]
    fn profiles_say_what_they_mean() {
        let profile = parse(
            "[permissions.p.filesystem]\n\":root\" = \"read\"\n\":project_roots\" = { \".\" = \"write\", \"docs\" = \"read\" }\n\
             \"~/cache\" = \"write\"\n[permissions.p.network]\nenabled = true",
        )
        .unwrap();
        assert!(profile.network);
        let entries = profile.filesystem.unwrap();
        assert!(
            entries.contains(&Entry { place: Place::Path("/home/u/cache".into()), access: Access::Write })
        );
        assert!(
            entries
                .contains(&Entry { place: Place::ProjectRoots(Some("docs".into())), access: Access::Read })
        );
    }

    #[test]
    fn what_cannot_be_held_is_refused_by_name() {
        for (text, expected) in [
            ("[permissions.p.filesystem]\n\"/a\" = \"none\"", "cannot be enforced"),
            ("[permissions.p.filesystem]\n\"/a/**\" = \"read\"", "globs"),
            ("[permissions.p.filesystem]\n\":nosuch\" = \"read\"", "expected :root"),
            ("[permissions.p.filesystem]\n\"rel\" = \"read\"", "absolute"),
            ("[permissions.p.filesystem]\n\":project_roots\" = { \"../x\" = \"read\" }", "plain path"),
            ("[permissions.p]\nnetwrok = 1", "netwrok"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
