//! Configuration files of all layers, and the command line above them: what was said last counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::config::{Choice, ConfigError, MODES, Options, REQUESTED, choose, read};
use super::directories::{Directories, SYSTEM};
use super::grants::{GRANTED, WISHED};
use super::launch::project_of;
use super::permissions::{PermissionsTable, expand, permissions};
use super::review::{self, Reviewers};
use super::shell_environment;
use super::skills;
use super::tree::{Tree, place};
use super::trust::{self, Project, Text, was_trusted};
use crate::flow::Execution;
use crate::policy::{ApprovalPolicy, Granular};
use crate::profile::{self, Profile};

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
    #[serde(default)]
    request_permissions: bool,
    mcp_elicitations: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogTable {
    max_mib: Option<u64>,
}

/// What all of them say.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) named: BTreeMap<String, Profile>,
    pub(super) turn: Option<Choice>,
    /// With its place.
    pub(super) default_execution: Option<(Execution, String)>,
    /// None: nobody is asked.
    pub(super) patience: Option<Duration>,
    pub(super) approval: Option<ApprovalPolicy>,
    pub(super) reviewers: Option<Reviewers>,
    pub(super) allow_weaker: Vec<String>,
    /// With the file that says so.
    pub(super) environment: (shell_environment::Table, Option<PathBuf>),
    /// Files of rules that are named, and those of a project that is trusted.
    pub(super) rules: Vec<PathBuf>,
    pub(super) project_rules: Vec<Text>,
    pub(super) skills: Vec<PathBuf>,
    /// The project's own, if they are trusted.
    pub(super) project_skills: Option<Tree>,
    pub(super) max_mib: u64,
}

/// How long a question waits where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(300);

impl Layers {
    /// Reads all files, and notes what of them does not count, or says so where somebody may rely on it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub(super) fn read(
        options: &Options,
        directories: &Directories,
        notes: &mut Vec<String>,
        said: &mut Vec<String>,
    ) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        for path in [Path::new(SYSTEM).join("config.toml"), directories.config.join("config.toml")] {
            files.extend(read_file(&path)?.map(|file| (path, file)));
        }
        let projects = projects(directories, notes, said);
        for config in projects.iter().filter_map(|project| project.config.as_ref()) {
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
        let mut layers = Self {
            named: BTreeMap::new(),
            turn: None,
            default_execution: None,
            patience: Some(PATIENCE),
            approval: None,
            reviewers: None,
            allow_weaker: Vec::new(),
            environment: (shell_environment::Table::default(), None),
            rules: Vec::new(),
            project_rules: projects.into_iter().flat_map(|project| project.rules).collect(),
            skills: options.skills.clone(),
            project_skills: project_skills(directories, notes, said),
            max_mib: 512,
        };
        for (path, file) in files {
            layers.add(&path, file, &directories.home, notes)?;
        }
        layers.rules.extend(options.rules.iter().cloned());
        if let Some(text) = &options.on_prompt {
            layers.patience = on_prompt(text, "command line: on_prompt".to_owned())?;
        }
        if let Some(name) = &options.approval {
            layers.approval = Some(approval(name, "command line: approval".to_owned())?);
        }
        let (sandbox, profile) = (options.sandbox.clone(), options.profile.clone());
        layers.turn = choose(sandbox, profile, "command line")?.or(layers.turn.take());
        Ok(layers)
    }

    fn add(
        &mut self,
        path: &Path,
        file: File,
        home: &Path,
        notes: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let place = |key: &str| format!("{}: {key}", path.display());
        for (name, table) in file.permissions {
            let key = place(&format!("permissions.{name}"));
            if MODES.contains(&name.as_str())
                || ["unsandboxed", "turn_default", "git", "network", profile::EVERYTHING, REQUESTED]
                    .contains(&name.as_str())
                || [skills::PREFIX, WISHED, GRANTED].iter().any(|prefix| name.starts_with(prefix))
            {
                return Err(ConfigError::Value {
                    place: key,
                    what: "the name is taken by a built-in".to_owned(),
                });
            }
            let profile = permissions(&name, table, &key, home, notes)?;
            self.named.insert(name, profile);
        }
        self.turn = choose(file.sandbox, file.profile, &path.display().to_string())?.or(self.turn.take());
        if let Some(name) = file.default_execution {
            self.default_execution = Some((Execution::parse(&name), place("default_execution")));
        }
        if let Some(text) = file.on_prompt {
            self.patience = on_prompt(&text, place("on_prompt"))?;
        }
        match file.approval {
            Some(toml::Value::String(name)) => self.approval = Some(approval(&name, place("approval"))?),
            Some(table) => {
                let read = |error: toml::de::Error| ConfigError::Value {
                    place: place("approval"),
                    what: error.message().to_owned(),
                };
                let ApprovalTable { granular } = table.try_into().map_err(read)?;
                let GranularTable { sandbox_approval, rules, skill_approval, .. } = granular;
                let request_permissions = granular.request_permissions;
                if granular.mcp_elicitations == Some(true) {
                    let what = "this version serves no MCP, so nothing of that kind is asked";
                    notes.push(format!("{}: {what}", place("approval.granular.mcp_elicitations")));
                }
                self.approval = Some(ApprovalPolicy::Granular(Granular {
                    sandbox_approval,
                    rules,
                    skill_approval,
                    request_permissions,
                }));
            }
            None => {}
        }
        if let Some(table) = file.review {
            let wrong = |(key, what): (String, String)| ConfigError::Value {
                place: place(&format!("review{key}")),
                what,
            };
            self.reviewers = Some(Reviewers::of(table).map_err(wrong)?);
        }
        if let Some(name) =
            file.allow_weaker.iter().find(|name| !weakness_names().any(|known| known == *name))
        {
            let known: Vec<_> = weakness_names().collect();
            let what = format!("`{name}` is nothing that can be allowed; known are {}", known.join(", "));
            return Err(ConfigError::Value { place: place("allow_weaker"), what });
        }
        self.allow_weaker.extend(file.allow_weaker);
        if let Some(table) = file.shell_environment {
            self.environment = (table, Some(path.to_path_buf()));
        }
        self.rules.extend(file.rules.iter().map(|text| expand(text, home)));
        self.skills.extend(file.skills.iter().map(|text| expand(text, home)));
        if let Some(asked) = file.log.max_mib {
            const MOST: u64 = 1 << 20;
            if asked > MOST {
                let what = format!("expected at most {MOST} MiB");
                return Err(ConfigError::Value { place: place("log.max_mib"), what });
            }
            self.max_mib = asked;
        }
        Ok(())
    }
}

fn weakness_names() -> impl Iterator<Item = &'static str> {
    crate::sandbox::WEAKNESSES.iter().map(|(name, _)| *name)
}

/// An approval policy by its name, of which `place` is told where it is none.
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

/// What the projects say that are worked in, of those that are trusted.
fn projects(directories: &Directories, notes: &mut Vec<String>, said: &mut Vec<String>) -> Vec<Project> {
    let Ok(cwd) = std::env::current_dir() else { return Vec::new() };
    let mut trusted = Vec::new();
    for (root, found) in Project::above(&cwd) {
        let why = match found {
            Ok(found) if found.is_trusted(&directories.state) => {
                trusted.push(found);
                continue;
            }
            Ok(_) => "`postern trust` shows it".to_owned(),
            Err(what) => what,
        };
        let what = format!("{} does not count: {why}", root.join(".postern").display());
        // Fewer rules than somebody relies on are worth a word.
        if was_trusted(&root, &directories.state) {
            said.push(format!("{what}; it has changed since it was trusted"));
        } else {
            notes.push(what);
        }
    }
    trusted
}

/// The skills of the project that is worked in, if they are trusted. Those of directories between it and
/// the working directory lie where a sandbox writes, and above it lies somebody else's.
fn project_skills(
    directories: &Directories,
    notes: &mut Vec<String>,
    said: &mut Vec<String>,
) -> Option<Tree> {
    let cwd = std::env::current_dir().ok()?;
    let project = project_of(&cwd);
    match trust::skills(project, directories) {
        trust::Skills::Absent => None,
        trust::Skills::Trusted(tree) => Some(tree),
        trust::Skills::Unknown { why, relied_on } => {
            let what = format!("{} does not count: {why}", place(project).display());
            if relied_on {
                said.push(what)
            } else {
                notes.push(what)
            }
            None
        }
    }
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

fn read_file(path: &Path) -> Result<Option<File>, ConfigError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let parsed = toml::from_str(&text);
    parsed.map(Some).map_err(|error| ConfigError::Parse { path: path.to_path_buf(), error: Box::new(error) })
}
