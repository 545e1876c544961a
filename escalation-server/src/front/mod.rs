//! The doors: each is thin over the same session or the same records.

mod approve;
mod doctor;
mod env;
mod log;
mod request;
mod rules;
mod sandbox;
mod sessions;
mod shell;
mod skills;
mod trust;
mod why;

pub(crate) use approve::{ApproveArguments, approve};
pub(crate) use doctor::doctor;
pub(crate) use env::env;
pub(crate) use log::{LogArguments, log};
pub(crate) use request::{RequestArguments, ask, inside, request};
pub(crate) use rules::{add, check, explain_command, remove, rules, test};
pub(crate) use sandbox::{ExplainArguments, Shape, convert, explain, intersect};
pub(crate) use sessions::{end, list};
pub(crate) use shell::run;
pub(crate) use skills::skills;
pub(crate) use trust::{TrustArguments, trust};
pub(crate) use why::why;
