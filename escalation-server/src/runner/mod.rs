//! Carries decisions out. The spawner forks, and nobody else; the server talks to it.

mod child;
mod link;
mod message;
mod spawner;
mod tree;

pub(crate) use link::Link;
pub(crate) use message::{Channel, Cwd, FrontOrder, FrontReport, Image, Report, Start, Target};
pub(crate) use spawner::{Profiles, ShellStart, Spawner};
pub(crate) use tree::{kill_descendants, parent_of};
