//! What rules say of a command. Pure: rule files come in as text, requests as values.

mod amend;
mod heuristics;
mod judge;
mod language;
mod rules;
mod stance;

pub(crate) use amend::Amendment;
pub(crate) use heuristics::runs_what_lies_there;
pub(crate) use judge::{Counts, Subject, consider, is_called, judge, matches};
pub(crate) use language::{LoadError, load};
pub(crate) use rules::{NetworkRule, Policy, Rule};
pub(crate) use stance::{ApprovalPolicy, Cause, Granular, Requested, Stance};
