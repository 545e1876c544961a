//! The doors: each is thin over the same session or the same records.

mod doctor;
mod log;
mod rules;
mod sandbox;
mod sessions;
mod shell;

pub(crate) use doctor::doctor;
pub(crate) use log::{LogArguments, log};
pub(crate) use rules::check;
pub(crate) use sandbox::{ExplainArguments, Shape, convert, explain, intersect};
pub(crate) use sessions::{end, list};
pub(crate) use shell::run;
