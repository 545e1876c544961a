//! From a profile to a confined process: facts, a plan that can be printed, and one straight
//! procedure that applies it.

mod alone;
mod apply;
mod closed;
mod facts;
mod globs;
mod mounted;
mod placeholder;
mod plan;
mod probe;
mod seccomp;
mod watch;

pub(crate) use alone::WEAKNESSES;
pub(crate) use apply::{
    Confinement, Premade, Refused, StepError, build_view, confine, listen_to_names, ruleset, split_off,
};
pub(crate) use facts::{Facts, Own, Refusal, worktree};
pub(crate) use globs::{check_pattern, matches};
pub(crate) use mounted::{Mounts, by_every_path, elsewhere};
pub(crate) use placeholder::{Leases, Placeholder};
pub(crate) use plan::{Plan, plan};
pub(crate) use probe::{Abilities, Namespaces};
pub(crate) use seccomp::Calls;
pub(crate) use watch::{Change, Changes, Watch};
