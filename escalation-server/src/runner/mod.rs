//! Carries decisions out. The spawner forks, and nobody else; the server talks to it.

mod begin;
mod channel;
mod command;
mod commands;
mod endings;
mod enter;
mod handover;
mod init;
mod link;
mod message;
mod shell;
mod signals;
mod spawner;
mod standby;
mod tree;

pub(crate) use begin::NewSpawner;
pub(crate) use channel::Channel;
pub(crate) use handover::answer;
pub(crate) use link::{Command, Link};
pub(crate) use message::{
    Cwd, FrontOrder, FrontReport, Go, Image, Inherited, Names, Report, Start, Target, terminated,
};
pub use spawner::main;
pub(crate) use spawner::{Begin, Profiles, SPAWNER, ShellStart};
pub(crate) use tree::{is_stopped, kill_descendants, parent_of};
