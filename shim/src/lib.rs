//! What runs inside the confined process.
//!
//! Everything here but [`wire`] may run in a process that is not ours, after `fork`: no heap, no
//! locks, no panics, only system calls on memory of its own.
//!
//! * [`wire`]: the contract with the server, one place for messages, frames and limits.
//! * `client`: one exec's conversation with the server.
//! * `waiter`: what a process does while its command runs elsewhere.
//! * `hook`: the C ABI that patched zsh calls (`include/shim.h`).

pub mod client;
mod hook;
mod sys;
mod waiter;
pub mod wire;

/// Names the descriptor of the session's request socket in the environment of the confined shell.
pub const SOCKET_VARIABLE: &str = "POSTERN_SOCKET";

/// Where the zsh build is told it will be installed; `hook` moves paths below it at run time.
pub const BUILD_PREFIX: &str = "/usr/lib/postern/unrelocated";
