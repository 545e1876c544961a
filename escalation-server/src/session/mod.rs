//! One session: how it is set up, and what happens to each of its requests.

mod arguments;
mod asker;
mod config;
mod control;
mod directories;
mod elsewhere;
mod environ;
mod explain;
mod explain_rules;
mod intake;
mod launch;
mod layers;
mod permissions;
mod pipeline;
mod prompt;
mod requirements;
mod rerun;
mod review;
mod rule_files;
mod server;
mod settle;
mod shell_environment;
mod skills;
mod sockets;
mod trust;

pub(crate) use crate::policy::Amendment;
pub(crate) use config::{ConfigError, Options, Wish, environment};
pub(crate) use control::{directory as control_directory, short as short_path, token as operator_token};
pub(crate) use directories::Directories;
pub(crate) use explain::{convert, explain, intersect, name};
pub(crate) use explain_rules::{Written, explain_rules, list_rules};
pub(crate) use launch::{Running, bytes, launch, prepare};
pub(crate) use rule_files::{Matched, add_rule, check_rules, remove_rules, test_rules};
pub(crate) use skills::{Declared, list_skills};
pub(crate) use trust::{distrust, show_trust, trust};
