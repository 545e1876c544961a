//! Options, configuration files and rule files: read once, before a session starts. Whatever is
//! wrong with them stops the start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::directories::{Directories, SYSTEM};
use super::layers::Layers;
use super::requirements::Requirements;
use super::review::Reviewers;
use super::shell_environment::{Fate, ShellEnvironment};
use super::tree::Tree;
use super::{rule_files, skills};
use crate::flow::{Execution, Skill};
use crate::policy::{ApprovalPolicy, LoadError, Policy, Requested};
use crate::profile::{self, Base, Profile, from_json, from_legacy};

/// What the command line asks for; it wins over files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) sandbox: Option<String>,
    pub(crate) profile: Option<String>,
    /// A profile as JSON, in place of a named one.
    pub(crate) permissions: Option<PathBuf>,
    /// A profile as JSON that is added to it.
    pub(crate) add: Option<PathBuf>,
    pub(crate) rules: Vec<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) cwd: Option<PathBuf>,
    /// Further project directories.
    pub(crate) add_dirs: Vec<PathBuf>,
    /// Descriptors of the caller's that the shell gets besides 0 to 2.
    pub(crate) pass_fds: Vec<i32>,
    pub(crate) skills: Vec<PathBuf>,
    pub(crate) on_prompt: Option<String>,
    pub(crate) approval: Option<String>,
    /// What the turn asks for instead of its sandbox.
    pub(crate) wish: Option<Wish>,
    /// Seconds after which the session ends.
    pub(crate) timeout: Option<u64>,
}

/// More than the sandbox, asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// A profile as JSON that is added to the turn's; without one, no sandbox.
    pub(crate) additional: Option<PathBuf>,
    pub(crate) justification: Option<String>,
    /// What a yes may allow for good.
    pub(crate) prefix: Vec<String>,
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

/// Everything that files and options say.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) turn: Profile,
    /// Profiles that rules may name.
    pub(crate) named: BTreeMap<String, Profile>,
    pub(crate) default_execution: Execution,
    pub(crate) policy: Policy,
    pub(crate) log_max_bytes: u64,
    /// How long a question waits for an answer; none: nobody is asked.
    pub(crate) patience: Option<Duration>,
    /// How long the session may take, without the time in which somebody is asked.
    pub(crate) timeout: Option<Duration>,
    pub(crate) approval: ApprovalPolicy,
    pub(super) reviewers: Reviewers,
    pub(crate) requested: Option<Requested>,
    pub(crate) skills: Vec<Skill>,
    /// Where they were looked for.
    pub(crate) skill_roots: Vec<PathBuf>,
    /// The project's own, if they are trusted.
    pub(super) project: Option<ProjectSkills>,
    /// What may be not held where there are no namespaces, by name.
    pub(crate) allow_weaker: Vec<String>,
    /// What of the caller's environment a sandboxed shell gets.
    pub(crate) shell_environment: ShellEnvironment,
    /// The files that all this came from.
    pub(crate) sources: Vec<PathBuf>,
    /// What was read and means nothing here.
    pub(crate) notes: Vec<String>,
    /// What was asked for and is not given.
    pub(crate) said: Vec<String>,
    /// What the machine's operator denies to everybody: a profile that gives nothing.
    pub(super) required: Profile,
}

/// Skills of the project that is worked in, and the files that they are.
#[derive(Debug)]
pub(super) struct ProjectSkills {
    pub(super) tree: Tree,
    pub(super) skills: Vec<Skill>,
}

/// The profile of what the turn asks for.
pub(super) const REQUESTED: &str = "requested";

pub(super) const MODES: [&str; 3] = ["read-only", "workspace-write", "danger-full-access"];

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
    let mut notes = Vec::new();
    let mut said = Vec::new();
    let layers = Layers::read(options, directories, &mut notes, &mut said)?;
    let mut named = layers.named;
    let requirements = Requirements::read(&directories.home)?;
    let explicit = layers.approval.is_some();
    let approval = requirements.approval(layers.approval.unwrap_or_default(), explicit, &mut said);
    let explicit = layers.reviewers.is_some();
    let reviewers = requirements.reviewers(layers.reviewers.unwrap_or_default(), explicit, &mut said);
    let (turn, explicit) = self::turn(options, layers.turn, &named, directories)?;
    // Before the profiles that start from it.
    let turn = requirements.turn(turn, explicit, &mut said);
    named.entry("git".to_owned()).or_insert_with(|| profile::git(&turn));
    named.entry("network".to_owned()).or_insert_with(|| profile::network(&turn));
    for name in ["read-only", "workspace-write"] {
        named.extend(mode(name).map(|profile| (name.to_owned(), profile)));
    }
    named.insert(profile::EVERYTHING.to_owned(), profile::everything());
    let (requested, profile) = options
        .wish
        .as_ref()
        .map(|wish| self::requested(wish, &turn, &approval, directories))
        .transpose()?
        .unzip();
    named.extend(profile.flatten().map(|profile| (REQUESTED.to_owned(), profile)));
    let skill_roots = skills::roots(&layers.skills, directories)?;
    let mut skills = Vec::new();
    for skills::Found { skill, profile } in skills::discover(&skill_roots, directories, &mut notes)? {
        named.extend(profile.map(|profile| (profile.name.clone(), profile)));
        skills.push(skill);
    }
    let project = layers.project_skills.map(|tree| -> Result<_, ConfigError> {
        let mut skills = Vec::new();
        for skills::Found { skill, profile } in skills::of_project(&tree, directories, &mut notes)? {
            named.extend(profile.map(|profile| (profile.name.clone(), profile)));
            skills.push(skill);
        }
        Ok(ProjectSkills { tree, skills })
    });
    let project = project.transpose()?;
    let mut paths = Vec::new();
    for directory in [Path::new(SYSTEM).join("rules"), directories.config.join("rules")] {
        paths.extend(rule_files::of(&directory)?);
    }
    paths.extend(layers.rules);
    let mut texts = rule_files::read(&paths)?;
    texts
        .extend(layers.project_rules.into_iter().map(|rules| (rules.path.display().to_string(), rules.text)));
    let mut policy = rule_files::parse(&texts, &directories.home)?;
    requirements.restrict(&mut policy);
    paths.extend(options.config.clone());
    for rule in policy.rules() {
        if let Some(Execution::Permissions(name)) = &rule.allowed.execution
            && !named.contains_key(name)
        {
            return Err(unknown_profile(&format!("{}:{}:1: execution", rule.file, rule.line), name, &named));
        }
    }
    let default_execution = match layers.default_execution {
        Some((Execution::Permissions(name), place)) if !named.contains_key(&name) => {
            return Err(unknown_profile(&place, &name, &named));
        }
        Some((execution, _)) => execution,
        None => Execution::Unsandboxed,
    };
    let shell_environment = ShellEnvironment::new(&layers.environment.0).map_err(|(key, what)| {
        let file = layers.environment.1.unwrap_or_default();
        ConfigError::Value { place: format!("{}: shell_environment.{key}", file.display()), what }
    })?;
    Ok(Config {
        shell_environment,
        turn,
        named,
        default_execution,
        policy,
        log_max_bytes: layers.max_mib << 20,
        approval,
        requested,
        skills,
        skill_roots,
        project,
        patience: layers.patience,
        timeout: options.timeout.map(Duration::from_secs),
        reviewers,
        allow_weaker: layers.allow_weaker,
        sources: paths,
        notes,
        said,
        required: requirements.denied(),
    })
}

/// The turn's profile as it is asked for, and whether anybody has asked for one.
fn turn(
    options: &Options,
    chosen: Option<Choice>,
    named: &BTreeMap<String, Profile>,
    directories: &Directories,
) -> Result<(Profile, bool), ConfigError> {
    let explicit = chosen.is_some() || options.permissions.is_some() || options.add.is_some();
    let turn = match (&options.permissions, chosen) {
        (Some(path), _) => json_profile("permissions", path, directories)?,
        (None, None) => profile::workspace_write(),
        (None, Some((name, place))) => named
            .get(&name)
            .cloned()
            .or_else(|| mode(&name))
            .ok_or_else(|| unknown_profile(&place, &name, named))?,
    };
    let turn = match &options.add {
        Some(path) => turn.plus(&json_profile("added", path, directories)?),
        None => turn,
    };
    Ok((narrow(turn)?, explicit))
}

/// What a wish comes to, and the profile that it names.
fn requested(
    wish: &Wish,
    turn: &Profile,
    approval: &ApprovalPolicy,
    directories: &Directories,
) -> Result<(Requested, Option<Profile>), ConfigError> {
    if !approval.takes_requests() {
        return Err(ConfigError::Value {
            place: "command line: sandbox_permissions".to_owned(),
            what: "more than the sandbox can only be asked for under the approval policy on-request"
                .to_owned(),
        });
    }
    let Wish { additional, justification, prefix } = wish.clone();
    let Some(path) = additional else {
        return Ok((Requested { execution: Execution::Unsandboxed, justification, prefix }, None));
    };
    let additional = json_profile(REQUESTED, &path, directories)?;
    if additional.filesystem.as_ref().is_none_or(Vec::is_empty)
        && !additional.network
        && additional.unix_sockets.is_empty()
    {
        return Err(ConfigError::Value {
            place: path.display().to_string(),
            what: "it asks for nothing: give network or fileSystem".to_owned(),
        });
    }
    let profile = Profile { name: REQUESTED.to_owned(), ..turn.plus(&additional) };
    let execution = Execution::Permissions(REQUESTED.to_owned());
    Ok((Requested { execution, justification, prefix }, Some(profile)))
}

/// A profile, or a legacy mode, from a JSON file; `-` is standard input. Relative paths are the file's
/// directory's.
pub(super) fn json_profile(
    name: &str,
    path: &Path,
    directories: &Directories,
) -> Result<Profile, ConfigError> {
    let error = |error| ConfigError::Read { path: path.to_path_buf(), error };
    let (text, directory) = if path == Path::new("-") {
        (std::io::read_to_string(std::io::stdin()).map_err(error)?, std::env::current_dir().map_err(error)?)
    } else {
        let real = path.canonicalize().map_err(error)?;
        let directory = real.parent().unwrap_or(Path::new("/")).to_path_buf();
        (std::fs::read_to_string(&real).map_err(error)?, directory)
    };
    let base = Base { directory: &directory, home: &directories.home };
    let value = |error: profile::JsonError| ConfigError::Value {
        place: path.display().to_string(),
        what: error.to_string(),
    };
    let legacy =
        serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|json| json.get("type").is_some());
    if legacy { from_legacy(&text, base) } else { from_json(name, &text, base) }.map_err(value)
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

/// A mode or a profile, by name, and where that was said.
pub(super) type Choice = (String, String);

pub(super) fn choose(
    sandbox: Option<String>,
    profile: Option<String>,
    place: &str,
) -> Result<Option<Choice>, ConfigError> {
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

pub(super) fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ConfigError::Read { path: path.to_path_buf(), error }),
    }
}

/// What becomes of each of the caller's variables in a sandboxed session.
///
/// # Errors
/// A configuration that is wrong.
pub(crate) fn environment(options: &Options) -> Result<Vec<Fate>, ConfigError> {
    let directories =
        Directories::find().map_err(|what| ConfigError::Value { place: "environment".to_owned(), what })?;
    Ok(load(options, &directories)?.shell_environment.fates(&super::launch::callers_environment()))
}
