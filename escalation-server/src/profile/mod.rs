//! What a process may touch. Pure: no filesystem, no clock; whoever calls brings the facts.

mod builtin;
mod resolve;

pub(crate) use builtin::{danger_full_access, git, network, read_only, without_writing, workspace_write};
pub(crate) use resolve::{Access, Bases, Entry, Place, Profile, Reach, Resolved};
