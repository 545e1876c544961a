//! From judgement to outcome.

use std::path::{Path, PathBuf};

use postern_shim::wire::Bytes;

/// What a rule or a heuristic says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Allow,
    Prompt,
    Forbidden,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Prompt => "prompt",
            Self::Forbidden => "forbidden",
        }
    }

    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Allow, Self::Prompt, Self::Forbidden].into_iter().find(|one| one.name() == name)
    }
}

/// The rule that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleSource {
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) justification: Option<String>,
}

/// A skill, and what its scripts run under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skill {
    pub(crate) name: String,
    /// Free of symlinks.
    pub(crate) directory: PathBuf,
    /// Where it was looked for.
    pub(crate) root: PathBuf,
    /// In the turn, or under what it declares.
    pub(crate) execution: Execution,
    /// The files that say so.
    pub(crate) metadata: Vec<PathBuf>,
}

impl Skill {
    /// Whether a file is one of its scripts.
    pub(crate) fn has(&self, program: &Path) -> bool {
        program.starts_with(self.directory.join("scripts"))
    }

    /// Whether it declares anything.
    pub(crate) fn declares(&self) -> bool {
        matches!(self.execution, Execution::Permissions(_))
    }
}

/// Where a judgement comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    Rule(RuleSource),
    /// It is a skill's script.
    Skill(Skill),
    /// It failed inside the sandbox, so, safe to print.
    Failure {
        how: String,
    },
    /// No rule matched; what was made of it, safe to print but for what the user said.
    Heuristic {
        why: String,
    },
}

/// Under what an allowed command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Execution {
    Unsandboxed,
    TurnDefault,
    /// The profile of this name.
    Permissions(String),
}

impl Execution {
    /// As rules and the configuration write it.
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            "unsandboxed" => Self::Unsandboxed,
            "turn_default" => Self::TurnDefault,
            profile => Self::Permissions(profile.to_owned()),
        }
    }

    /// What [`Self::parse`] reads.
    pub(crate) fn written(&self) -> &str {
        match self {
            Self::Unsandboxed => "unsandboxed",
            Self::TurnDefault => "turn_default",
            Self::Permissions(profile) => profile,
        }
    }
}

impl std::fmt::Display for Execution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unsandboxed => f.write_str("unsandboxed"),
            Self::TurnDefault => f.write_str("turn_default"),
            Self::Permissions(name) => write!(f, "permissions({name})"),
        }
    }
}

/// What an allow rule grants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Allowed {
    /// None: what the configuration gives an allow rule.
    pub(crate) execution: Option<Execution>,
    /// Variables that the command keeps as the asker set them.
    pub(crate) env_keep: Vec<String>,
}

/// What the judge says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) verdict: Verdict,
    pub(crate) source: Source,
    pub(crate) allowed: Allowed,
    /// The prefix that matched, if a rule did.
    pub(crate) matched: Vec<String>,
    /// A matching rule asked that the run be marked.
    pub(crate) audit: bool,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub(crate) enum Decision {
    /// In place, in the sandbox that the asker is already in.
    Run { reason: String },
    /// The reason is what the asker's stderr gets.
    Deny { reason: String },
    /// Elsewhere, under this.
    Escalate { execution: Execution, reason: String },
}

impl Decision {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::Deny { .. } => "deny",
            Self::Escalate { .. } => "escalate",
        }
    }

    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Run { reason } | Self::Deny { reason } | Self::Escalate { reason, .. } => reason,
        }
    }
}

/// How the environment of a rerun differs from what the asker had.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EnvironmentChanges {
    /// Variables that the asker changed and the rerun gets.
    pub(crate) kept: Vec<Bytes>,
    /// Variables that the asker changed and the rerun does not get.
    pub(crate) dropped: Vec<Bytes>,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Exited(i32),
    Signaled(i32),
    /// Never executed: denied, or refused by the kernel.
    Refused(i32),
    /// Nobody was left to see.
    Lost,
    /// The kernel does not tell.
    Unknown,
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: Status,
    pub(crate) wall_us: u64,
    pub(crate) user_us: Option<u64>,
    pub(crate) sys_us: Option<u64>,
    pub(crate) maxrss_kb: Option<u64>,
    /// Numbers and kinds of the descriptors that were handed over.
    pub(crate) fds: Vec<(u32, String)>,
}

impl Outcome {
    pub(crate) fn new(status: Status, wall_us: u64) -> Self {
        Self { status, wall_us, user_us: None, sys_us: None, maxrss_kb: None, fds: Vec::new() }
    }
}
