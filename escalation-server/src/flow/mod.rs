//! The nouns that travel from room to room. They know none of them.

mod decision;
mod request;
pub(crate) mod text;

pub(crate) use decision::{
    Allowed, Decision, EnvironmentChanges, Execution, Judgement, Outcome, RuleSource, Skill, Source, Status,
    Verdict,
};
pub(crate) use request::{Attested, ContextId, Cwd, Executable, FileIdentity, Request, Shape};
