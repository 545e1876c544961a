//! One session: how it is set up, and what happens to each of its requests.

mod asker;
mod config;
mod directories;
mod elsewhere;
mod environ;
mod explain;
mod explain_rules;
mod intake;
mod launch;
mod permissions;
mod pipeline;
mod rerun;
mod server;
mod settle;
mod shell_environment;
mod sockets;

pub(crate) use config::{ConfigError, Options, check_rules, environment};
pub(crate) use directories::Directories;
pub(crate) use explain::{convert, explain, intersect, name};
pub(crate) use explain_rules::{Written, explain_rules, list_rules};
pub(crate) use launch::{Running, bytes, launch, prepare};
