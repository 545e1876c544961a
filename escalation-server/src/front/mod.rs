//! The doors: each is thin over the same session or the same records.

mod doctor;
mod env;
mod log;
mod rules;
mod sandbox;
mod sessions;
mod shell;
mod why;

pub(crate) use doctor::doctor;
pub(crate) use env::env;
pub(crate) use log::{LogArguments, log};
pub(crate) use rules::{check, explain_command, rules};
pub(crate) use sandbox::{ExplainArguments, Shape, convert, explain, intersect};
pub(crate) use sessions::{end, list};
pub(crate) use shell::run;
pub(crate) use why::why;
