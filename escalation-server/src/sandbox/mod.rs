//! From a profile to a confined process: facts, a plan that can be printed, and one straight
//! procedure that applies it.

mod apply;
mod facts;
mod placeholder;
mod plan;
mod seccomp;

pub(crate) use apply::{Confinement, Shared, StepError, build_view, confine, cover, split_off};
pub(crate) use facts::{Abilities, Facts, Own, Refusal};
pub(crate) use placeholder::{Leases, Placeholder};
pub(crate) use plan::{Plan, plan};
