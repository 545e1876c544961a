//! What rules say of a command. Pure: rule files come in as text, requests as values.

mod judge;
mod language;
mod rules;

pub(crate) use judge::{Counts, Subject, consider, judge, matches};
pub(crate) use language::{LoadError, load};
pub(crate) use rules::{Policy, Rule};
