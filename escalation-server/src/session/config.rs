//! Options, configuration files and rule files: read once, before a session starts. Whatever is
//! wrong with them stops the start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::directories::{Directories, SYSTEM};
use super::permissions::{PermissionsTable, expand, permissions};
use super::requirements::Requirements;
use super::review::{self, Review};
use super::shell_environment::{self, Fate, ShellEnvironment};
use super::trust::Project;
use super::{rule_files, skills};
use crate::flow::{Execution, Skill};
use crate::policy::{ApprovalPolicy, Granular, LoadError, Policy, Requested};
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

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    sandbox: Option<String>,
    profile: Option<String>,
    default_execution: Option<String>,
    on_prompt: Option<String>,
    approval: Option<toml::Value>,
    review: Option<review::Table>,
    #[serde(default)]
    rules: Vec<String>,
    #[serde(default)]
    skills: Vec<String>,
    #[serde(default)]
    allow_weaker: Vec<String>,
    shell_environment: Option<shell_environment::Table>,
    #[serde(default)]
    log: LogTable,
    #[serde(default)]
    permissions: BTreeMap<String, PermissionsTable>,
}

/// What stands at `approval` where it is not a policy's name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovalTable {
    granular: GranularTable,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GranularTable {
    sandbox_approval: bool,
    rules: bool,
    #[serde(default)]
    skill_approval: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    max_mib: Option<u64>,
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
    pub(super) review: Review,
    pub(crate) requested: Option<Requested>,
    pub(crate) skills: Vec<Skill>,
    /// Where they were looked for.
    pub(crate) skill_roots: Vec<PathBuf>,
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
}

fn weakness_names() -> impl Iterator<Item = &'static str> {
    crate::sandbox::WEAKNESSES.iter().map(|(name, _)| *name)
}

pub(super) fn approval(name: &str, place: String) -> Result<ApprovalPolicy, ConfigError> {
    match name {
        "untrusted" => Ok(ApprovalPolicy::Untrusted),
        "on-request" => Ok(ApprovalPolicy::OnRequest),
        "never" => Ok(ApprovalPolicy::Never),
        "on-failure" => Ok(ApprovalPolicy::OnFailure),
        other => Err(ConfigError::Value {
            place,
            what: format!(
                "expected untrusted, on-failure, on-request, never or {{ granular = {{ … }} }}, got `{other}`"
            ),
        }),
    }
}

/// How long a question waits where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(300);

/// The profile of what the turn asks for.
pub(super) const REQUESTED: &str = "requested";

/// `deny`, or `wait:SECONDS`.
fn on_prompt(text: &str, place: String) -> Result<Option<Duration>, ConfigError> {
    const MOST: u64 = 7 * 24 * 3600;
    let seconds = text.strip_prefix("wait:").and_then(|seconds| seconds.parse().ok());
    match (text, seconds) {
        ("deny", _) => Ok(None),
        (_, Some(seconds)) if (1..=MOST).contains(&seconds) => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(ConfigError::Value {
            place,
            what: format!("expected `deny` or `wait:SECONDS` with 1 to {MOST} seconds, got `{text}`"),
        }),
    }
}

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
    let mut files = Vec::new();
    for path in [Path::new(SYSTEM).join("config.toml"), directories.config.join("config.toml")] {
        files.extend(read_file(&path)?.map(|file| (path, file)));
    }
    let mut notes = Vec::new();
    let project = project(directories, &mut notes);
    if let Some(config) = project.as_ref().and_then(|project| project.config.as_ref()) {
        let file: File = toml::from_str(&config.text)
            .map_err(|error| ConfigError::Parse { path: config.path.clone(), error: Box::new(error) })?;
        file.is_a_projects(&config.path)?;
        files.push((config.path.clone(), file));
    }
    if let Some(path) = &options.config {
        let file = read_file(path)?.ok_or_else(|| ConfigError::Read {
            path: path.clone(),
            error: std::io::ErrorKind::NotFound.into(),
        })?;
        files.push((path.clone(), file));
    }

    let mut named = BTreeMap::new();
    let mut skill_roots = options.skills.clone();
    let (mut turn, mut default_execution, mut rules, mut max_mib) = (None, None, Vec::new(), 512);
    let (mut patience, mut asked, mut reviewed) = (Some(PATIENCE), None, None);
    let (mut allow_weaker, mut environment) = (Vec::new(), (shell_environment::Table::default(), None));
    for (path, file) in files {
        let place = |key: &str| format!("{}: {key}", path.display());
        for (name, table) in file.permissions {
            let key = place(&format!("permissions.{name}"));
            if MODES.contains(&name.as_str())
                || ["unsandboxed", "turn_default", "git", "network", profile::EVERYTHING, REQUESTED]
                    .contains(&name.as_str())
                || name.starts_with(skills::PREFIX)
            {
                return Err(ConfigError::Value {
                    place: key,
                    what: "the name is taken by a built-in".to_owned(),
                });
            }
            let profile = permissions(&name, table, &key, &directories.home, &mut notes)?;
            named.insert(name, profile);
        }
        turn = choose(file.sandbox, file.profile, &path.display().to_string())?.or(turn);
        if let Some(name) = file.default_execution {
            default_execution = Some((Execution::parse(&name), place("default_execution")));
        }
        if let Some(text) = file.on_prompt {
            patience = on_prompt(&text, place("on_prompt"))?;
        }
        match file.approval {
            Some(toml::Value::String(name)) => asked = Some(approval(&name, place("approval"))?),
            Some(table) => {
                let read = |error: toml::de::Error| ConfigError::Value {
                    place: place("approval"),
                    what: error.message().to_owned(),
                };
                let ApprovalTable { granular } = table.try_into().map_err(read)?;
                let GranularTable { sandbox_approval, rules, skill_approval } = granular;
                asked = Some(ApprovalPolicy::Granular(Granular { sandbox_approval, rules, skill_approval }));
            }
            None => {}
        }
        if let Some(table) = file.review {
            let wrong = |(key, what): (String, String)| ConfigError::Value {
                place: place(&format!("review{key}")),
                what,
            };
            reviewed = Some(Review::of(table).map_err(wrong)?);
        }
        if let Some(name) =
            file.allow_weaker.iter().find(|name| !weakness_names().any(|known| known == *name))
        {
            let known: Vec<_> = weakness_names().collect();
            let what = format!("`{name}` is nothing that can be allowed; known are {}", known.join(", "));
            return Err(ConfigError::Value { place: place("allow_weaker"), what });
        }
        allow_weaker.extend(file.allow_weaker);
        if let Some(table) = file.shell_environment {
            environment = (table, Some(path.clone()));
        }
        rules.extend(file.rules.iter().map(|text| expand(text, &directories.home)));
        skill_roots.extend(file.skills.iter().map(|text| expand(text, &directories.home)));
        if let Some(asked) = file.log.max_mib {
            const MOST: u64 = 1 << 20;
            if asked > MOST {
                let what = format!("expected at most {MOST} MiB");
                return Err(ConfigError::Value { place: place("log.max_mib"), what });
            }
            max_mib = asked;
        }
    }
    if let Some(text) = &options.on_prompt {
        patience = on_prompt(text, "command line: on_prompt".to_owned())?;
    }
    if let Some(name) = &options.approval {
        asked = Some(approval(name, "command line: approval".to_owned())?);
    }
    let requirements = Requirements::read(&directories.home)?;
    let (mut said, explicit) = (Vec::new(), asked.is_some());
    let policy_of_asking = requirements.approval(asked.unwrap_or_default(), explicit, &mut said);
    let explicit = reviewed.is_some();
    let review = requirements.review(reviewed.unwrap_or_default(), explicit, &mut said);
    turn = choose(options.sandbox.clone(), options.profile.clone(), "command line")?.or(turn);
    let explicit = turn.is_some() || options.permissions.is_some() || options.add.is_some();
    let turn = match turn {
        None => profile::workspace_write(),
        Some((name, place)) => named
            .get(&name)
            .cloned()
            .or_else(|| mode(&name))
            .ok_or_else(|| unknown_profile(&place, &name, &named))?,
    };
    let turn = match &options.permissions {
        Some(path) => json_profile("permissions", path, directories)?,
        None => turn,
    };
    let turn = match &options.add {
        Some(path) => turn.plus(&json_profile("added", path, directories)?),
        None => turn,
    };
    // Before the profiles that start from it.
    let turn = requirements.turn(narrow(turn)?, explicit, &mut said);
    named.entry("git".to_owned()).or_insert_with(|| profile::git(&turn));
    named.entry("network".to_owned()).or_insert_with(|| profile::network(&turn));
    for name in ["read-only", "workspace-write"] {
        named.extend(mode(name).map(|profile| (name.to_owned(), profile)));
    }
    named.insert(profile::EVERYTHING.to_owned(), profile::everything());
    let requested = match &options.wish {
        None => None,
        Some(_) if !policy_of_asking.takes_requests() => {
            return Err(ConfigError::Value {
                place: "command line: sandbox_permissions".to_owned(),
                what: "more than the sandbox can only be asked for under the approval policy on-request"
                    .to_owned(),
            });
        }
        Some(Wish { additional: None, justification, prefix }) => Some(Requested {
            execution: Execution::Unsandboxed,
            justification: justification.clone(),
            prefix: prefix.clone(),
        }),
        Some(Wish { additional: Some(path), justification, .. }) => {
            let additional = json_profile(REQUESTED, path, directories)?;
            if additional.filesystem.as_ref().is_none_or(Vec::is_empty)
                && !additional.network
                && additional.unix_sockets.is_empty()
            {
                return Err(ConfigError::Value {
                    place: path.display().to_string(),
                    what: "it asks for nothing: give network or fileSystem".to_owned(),
                });
            }
            named.insert(
                REQUESTED.to_owned(),
                Profile { name: REQUESTED.to_owned(), ..turn.plus(&additional) },
            );
            Some(Requested {
                execution: Execution::Permissions(REQUESTED.to_owned()),
                justification: justification.clone(),
                prefix: Vec::new(),
            })
        }
    };

    let skill_roots = skills::roots(&skill_roots, directories)?;
    let mut skills = Vec::new();
    for skills::Found { skill, profile } in skills::discover(&skill_roots, directories, &mut notes)? {
        named.extend(profile.map(|profile| (profile.name.clone(), profile)));
        skills.push(skill);
    }
    let mut paths = Vec::new();
    for directory in [Path::new(SYSTEM).join("rules"), directories.config.join("rules")] {
        paths.extend(rule_files::of(&directory)?);
    }
    paths.extend(rules);
    paths.extend(options.rules.iter().cloned());
    let mut texts = rule_files::read(&paths)?;
    let project_rules = project.into_iter().flat_map(|project| project.rules);
    texts.extend(project_rules.map(|rules| (rules.path.display().to_string(), rules.text)));
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
    let default_execution = match default_execution {
        Some((Execution::Permissions(name), place)) if !named.contains_key(&name) => {
            return Err(unknown_profile(&place, &name, &named));
        }
        Some((execution, _)) => execution,
        None => Execution::Unsandboxed,
    };
    let shell_environment = ShellEnvironment::new(&environment.0).map_err(|(key, what)| {
        let file = environment.1.unwrap_or_default();
        ConfigError::Value { place: format!("{}: shell_environment.{key}", file.display()), what }
    })?;
    Ok(Config {
        shell_environment,
        turn,
        named,
        default_execution,
        policy,
        log_max_bytes: max_mib << 20,
        approval: policy_of_asking,
        requested,
        skills,
        skill_roots,
        patience,
        timeout: options.timeout.map(Duration::from_secs),
        review,
        allow_weaker,
        sources: paths,
        notes,
        said,
    })
}

/// What the project says that is worked in, if it is trusted.
fn project(directories: &Directories, notes: &mut Vec<String>) -> Option<Project> {
    let cwd = std::env::current_dir().ok()?;
    let found = match Project::of(&cwd) {
        Ok(found) => found?,
        Err(what) => {
            notes.push(format!("the project's own policy does not count: {what}"));
            return None;
        }
    };
    if found.is_trusted(&directories.state) {
        return Some(found);
    }
    notes.push(
        "the project's own policy (.postern) does not count, since it is not trusted as it is now: `postern trust` \
         shows it"
            .to_owned(),
    );
    None
}

impl File {
    /// # Errors
    /// What a project does not decide for whoever works in it.
    fn is_a_projects(&self, path: &Path) -> Result<(), ConfigError> {
        let said = [
            ("allow_weaker", !self.allow_weaker.is_empty()),
            ("log", self.log.max_mib.is_some()),
            ("on_prompt", self.on_prompt.is_some()),
            ("review", self.review.is_some()),
            ("rules", !self.rules.is_empty()),
            ("shell_environment", self.shell_environment.is_some()),
            ("skills", !self.skills.is_empty()),
        ];
        match said.into_iter().find(|(_, said)| *said) {
            None => Ok(()),
            Some((key, _)) => Err(ConfigError::Value {
                place: format!("{}: {key}", path.display()),
                what: "a project does not say this: it says approval, default_execution, permissions, profile and sandbox"
                    .to_owned(),
            }),
        }
    }
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

pub(super) fn read(path: &Path) -> Result<Option<String>, ConfigError> {
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

/// What becomes of each of the caller's variables in a sandboxed session.
///
/// # Errors
/// A configuration that is wrong.
pub(crate) fn environment(options: &Options) -> Result<Vec<Fate>, ConfigError> {
    let directories =
        Directories::find().map_err(|what| ConfigError::Value { place: "environment".to_owned(), what })?;
    Ok(load(options, &directories)?.shell_environment.fates(&super::launch::callers_environment()))
}
