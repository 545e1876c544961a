//! The `postern` binary; all of it is in the library.
#![forbid(unsafe_code)]

fn main() {
    std::process::exit(postern::main(std::env::args_os().collect()));
}
