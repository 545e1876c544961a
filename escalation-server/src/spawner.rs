//! The `postern-spawner` executable. One of its own, since every command's process is copied from it, and
//! made of the rooms that it needs: linked from the library it would have 49 000 words for the loader to
//! relocate in place of 12 000, and 7.8 MB in place of 2.8.
#![deny(unsafe_code)]
#![expect(dead_code, unused_imports, unreachable_pub, reason = "what of these rooms the server alone uses")]

mod profile;
mod runner;
mod sandbox;
#[expect(unsafe_code, reason = "system calls; each block has its SAFETY note")]
mod sys;

fn main() {
    std::process::exit(runner::main());
}
