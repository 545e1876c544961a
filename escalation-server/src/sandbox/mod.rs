//! From a profile to a confined process: facts, a plan that can be printed, and one straight
//! procedure that applies it.

mod apply;
mod facts;
mod placeholder;
mod plan;
mod seccomp;

pub(crate) use apply::{Confinement, build_view, confine, split_off};
pub(crate) use facts::{Abilities, Facts, Refusal};
pub(crate) use placeholder::{Placeholder, place};
pub(crate) use plan::{Plan, plan};
