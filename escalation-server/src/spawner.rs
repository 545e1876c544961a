//! The `postern-spawner` executable. One of its own, of the rooms that it needs and nothing else: every
//! command's process is copied from it, and what it does not have is not copied.
#![deny(unsafe_code)]
#![allow(dead_code, unused_imports, unreachable_pub, reason = "what of these rooms the server alone uses")]

mod profile;
mod runner;
mod sandbox;
#[expect(unsafe_code, reason = "system calls; each block has its SAFETY note")]
mod sys;

fn main() {
    std::process::exit(runner::main());
}
