//! What a process may touch. Pure: no filesystem, no clock; whoever calls brings the facts.

mod builtin;
mod json;
mod merge;
pub(crate) mod packed;
mod resolve;

pub(crate) use builtin::{
    CLOSED, EVERYTHING, PINNED, danger_full_access, everything, git, network, read_only, without_writing,
    workspace_write,
};
pub(crate) use json::{Base, JsonError, from_json, from_legacy, to_json, to_legacy};
pub(crate) use resolve::{
    Access, Bases, Denied, Entry, Place, Profile, Reach, Resolved, is_pattern, pattern_error,
};
