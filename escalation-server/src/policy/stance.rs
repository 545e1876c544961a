//! When people are asked.

use crate::flow::Execution;

/// An approval policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ApprovalPolicy {
    /// About everything that no rule allows and that is not known to be harmless.
    Untrusted,
    /// About what has failed in the sandbox: whether it may run once more without one.
    OnFailure,
    /// About what asks to leave the sandbox.
    #[default]
    OnRequest,
    /// About nothing: what would be asked about is denied.
    Never,
    /// As `OnRequest`, but only of these kinds.
    Granular(Granular),
}

/// Which kinds of questions are asked; the others are denials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Granular {
    pub(crate) sandbox_approval: bool,
    pub(crate) rules: bool,
    pub(crate) skill_approval: bool,
    pub(crate) request_permissions: bool,
}

/// What a question comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The command itself, or what it asked for: no rule speaks of it.
    Command,
    Rule,
    Skill,
    /// A request for more for every later command.
    Permissions,
}

impl ApprovalPolicy {
    /// As configurations write it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::OnFailure => "on-failure",
            Self::OnRequest => "on-request",
            Self::Never => "never",
            Self::Granular(_) => "granular",
        }
    }

    /// # Errors
    /// The setting that keeps this from being asked.
    pub(crate) fn may_ask(&self, cause: Cause) -> Result<(), &'static str> {
        match (self, cause) {
            (Self::Never, _) => Err("the approval policy is never"),
            (Self::Granular(granular), Cause::Command) if !granular.sandbox_approval => {
                Err("the approval policy has sandbox_approval = false")
            }
            (Self::Granular(granular), Cause::Rule) if !granular.rules => {
                Err("the approval policy has rules = false")
            }
            (Self::Granular(granular), Cause::Skill) if !granular.skill_approval => {
                Err("the approval policy has skill_approval = false")
            }
            (Self::Granular(granular), Cause::Permissions) if !granular.request_permissions => {
                Err("the approval policy has request_permissions = false")
            }
            _ => Ok(()),
        }
    }

    /// Whether a turn may ask for more than its sandbox at all.
    pub(crate) fn takes_requests(&self) -> bool {
        *self == Self::OnRequest
    }
}

/// What a command meets that no rule matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stance {
    pub(crate) policy: ApprovalPolicy,
    /// The turn has no sandbox.
    pub(crate) unrestricted: bool,
    /// What the turn asks for, instead of its sandbox.
    pub(crate) requested: Option<Requested>,
    /// What was granted to the turn besides its sandbox, with it.
    pub(crate) granted: Option<Execution>,
}

/// A wish for more, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requested {
    pub(crate) execution: Execution,
    pub(crate) justification: Option<String>,
    /// The first words of commands that are to be allowed for good.
    pub(crate) prefix: Vec<String>,
}

impl Stance {
    /// Whether it matters which program a command is that no rule is about.
    pub(crate) fn looks(&self) -> bool {
        let known = matches!(self.policy, ApprovalPolicy::Untrusted | ApprovalPolicy::OnFailure);
        self.unrestricted || self.requested.is_some() || self.granted.is_some() || known
    }
}
