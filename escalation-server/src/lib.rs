//! Postern: a guarded gate between an agent's sandboxed shell and the machine.
//!
//! The rooms, in the order of the flow; imports point down, never up and never sideways:
//!
//! * `cli`, `front`: the doors. A login shell, the log, rules, a doctor.
//! * `session`: configuration, launch, and the flow of a request in `session/pipeline.rs`.
//! * `approval`: what waits for a person's answer, and what was granted.
//! * `runner`: the spawner, which forks, and what its children do until they are the command.
//! * `sandbox`: from a profile to a confined process.
//! * `record`: history.
//! * `policy`, `profile`: what rules say, what a profile gives. Pure.
//! * `flow`: the nouns that travel.
//! * `sys`: the kernel, and all `unsafe` code.
//!
//! Two executables are made of them: `postern`, of all, and `postern-spawner`, of `runner` and what is below.
#![deny(unsafe_code)]

mod approval;
mod cli;
mod flow;
mod front;
mod policy;
mod profile;
mod record;
mod runner;
mod sandbox;
mod session;
#[expect(unsafe_code, reason = "system calls; each block has its SAFETY note")]
mod sys;

pub use cli::main;
// Not called here: `src/spawner.rs` is made of the same rooms. It keeps them whole in this crate too.
pub use runner::main as spawner;
