//! What goes over a session's control socket: one JSON object a line, in both directions.

use serde::{Deserialize, Serialize};

/// What somebody decides about a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Choice {
    /// One run.
    Once,
    /// This run and every equal one of the session.
    Session,
    /// So many equal runs, this one among them.
    Uses(u32),
    /// This run and every equal one for so many seconds.
    Seconds(u64),
    /// This run, and whatever the rule allows that is written for it.
    Rule,
    Deny,
    /// Denies all that waits in the session, and interrupts its shell.
    Abort,
}

impl Choice {
    /// As people and records write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Session => "session",
            Self::Uses(_) => "uses",
            Self::Seconds(_) => "until",
            Self::Rule => "rule",
            Self::Deny => "deny",
            Self::Abort => "abort",
        }
    }
}

/// What a door wants. Every line begins with the operator's token, which no sandbox can read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Order {
    /// The state now, and again after each change.
    Watch {
        token: String,
    },
    Answer {
        token: String,
        prompt: String,
        choice: Choice,
    },
    /// Takes back what was granted for longer than one run.
    Revoke {
        token: String,
        grant: String,
    },
}

impl Order {
    pub(crate) fn token(&self) -> &str {
        match self {
            Self::Watch { token } | Self::Answer { token, .. } | Self::Revoke { token, .. } => token,
        }
    }
}

/// One thing that a person has to know, safe to print.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// A question that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prompt {
    pub(crate) id: String,
    /// The command line, cut.
    pub(crate) summary: String,
    pub(crate) fields: Vec<Field>,
    /// Names of the choices that are accepted.
    pub(crate) offered: Vec<String>,
    /// How many equal commands wait.
    pub(crate) waiting: usize,
    /// Seconds since the first of them asked.
    pub(crate) seconds: u64,
}

/// What was granted and still holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GrantView {
    pub(crate) id: String,
    pub(crate) summary: String,
    pub(crate) by: String,
    pub(crate) uses_left: Option<u32>,
    pub(crate) seconds_left: Option<u64>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) id: String,
    pub(crate) summary: String,
    pub(crate) decision: String,
    pub(crate) by: String,
}

/// What a door shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) session: String,
    pub(crate) cwd: String,
    pub(crate) waiting: Vec<Prompt>,
    pub(crate) grants: Vec<GrantView>,
    pub(crate) history: Vec<Past>,
}

/// What a session says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    State(State),
    Done,
    Refused(String),
}
